"""Trainable DoRA: a LoRA's direction, with the length of every output row learned apart."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from difflora.apply import Forward
from difflora.errors import CheckpointError
from difflora.inject.lora import TrainedLoRA
from difflora.inject.trainable import Layer
from difflora.kinds import DoRA, Kind

_EPS = torch.finfo(torch.float32).eps


class TrainedDoRA(TrainedLoRA):
    """down and up as in LoRA, and magnitude (out, 1[, 1, 1]), which starts at the norms of W0's rows.

    With g = magnitude / ‖W0 + ΔW‖ the layer computes g · (x (W0 + ΔW)ᵀ) + b. The norm is taken as a constant
    in the backward pass, as the paper (§4.3) and PEFT do. The magnitude is kept in float32 in every file:
    half precision would change W0 itself by 0.02 % a row, and it is small.
    """

    @staticmethod
    def start(layer: Layer) -> dict[str, Tensor]:
        """See Trainable.start."""
        shape = (layer.shape[0], *([1] * (len(layer.shape) - 1)))
        # As `_gain` has it, and on the same device: the first quotient is exactly 1.
        magnitude = _norms(layer.module.weight).view(shape).cpu()
        return {**TrainedLoRA.start(layer), "magnitude": magnitude}

    def forward(self) -> Forward:
        """The LoRA's forward, and (g − 1) times what it gives without the bias."""
        changed, module = super().forward(), self.layer.module

        def forward(x: Tensor) -> Tensor:
            y = changed(x)
            gain = _along_channels(self._gain() - 1, module).to(y.dtype)
            without = y if module.bias is None else y - _along_channels(module.bias, module)
            return torch.addcmul(y, without, gain)

        return forward

    def _gain(self) -> Tensor:
        """g (out,): its gradient is that of the magnitude alone."""
        down, up = (part.detach().flatten(1) for part in self.pair())
        weight = self.layer.module.weight.detach()
        norms = _norms(torch.addmm(weight.float().flatten(1), up, down, alpha=self.layer.scale))
        return self.parameters["magnitude"].flatten() / norms

    def kind(self, dtype: torch.dtype) -> Kind:
        """See Trainable.kind."""
        return DoRA(self.lora(dtype), self.copy("magnitude", torch.float32))

    def values(self, kind: Kind) -> Mapping[str, Tensor]:
        """See Trainable.values."""
        if not isinstance(kind, DoRA):
            raise CheckpointError(f"{self.path}: the checkpoint has a {kind.name} here, this run a dora")
        return {**super().values(kind.inner), "magnitude": kind.magnitude}


def _norms(weight: Tensor) -> Tensor:
    """The norm of every output row (out,), never zero."""
    return torch.linalg.vector_norm(weight.detach().float().flatten(1), dim=1) + _EPS


def _along_channels(values: Tensor, module: nn.Module) -> Tensor:
    """Values (out,) in the shape that multiplies the layer's output."""
    return values.view(-1, 1, 1) if isinstance(module, nn.Conv2d) else values
