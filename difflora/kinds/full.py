"""Full: the difference itself."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds.kind import Kind, ScaleOf
from difflora.kinds.parts import accepted, fits, need, take


@dataclass(frozen=True, slots=True, eq=False)
class Full(Kind):
    """ΔW = diff, in the shape of the weight; Δbias = bias (out,). There is no alpha.

    Raises AdapterError if the two disagree.
    Source: LyCORIS's `full`; ComfyUI writes norms so too.
    """

    name: ClassVar[str] = "full"
    needs_weight: ClassVar[bool] = False

    diff: Tensor
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.diff.shape)
        if not shape or 0 in shape:
            raise AdapterError(f"diff is {shape}; expected the shape of a weight")
        if self.bias is not None and tuple(self.bias.shape) != shape[:1]:
            raise AdapterError(
                f"diff is {shape}, but diff_b is {tuple(self.bias.shape)}; expected {shape[:1]}"
            )

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """diff with diff_b; a diff_b alone is a Bias."""
        return take(shapes, frozenset({"diff"}), frozenset({"diff_b"}))

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """See Kind.from_leaves; there is no scale."""
        (diff,) = need(leaves, "diff")
        return cls(diff, leaves.get("diff_b"))

    def to_leaves(self) -> Mapping[str, Tensor]:
        """The tensors as they are."""
        return {"diff": self.diff} if self.bias is None else {"diff": self.diff, "diff_b": self.bias}

    def times(self, weight: float) -> "Full":
        """Both multiplied, in float32."""
        bias = None if self.bias is None else self.bias.float() * weight
        return replace(self, diff=self.diff.float() * weight, bias=bias)

    def rows(self, start: int, stop: int) -> "Full":
        """Those rows of both."""
        bias = None if self.bias is None else self.bias[start:stop].clone()
        return replace(self, diff=self.diff[start:stop].clone(), bias=bias)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """A copy of diff in float32; see Kind.delta."""
        if weight is None:
            return self.diff.to(torch.float32, copy=True).reshape(self.diff.shape[0], -1)
        device = accepted(self, weight).device
        return self.diff.to(device, torch.float32, copy=True).reshape(weight.shape)

    def bias_delta(self, bias: Tensor | None = None) -> Tensor | None:
        """A copy of the change of the bias in float32, if there is one."""
        if self.bias is None:
            return None
        return self.bias.to(self.bias.device if bias is None else bias.device, torch.float32, copy=True)

    def tensors(self) -> Mapping[str, Tensor]:
        """diff, and bias if there is one."""
        return {"diff": self.diff} if self.bias is None else {"diff": self.diff, "bias": self.bias}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if ΔW can be added to a weight of `shape`."""
        if fits(tuple(self.diff.shape), shape):
            return None
        return f"diff is {tuple(self.diff.shape)}, but the layer's weight is {shape}"
