"""DoRA: a low-rank change of the direction of a weight, with its length stored apart."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeAlias

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds.kind import Factors, Kind, LiveForm, ScaleOf
from difflora.kinds.loha import LoHa
from difflora.kinds.lokr import LoKr
from difflora.kinds.lora import LoRA
from difflora.kinds.parts import pristine

Inner: TypeAlias = LoRA | LoHa | LoKr
INNER: tuple[type[LoRA] | type[LoHa] | type[LoKr], ...] = (LoRA, LoHa, LoKr)
_EPS = torch.finfo(torch.float32).eps
_LEAF = "dora_scale"


@dataclass(frozen=True, slots=True, eq=False)
class DoRA(Kind):
    """W0 + ΔW = magnitude · M / (‖M‖ + eps), with M = W0 + inner.delta(W0) and eps that of float32.

    The shape of `magnitude` tells the axis: (out, 1[, 1, 1]) holds the norm of every output row over all the
    rest (PEFT; LyCORIS since 3.2), (1, in[, 1, 1]) that of every input column over (out, kh, kw) (LyCORIS
    before, OneTrainer). A 1 × 1 magnitude of a single output is of the first sort. PEFT's (out,) and, for
    convolutions, (1, out, 1, 1) are the first sort too: their reader reshapes them.

    Weight t means W0 + t · ΔW, as in ComfyUI and A1111. LyCORIS takes M · (t · (magnitude / ‖M‖ − 1) + 1)
    instead, which leaves the inner change at full strength when t is 0; at t = 1 they are the same.

    Raises AdapterError if the magnitude has another shape.
    Source: Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation".
    """

    name: ClassVar[str] = "dora"
    needs_weight: ClassVar[bool] = True

    inner: Inner
    magnitude: Tensor

    def __post_init__(self) -> None:
        shape, change = tuple(self.magnitude.shape), self.inner.extent
        of_rows = shape[:1] == change[:1] and set(shape[1:]) == {1}
        columns = self.magnitude.numel()
        per_column = len(shape) > 1 and shape[0] == 1 and set(shape[2:]) <= {1} and columns > 0
        flat = len(change) == 2  # (out, in·kh·kw): the number of columns is known by the layer alone
        per_column = per_column and (columns == change[1] or (flat and change[1] % columns == 0))
        if not (of_rows or per_column):
            raise AdapterError(
                f"{_LEAF} is {shape} on a change of {change}; expected ({change[0]}, 1) for output rows or "
                f"(1, {change[1]}) for input columns, with more ones for a convolution"
            )

    @property
    def on_output(self) -> bool:
        """Whether the magnitude is of output rows."""
        return self.magnitude.shape[0] == self.inner.extent[0]

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """dora_scale with all that the kind inside claims."""
        if _LEAF not in shapes:
            return frozenset()
        inside = (claimed for kind in INNER if (claimed := kind.claim(shapes)))
        return next(inside, frozenset()) | {_LEAF}

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """See Kind.from_leaves."""
        if _LEAF not in leaves:
            raise AdapterError(f"{_LEAF} missing")
        rest = {leaf: tensor for leaf, tensor in leaves.items() if leaf != _LEAF}
        shapes = {leaf: tuple(tensor.shape) for leaf, tensor in rest.items()}
        for kind in INNER:
            if kind.claim(shapes):
                return cls(kind.from_leaves(rest, scale), leaves[_LEAF])
        raise AdapterError(f"{_LEAF} without the factors of a LoRA, LoHa or LoKr")

    def to_leaves(self) -> Mapping[str, Tensor]:
        """The leaves of the kind inside, and dora_scale."""
        return {**self.inner.to_leaves(), _LEAF: self.magnitude}

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """ΔW in float32; see Kind.delta."""
        base = pristine(self, weight)
        change = self.inner.delta(base)
        gain = self._gain(base, change)
        return (gain - 1) * base + gain * change

    def _gain(self, base: Tensor, change: Tensor) -> Tensor:
        """magnitude / ‖M‖, with ones in the dimensions that it is the same for."""
        axis = 0 if self.on_output else 1
        others = [dim for dim in range(base.ndim) if dim != axis]
        norm = torch.linalg.vector_norm(base + change, dim=others, keepdim=True)
        return self.magnitude.to(base.device, torch.float32).reshape(norm.shape) / (norm + _EPS)

    def bias_delta(self, bias: Tensor | None = None) -> Tensor | None:
        """That of the kind inside."""
        return self.inner.bias_delta(bias)

    def live_form(self, weight: Tensor) -> LiveForm | None:
        """On the output axis a gain of g − 1 with the factors of the kind inside, up times g, where
        g = magnitude / ‖M‖; None on the input axis and where the kind inside has no factors."""
        factors = self.inner.factors()
        if factors is None or not self.on_output:
            return None
        base = pristine(self, weight)
        gain = self._gain(base, self.inner.delta(base)).flatten()
        up = factors.up.to(base.device, torch.float32)
        return LiveForm(
            gain - 1, Factors(factors.down, up * gain.view(-1, *[1] * (up.ndim - 1)), factors.scale)
        )

    def rows(self, start: int, stop: int) -> "DoRA | None":
        """On the output axis the rows of both parts; None on the input axis, whose norms need every row."""
        inner = self.inner.rows(start, stop) if self.on_output else None
        return (
            None
            if inner is None
            else replace(self, inner=inner, magnitude=self.magnitude[start:stop].clone())
        )

    def tensors(self) -> Mapping[str, Tensor]:
        """Those of the kind inside, and the magnitude."""
        return {**self.inner.tensors(), "magnitude": self.magnitude}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if it can be applied to a weight of `shape`."""
        if reason := self.inner.problem(shape):
            return reason
        if self.on_output or self.magnitude.numel() == shape[1]:
            return None
        return f"{_LEAF} is {tuple(self.magnitude.shape)}, but the layer's weight is {shape}"
