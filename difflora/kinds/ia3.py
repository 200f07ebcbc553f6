"""(IA)³: a gain for every output or every input channel."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds.kind import Kind, LiveForm, ScaleOf
from difflora.kinds.parts import need, number, pristine, read_number

_LEAVES = ("weight", "on_input")


@dataclass(frozen=True, slots=True, eq=False)
class IA3(Kind):
    """ΔW = gain ∘ W0 along the output axis, or along the input axis if `on_input`.

    gain (channels,), or (1, channels, 1, 1) for a convolution as files have it; 0 changes nothing. There is
    no alpha. PEFT stores 1 + gain: its reader takes 1 off.

    Raises AdapterError if the gain is no vector.
    Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
    Learning"; this form is LyCORIS's.
    """

    name: ClassVar[str] = "ia3"
    needs_weight: ClassVar[bool] = True

    gain: Tensor
    on_input: bool

    def __post_init__(self) -> None:
        shape = tuple(self.gain.shape)
        if not shape or self.gain.numel() == 0 or max(shape) != self.gain.numel():
            raise AdapterError(f"weight is {shape}; expected (channels,) or (1, channels, 1, 1)")

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """weight and on_input; a weight alone is no IA3, whatever else it may be."""
        return frozenset(_LEAVES) & shapes.keys() if "on_input" in shapes else frozenset()

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """See Kind.from_leaves; there is no scale."""
        gain, on_input = need(leaves, *_LEAVES)
        value = read_number("on_input", on_input)
        if value not in (0.0, 1.0):
            raise AdapterError(f"on_input is {value}; expected 0 or 1")
        return cls(gain, value == 1.0)

    def to_leaves(self) -> Mapping[str, Tensor]:
        """The gain as it is, and on_input as 0 or 1."""
        return {"weight": self.gain, "on_input": number(float(self.on_input))}

    def times(self, weight: float) -> "IA3":
        """The gain multiplied, in float32."""
        return replace(self, gain=self.gain.float() * weight)

    def rows(self, start: int, stop: int) -> "IA3":
        """The gains of those rows; on the input axis every row has the same."""
        return self if self.on_input else replace(self, gain=self.gain.flatten()[start:stop].clone())

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """ΔW in float32; see Kind.delta."""
        base = pristine(self, weight)
        ones = [1] * (base.ndim - 2)
        gain = self.gain.to(base.device, base.dtype)
        return base * (gain.reshape(1, -1, *ones) if self.on_input else gain.reshape(-1, 1, *ones))

    def live_form(self, weight: Tensor) -> LiveForm | None:
        """The gain; None on the input axis."""
        return None if self.on_input else LiveForm(self.gain.to(weight.device).float().flatten(), None)

    def tensors(self) -> Mapping[str, Tensor]:
        """The gain and the axis."""
        return {"gain": self.gain, "on_input": number(float(self.on_input))}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if it can be applied to a weight of `shape`."""
        axis = 1 if self.on_input else 0
        if len(shape) >= 2 and shape[axis] == self.gain.numel():
            return None
        side = "input" if self.on_input else "output"
        return f"its gains are of {self.gain.numel()} {side} channels, but the layer's weight is {shape}"
