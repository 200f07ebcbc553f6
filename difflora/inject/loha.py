"""Trainable LoHa."""

from collections.abc import Mapping

import torch
from torch import Tensor

from difflora.errors import CheckpointError
from difflora.inject.trainable import Dense, Layer
from difflora.kinds import Kind, LoHa

_NAMES = ("w1_a", "w1_b", "w2_a", "w2_b")


class TrainedLoHa(Dense):
    """wX_a (out, rank) and wX_b (rank, in·kh·kw): normal numbers, a tenth of them in w1_a, and w2_a zero.

    Source of the start: LyCORIS (Yeh et al. 2023).
    """

    @staticmethod
    def start(layer: Layer) -> dict[str, Tensor]:
        """See Trainable.start."""
        out, columns, rank = layer.shape[0], layer.columns, layer.rank
        return {
            "w1_a": layer.normal("w1_a", (out, rank)) * 0.1,
            "w1_b": layer.normal("w1_b", (rank, columns)),
            "w2_a": torch.zeros(out, rank),
            "w2_b": layer.normal("w2_b", (rank, columns)),
        }

    def delta(self) -> Tensor:
        """See Dense.delta."""
        factors = [self.parameters[name] for name in _NAMES]
        return _Hadamard.apply(*factors, self.layer.scale).view(self.layer.shape)  # pyright: ignore

    def kind(self, dtype: torch.dtype) -> LoHa:
        """See Trainable.kind."""
        w1_a, w1_b, w2_a, w2_b = (self.copy(name, dtype) for name in _NAMES)
        return LoHa(w1_a, w1_b, w2_a, w2_b, self.layer.scale)

    def values(self, kind: Kind) -> Mapping[str, Tensor]:
        """See Trainable.values."""
        if not isinstance(kind, LoHa):
            raise CheckpointError(f"{self.path}: the checkpoint has a {kind.name} here, this run a loha")
        return kind.tensors()


class _Hadamard(torch.autograd.Function):
    """scale · (w1_a w1_b) ∘ (w2_a w2_b): keeps the factors alone, and multiplies them again in the backward
    pass."""

    @staticmethod
    def forward(ctx, w1_a, w1_b, w2_a, w2_b, scale):  # type: ignore[override]
        ctx.save_for_backward(w1_a, w1_b, w2_a, w2_b)
        ctx.scale = scale
        return (w1_a @ w1_b).mul_(w2_a @ w2_b).mul_(scale)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        grad = grad * ctx.scale
        first = grad * (w2_a @ w2_b)
        second = grad.mul_(w1_a @ w1_b)
        return first @ w1_b.T, w1_a.T @ first, second @ w2_b.T, w2_a.T @ second, None
