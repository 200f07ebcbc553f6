"""The optimizers that train factors, one row each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from torch import Tensor, nn

from difflora.errors import ConfigError
from difflora.inject import Arena

OptimizerName = Literal["adamw", "adamw8bit"]
Averaging = Annotated[float, Field(ge=0, lt=1)]


class OptimizerOptions(BaseModel):
    """How factors are updated from their gradients."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimizer: OptimizerName = Field(
        "adamw", description="adamw, or adamw8bit (needs the `quant` extra and a GPU)."
    )
    learning_rate: float = Field(1e-4, gt=0, le=1, description="Learning rate of the UNet's factors.")
    text_learning_rate: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Learning rate of the text encoders' factors. Default: half of the UNet's.",
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="Decoupled weight decay of the factors.")
    betas: tuple[Averaging, Averaging] = Field(
        (0.9, 0.999), description="AdamW's two averaging rates, each from 0 up to, but not, 1."
    )
    max_grad_norm: FiniteFloat = Field(
        1.0, ge=0, description="Gradients are scaled down to this norm; 0: never."
    )
    accumulation: int = Field(
        1,
        ge=1,
        description="Batches summed for one optimizer step: a larger batch in the same memory.",
    )

    def text_rate(self) -> float:
        """The text encoders' learning rate."""
        return self.text_learning_rate if self.text_learning_rate is not None else self.learning_rate / 2


Groups = list[dict[str, object]]


def _adamw(groups: Groups, options: OptimizerOptions) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, betas=options.betas, weight_decay=options.weight_decay, fused=True)


def _adamw8bit(groups: Groups, options: OptimizerOptions) -> torch.optim.Optimizer:
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "optimizer='adamw8bit' needs bitsandbytes, which is not installed. "
            "Run `pip install 'difflora[quant]'`, or use optimizer='adamw'."
        ) from error
    if not torch.cuda.is_available():
        raise ConfigError(
            "optimizer='adamw8bit' needs a CUDA device, and none was found; use optimizer='adamw'."
        )
    return bitsandbytes.optim.AdamW8bit(groups, betas=options.betas, weight_decay=options.weight_decay)


OPTIMIZERS: Mapping[str, Callable[[Groups, OptimizerOptions], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
}


def make_optimizer(
    options: OptimizerOptions, *, unet: Arena | None, text: Arena | None
) -> tuple[torch.optim.Optimizer, tuple[float, ...]]:
    """The optimizer over the arenas in use, and the base learning rate of each of its groups.

    Raises ConfigError if the optimizer's library or device is not there.
    """
    rates = [
        (arena, rate) for arena, rate in ((unet, options.learning_rate), (text, options.text_rate())) if arena
    ]
    groups: Groups = [{"params": [arena.flat], "lr": rate} for arena, rate in rates]
    return OPTIMIZERS[options.optimizer](groups, options), tuple(rate for _, rate in rates)


def require_optimizer(options: OptimizerOptions, device: torch.device) -> None:
    """Raises ConfigError if the optimizer's library or device is not there: one number's is made, and thrown
    away."""
    number = nn.Parameter(torch.zeros(1, device=device))
    OPTIMIZERS[options.optimizer]([{"params": [number], "lr": options.learning_rate}], options)


@torch.no_grad()
def clip(arenas: Sequence[Arena], limit: float) -> Tensor:
    """Scales the gradients of all arenas together down to the norm `limit` (0: leaves them); returns their
    norm before, a 0-d tensor on their device."""
    norm = torch.stack([arena.grad.norm() for arena in arenas]).norm()
    if limit > 0:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        for arena in arenas:
            arena.grad.mul_(factor)
    return norm
