"""Trainable LoKr."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from difflora.apply import Forward
from difflora.errors import CheckpointError
from difflora.inject.trainable import Layer, Trainable
from difflora.kinds import Kind, LoKr


class TrainedLoKr(Trainable):
    """w1 (o1, i1) in full, random at first; w2 (o2, i2[, kh, kw]) in full and zero, or, where the rank is
    less than half its size, w2_a (o2, rank), random, times w2_b (rank, i2·kh·kw), zero.

    Source of the start and of the rule: LyCORIS (Yeh et al. 2023).
    """

    @staticmethod
    def start(layer: Layer) -> dict[str, Tensor]:
        """See Trainable.start."""
        (o1, o2), (i1, i2) = (_split(size, layer.lokr_factor) for size in layer.shape[:2])
        kernel = layer.shape[2:]
        w1 = layer.uniform("w1", (o1, i1))
        if layer.rank >= max(o2, i2) / 2:
            return {"w1": w1, "w2": torch.zeros(o2, i2, *kernel)}
        w2_a = layer.uniform("w2_a", (o2, layer.rank))
        return {"w1": w1, "w2_a": w2_a, "w2_b": torch.zeros(layer.rank, i2 * math.prod(kernel))}

    @property
    def scale(self) -> float:
        """That of the options; 1 where both sides are full, for files have no place for it then."""
        return 1.0 if "w2" in self.parameters else self.layer.scale

    def _right(self) -> Tensor:
        """w2 in the shape of a layer's weight, with the scale."""
        if "w2" in self.parameters:
            return self.parameters["w2"]
        w2 = (self.parameters["w2_a"] * self.scale) @ self.parameters["w2_b"]
        kernel = self.layer.shape[2:]
        return w2.view(w2.shape[0], -1, *kernel)

    def forward(self) -> Forward:
        """x (w1 ⊗ w2)ᵀ by the two sides, one after the other: the product itself is never formed."""
        base = self.layer.module.forward
        act = self._linear if isinstance(self.layer.module, nn.Linear) else self._convolution
        return lambda x: base(x) + act(x, self.parameters["w1"].to(x.dtype), self._right().to(x.dtype))

    def _linear(self, x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        blocks = F.linear(x.unflatten(-1, (w1.shape[1], w2.shape[1])), w2)  # (..., i1, o2)
        return (w1 @ blocks).flatten(-2)

    def _convolution(self, x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
        blocks = self.layer.compute(x.reshape(-1, w2.shape[1], *x.shape[2:]), w2)  # (batch · i1, o2, h, w)
        height, width = blocks.shape[2:]
        mixed = w1 @ blocks.view(x.shape[0], w1.shape[1], -1)
        return mixed.view(x.shape[0], -1, height, width)

    def kind(self, dtype: torch.dtype) -> LoKr:
        """See Trainable.kind."""
        copies = {name: self.copy(name, dtype) for name in self.parameters}
        return LoKr(
            scale=self.scale,
            w1=copies["w1"],
            w2=copies.get("w2"),
            w2_a=copies.get("w2_a"),
            w2_b=copies.get("w2_b"),
        )

    def values(self, kind: Kind) -> Mapping[str, Tensor]:
        """See Trainable.values."""
        if not isinstance(kind, LoKr) or not set(self.parameters) <= set(kind.tensors()):
            theirs, mine = ", ".join(kind.tensors()), ", ".join(self.parameters)
            raise CheckpointError(
                f"{self.path}: the checkpoint has a {kind.name} here of {theirs}, this run a lokr of {mine}"
            )
        return kind.tensors()


def _split(size: int, factor: int | None) -> tuple[int, int]:
    """Two divisors of a size: the first the largest one up to `factor`, or up to its root, the second the
    rest."""
    limit = math.isqrt(size) if factor is None else min(factor, size)
    first = max(divisor for divisor in range(1, limit + 1) if size % divisor == 0)
    return first, size // first
