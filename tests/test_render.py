"""One batch through the pipeline: the rows of the UNet, and numbers that are no image."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from difflora.errors import GenerationError
from difflora.families.model import Model
from difflora.generate import generate
from difflora.recipe import Request

QUICK = Request(prompt="a red circle on a blue background", seed=7, steps=3, width=64, height=64)


@pytest.fixture(scope="module")
def model(shapes_model: Model) -> Model:
    return shapes_model


def test_without_guidance_the_unet_has_one_row_an_image(model: Model) -> None:
    rows: list[int] = []
    unet = model.component("unet")
    hook = unet.register_forward_pre_hook(lambda module, inputs: rows.append(inputs[0].shape[0]))
    try:
        generate(model, QUICK.model_copy(update={"guidance": 1.0, "batch": 3, "steps": 1}))
        generate(model, QUICK.model_copy(update={"guidance": 2.0, "batch": 3, "steps": 1}))
    finally:
        hook.remove()
    assert rows == [3, 6]


@contextmanager
def poisoned(module: nn.Module, *, after: int = 0) -> Iterator[None]:
    """The module's output is NaN from its call number `after` on."""
    calls = iter(range(10**6))

    def spoil(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if next(calls) < after:
            return output
        return torch.full_like(output, float("nan"))

    hook = module.register_forward_hook(spoil)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("text_encoder.text_model.final_layer_norm", "text embeddings"),
        ("unet.conv_out", "step 3 of 3"),
    ],
)
def test_nan_is_an_error_that_names_the_stage(model: Model, where: str, said: str) -> None:
    after = 0 if where.startswith("text") else 2
    with poisoned(model.module(where), after=after), pytest.raises(GenerationError) as caught:
        generate(model, QUICK)
    assert said in str(caught.value) and "float32" in str(caught.value)


def test_nan_of_the_vae_names_the_vae(model: Model) -> None:
    with poisoned(model.pipeline.vae.decoder.conv_out), pytest.raises(GenerationError, match="VAE"):
        generate(model, QUICK)
