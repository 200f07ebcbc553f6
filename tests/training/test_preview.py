"""Previews show what was learned, as it was learned."""

import io
from typing import Any

import pytest
from rich.console import Console

from difflora.commands.train import _report
from difflora.recipe import Request
from difflora.training import preview as preview_module
from difflora.training.loop import train


def test_a_preview_is_drawn_with_the_text_layer_that_is_trained_with(
    small, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Request] = []
    usual = preview_module.generate

    def watched(model: Any, request: Request) -> Any:
        drawn.append(request)
        return usual(model, request)

    monkeypatch.setattr(preview_module, "generate", watched)
    prompts = ("a red circle", "a blue ring")
    config = small(clip_skip=2, preview_every=3, preview_prompts=prompts, preview_steps=2, preview_seed=5)
    list(train(config))
    assert [(r.prompt, r.seed, r.steps, r.clip_skip) for r in drawn] == [
        ("a red circle", 5, 2, 2),
        ("a blue ring", 6, 2, 2),
    ] * 2


@pytest.mark.parametrize(("clip_skip", "ending"), [(1, '<lora:small:1>"\n'), (2, '1>" --clip-skip 2\n')])
def test_the_command_that_draws_with_it_has_the_text_layer_too(small, clip_skip: int, ending: str) -> None:
    config = small(clip_skip=clip_skip)
    config.output.mkdir()
    adapter = config.output / "small.safetensors"
    adapter.touch()
    said = io.StringIO()
    _report(Console(file=said, soft_wrap=True), config, adapter)
    assert said.getvalue().endswith(ending)
