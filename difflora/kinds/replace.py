"""Replace: another weight in the place of the base's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from difflora.errors import AdapterError, NeedsBase
from difflora.kinds.kind import Kind, LiveForm, ScaleOf
from difflora.kinds.parts import fits, pristine


@dataclass(frozen=True, slots=True, eq=False)
class Replace(Kind):
    """ΔW = weight − W0 and Δbias = bias − bias0; either may be missing.

    Weight t means W0 + t · (weight − W0): 1 replaces, 0.5 is half way. ComfyUI ignores t and always replaces.

    Raises AdapterError if they disagree, or neither is there.
    Source: PEFT's `modules_to_save`, ComfyUI's `set_weight`.
    """

    name: ClassVar[str] = "replace"
    needs_weight: ClassVar[bool] = True

    weight: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        weight = None if self.weight is None else tuple(self.weight.shape)
        bias = None if self.bias is None else tuple(self.bias.shape)
        if weight is None and bias is None:
            raise AdapterError("neither set_weight nor set_bias is there; expected one of them or both")
        if weight == () or (weight is not None and 0 in weight):
            raise AdapterError(f"set_weight is {weight}; expected the shape of a weight")
        if bias is not None and (len(bias) != 1 or (weight is not None and bias != weight[:1])):
            raise AdapterError(f"set_weight is {weight} and set_bias is {bias}; expected (out,) for the bias")

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """set_weight and set_bias."""
        return frozenset({"set_weight", "set_bias"}) & shapes.keys()

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """See Kind.from_leaves; there is no scale."""
        return cls(leaves.get("set_weight"), leaves.get("set_bias"))

    def to_leaves(self) -> Mapping[str, Tensor]:
        """The tensors as they are."""
        named = {"set_weight": self.weight, "set_bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def rows(self, start: int, stop: int) -> "Replace":
        """Those rows of both."""
        weight, bias = (
            None if part is None else part[start:stop].clone() for part in (self.weight, self.bias)
        )
        return Replace(weight, bias)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """ΔW in float32; see Kind.delta."""
        base = pristine(self, weight)
        if self.weight is None:
            return torch.zeros_like(base)
        return self.weight.to(base.device, torch.float32).reshape(base.shape) - base

    def bias_delta(self, bias: Tensor | None = None) -> Tensor | None:
        """The new bias less `bias`, in float32; None if the bias stays.

        Raises NeedsBase if it is replaced and there is none to replace.
        """
        if self.bias is None:
            return None
        if bias is None:
            raise NeedsBase(
                "replace: the change of its bias is a function of the base's bias; give the base model"
            )
        return self.bias.to(bias.device, torch.float32) - bias.float()

    def live_form(self, weight: Tensor) -> LiveForm | None:
        """Nothing happens to the weight if only the bias is replaced; else None."""
        return LiveForm(None, None) if self.weight is None else None

    def tensors(self) -> Mapping[str, Tensor]:
        """weight and bias, those that there are."""
        named = {"weight": self.weight, "bias": self.bias}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if it can take the place of a weight of `shape`."""
        if self.weight is not None and not fits(tuple(self.weight.shape), shape):
            return f"set_weight is {tuple(self.weight.shape)}, but the layer's weight is {shape}"
        if self.bias is not None and tuple(self.bias.shape) != shape[:1]:
            return f"set_bias is {tuple(self.bias.shape)}, but the layer's weight is {shape}"
        return None
