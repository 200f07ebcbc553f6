"""Images drawn while training runs, always from the same prompts and seeds."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from difflora.families.model import Model
from difflora.generate import generate
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
        1, ge=0, lt=2**63, description="Seed of the first preview; the next ones count up."
    )


def draw_previews(
    model: Model, prompts: Sequence[str], options: PreviewOptions, *, folder: Path, step: int
) -> list[Path]:
    """Draws one image a prompt with whatever is attached to the model now; returns the files.

    Training draws nothing from global random state, so a run with previews and one without give the same
    adapter.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index, prompt in enumerate(prompts):
        request = Request(prompt=prompt, seed=options.preview_seed + index, steps=options.preview_steps)
        (image,) = generate(model, request)
        path = folder / f"step-{step:08d}-{index:02d}.png"
        image.save(path)
        files.append(path)
    return files
