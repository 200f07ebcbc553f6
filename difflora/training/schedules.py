"""How long training lasts, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

ScheduleName = Literal["constant", "cosine", "linear"]

# progress in [0, 1) after warm-up -> factor on the learning rate
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
}


class ScheduleOptions(BaseModel):
    """How long training lasts and how the learning rate changes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(
        None,
        ge=1,
        description="Optimizer steps in all. Give steps or epochs, not both; else the preset decides.",
    )
    epochs: FiniteFloat | None = Field(
        None, gt=0, description="Passes over all images (repeats counted) instead of steps."
    )
    schedule: ScheduleName = Field("cosine", description="Course of the learning rate after the warm-up.")
    warmup_steps: int = Field(
        0, ge=0, description="Steps over which the learning rate rises linearly from zero."
    )


def lr_factor(step: int, total: int, options: ScheduleOptions) -> float:
    """The factor on the learning rate at optimizer step `step`, counted from 0, of `total`."""
    warmup = min(options.warmup_steps, total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return SCHEDULES[options.schedule]((step - warmup) / max(1, total - warmup))


def total_steps(options: ScheduleOptions, *, batches_per_epoch: int, accumulation: int) -> int:
    """Optimizer steps in all: `steps`, or enough of them to see every image `epochs` times."""
    if options.steps is not None:
        return options.steps
    assert options.epochs is not None, "TrainConfig makes sure of one"
    return max(1, math.ceil(options.epochs * batches_per_epoch / accumulation))
