"""Bias: a change of the bias alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds.kind import Kind, LiveForm, ScaleOf
from difflora.kinds.parts import accepted, need


@dataclass(frozen=True, slots=True, eq=False)
class Bias(Kind):
    """Δbias = bias (out,), ΔW = 0. There is no alpha: the bias of a LoRA, which has one, is a part of LoRA.

    Without a base weight `delta` is (out, 1) zeros, since nothing says how wide the layer is.

    Raises AdapterError if the bias is no vector.
    Source: ComfyUI's and LyCORIS's `diff_b`.
    """

    name: ClassVar[str] = "bias"
    needs_weight: ClassVar[bool] = False

    bias: Tensor

    def __post_init__(self) -> None:
        if self.bias.ndim != 1 or self.bias.numel() == 0:
            raise AdapterError(f"diff_b is {tuple(self.bias.shape)}; expected (out,)")

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """diff_b where there is no diff."""
        return frozenset({"diff_b"} if "diff_b" in shapes and "diff" not in shapes else ())

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """See Kind.from_leaves; there is no scale."""
        return cls(*need(leaves, "diff_b"))

    def to_leaves(self) -> Mapping[str, Tensor]:
        """The bias as it is."""
        return {"diff_b": self.bias}

    def times(self, weight: float) -> "Bias":
        """The bias multiplied, in float32."""
        return Bias(self.bias.float() * weight)

    def rows(self, start: int, stop: int) -> "Bias":
        """Those rows of the bias."""
        return Bias(self.bias[start:stop].clone())

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """Zeros; see Kind.delta."""
        if weight is None:
            return torch.zeros(self.bias.shape[0], 1, device=self.bias.device)
        return torch.zeros_like(accepted(self, weight), dtype=torch.float32)

    def bias_delta(self, bias: Tensor | None = None) -> Tensor:
        """A copy of the bias in float32."""
        return self.bias.to(self.bias.device if bias is None else bias.device, torch.float32, copy=True)

    def live_form(self, weight: Tensor) -> LiveForm:
        """Nothing happens to the weight."""
        return LiveForm(None, None)

    def tensors(self) -> Mapping[str, Tensor]:
        """The bias."""
        return {"bias": self.bias}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if a layer with a weight of `shape` can have this bias."""
        if shape[:1] == tuple(self.bias.shape):
            return None
        return f"diff_b is {tuple(self.bias.shape)}, but the layer's weight is {shape}"
