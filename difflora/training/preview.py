"""Images drawn while training runs, always from the same prompts and seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from difflora.errors import ConfigError, PromptError, listing
from difflora.families.model import Model
from difflora.generate import SEEDS, generate
from difflora.prompts import parse_attention
from difflora.recipe import Request


class PreviewOptions(BaseModel):
    """Which images are drawn while training runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    preview_every: int | None = Field(
        None, ge=1, description="Optimizer steps between preview images; off by default."
    )
    preview_prompts: tuple[str, ...] = Field(
        (), description="Prompts of the previews. Default: the captions of the first images of the folder."
    )
    preview_count: int = Field(
        4, ge=1, le=64, description="How many captions serve as prompts when none are given."
    )
    preview_steps: int = Field(20, ge=1, le=200, description="Sampling steps of a preview.")
    preview_seed: int = Field(
        1, ge=0, lt=2**32, description="Seed of the first preview; the next ones count up."
    )

    @model_validator(mode="after")
    def _drawable(self) -> Self:
        try:
            preview_requests(self, self.preview_prompts)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self


def preview_requests(
    options: PreviewOptions, prompts: Sequence[str], *, clip_skip: int = 1
) -> tuple[Request, ...]:
    """One request a prompt, each with its own seed.

    Raises ConfigError naming every prompt that could not be drawn, by what it holds or by its syntax.
    """
    requests, problems = [], []
    for index, prompt in enumerate(prompts):
        try:
            request = Request(
                prompt=prompt,
                seed=(options.preview_seed + index) % SEEDS,
                steps=options.preview_steps,
                clip_skip=clip_skip,
            )
            parse_attention(request.prompt)  # as it will be read when it is drawn
            requests.append(request)
        except (ConfigError, PromptError) as error:
            problems.append(f"preview {index + 1}, {prompt!r}: {error}")
    if problems:
        raise ConfigError(
            f"{len(problems)} of {len(prompts)} previews cannot be drawn:\n{listing(problems)}\n"
            "Change preview_prompts, or the captions that stand in for them."
        )
    return tuple(requests)


def draw_previews(model: Model, requests: Sequence[Request], *, folder: Path, step: int) -> list[Path]:
    """Draws one image a request with whatever is attached to the model now; returns the files.

    Training draws nothing from global random state, so a run with previews and one without give the same
    adapter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, request in enumerate(requests):
        (image,) = generate(model, request)
        path = folder / f"step-{step:08d}-{index:02d}.png"
        image.save(path)
        files.append(path)
    return files
