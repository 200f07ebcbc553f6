"""Norm: the difference of a norm layer's weight and bias."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds.kind import Kind, ScaleOf
from difflora.kinds.parts import accepted


@dataclass(frozen=True, slots=True, eq=False)
class Norm(Kind):
    """ΔW = weight and Δbias = bias of a LayerNorm or GroupNorm, both (channels,); either may be missing.

    There is no alpha. Without a base weight `delta` is (channels, 1).

    Raises AdapterError if they disagree, or neither is there.
    Source: LyCORIS's `norm`.
    """

    name: ClassVar[str] = "norm"
    needs_weight: ClassVar[bool] = False

    weight: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = [tuple(part.shape) for part in (self.weight, self.bias) if part is not None]
        if not shapes or any(len(shape) != 1 or shape != shapes[0] or 0 in shape for shape in shapes):
            found = " and ".join(map(str, shapes)) or "nothing"
            raise AdapterError(f"w_norm and b_norm are {found}; expected (channels,) of one length")

    @property
    def _tensor(self) -> Tensor:
        tensor = self.bias if self.weight is None else self.weight
        assert tensor is not None
        return tensor

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """w_norm and b_norm."""
        return frozenset({"w_norm", "b_norm"}) & shapes.keys()

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """See Kind.from_leaves; there is no scale."""
        return cls(leaves.get("w_norm"), leaves.get("b_norm"))

    def to_leaves(self) -> Mapping[str, Tensor]:
        """The tensors as they are."""
        named = {"w_norm": self.weight, "b_norm": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def times(self, weight: float) -> "Norm":
        """Both multiplied, in float32."""
        scaled = (None if part is None else part.float() * weight for part in (self.weight, self.bias))
        return Norm(*scaled)

    def rows(self, start: int, stop: int) -> "Norm":
        """Those channels of both."""
        cut = (None if part is None else part[start:stop].clone() for part in (self.weight, self.bias))
        return replace(self, **dict(zip(("weight", "bias"), cut, strict=True)))

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """A copy of the change in float32, zeros if only the bias changes; see Kind.delta."""
        own = torch.zeros_like(self._tensor) if self.weight is None else self.weight
        if weight is None:
            return own.to(torch.float32, copy=True)[:, None]
        return own.to(accepted(self, weight).device, torch.float32, copy=True)

    def bias_delta(self, bias: Tensor | None = None) -> Tensor | None:
        """A copy of the change of the bias in float32, if there is one."""
        if self.bias is None:
            return None
        return self.bias.to(self.bias.device if bias is None else bias.device, torch.float32, copy=True)

    def tensors(self) -> Mapping[str, Tensor]:
        """weight and bias, those that there are."""
        named = {"weight": self.weight, "bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if it can be added to a norm weight of `shape`."""
        own = tuple(self._tensor.shape)
        return None if own == shape else f"it is of a norm of {own}, but the layer's weight is {shape}"
