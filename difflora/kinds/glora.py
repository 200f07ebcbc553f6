"""GLoRA: a low-rank change of what goes into the weight, and one of the weight."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Self

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds.kind import Factors, Kind, LiveForm, ScaleOf
from difflora.kinds.lora import LoRA
from difflora.kinds.parts import need, number, pristine, take

_LEAVES = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
_MID = "bm.weight"


@dataclass(frozen=True, slots=True, eq=False)
class GLoRA(Kind):
    """ΔW = scale · (W0 · (input_up @ input_down) + up @ down), W0 multiplied over its input channels.

    input_up (in, rank), input_down (rank, in), up (out, rank), down (rank, in); for a convolution all of four
    dimensions, of which down alone has the kernel, or `mid` (rank, rank, kh, kw) in Tucker form has it.
    scale = alpha / rank. Files have two layouts under the same names, told apart by shape: today a1, a2, b1,
    b2 are input_up, input_down, up, down; in 2023 a1, a2, b1, b2 were input_down, input_up, down, up. A
    square layer fits both; the smaller rank is then the right one, and today's where they are equal. It is
    written as today's.

    LyCORIS forgets rsLoRA in GLoRA files: the stored alpha is the plain one.

    Raises AdapterError if the factors fit neither layout.
    Source: Chavan et al. 2023, "One-for-All: Generalized LoRA"; this form is LyCORIS's.
    """

    name: ClassVar[str] = "glora"
    needs_weight: ClassVar[bool] = True

    input_down: Tensor
    input_up: Tensor
    down: Tensor
    up: Tensor
    scale: float
    mid: Tensor | None = None

    def __post_init__(self) -> None:
        inputs, added = self._inputs.extent, self._added.extent
        if prod(inputs[2:]) != 1 or inputs[0] != inputs[1]:
            raise AdapterError(f"its first pair makes {inputs}; expected a square matrix over the inputs")
        if inputs[0] != added[1] and not (len(added) == 2 and added[1] % inputs[0] == 0):
            raise AdapterError(f"its pairs are over {inputs[0]} and {added[1]} inputs; expected the same")

    @property
    def _inputs(self) -> LoRA:
        return LoRA(self.input_down, self.input_up, self.scale)

    @property
    def _added(self) -> LoRA:
        return LoRA(self.down, self.up, self.scale, self.mid)

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """a1, a2, b1, b2, bm and alpha."""
        return take(shapes, frozenset((*_LEAVES, _MID)), frozenset({"alpha"}))

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """See Kind.from_leaves; either layout."""
        a1, a2, b1, b2 = need(leaves, *_LEAVES)
        layouts = [(a1, a2, b1, b2), (a2, a1, b2, b1)]
        ranks = [_rank(*layout) for layout in layouts]
        fitting = [index for index, rank in enumerate(ranks) if rank is not None]
        if not fitting:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (a1, a2, b1, b2))
            raise AdapterError(
                f"a1, a2, b1, b2 are {shapes}; expected (in, rank), (rank, in), (out, rank), (rank, in), or "
                "each pair the other way round"
            )
        input_up, input_down, up, down = layouts[min(fitting, key=lambda index: ranks[index] or 0)]
        whole = cls(input_down, input_up, down, up, 1.0, leaves.get(_MID))
        return replace(whole, scale=scale(whole.rank))

    def to_leaves(self) -> Mapping[str, Tensor]:
        """The tensors in today's layout, alpha = scale · rank."""
        parts = (self.input_up, self.input_down, self.up, self.down)
        middle = {} if self.mid is None else {_MID: self.mid}
        alpha = number(self.scale * self.rank)
        return {**dict(zip(_LEAVES, parts, strict=True)), **middle, "alpha": alpha}

    @property
    def rank(self) -> int:
        """The number of rows of input_down; alpha is divided by it."""
        return self.input_down.shape[0]

    def times(self, weight: float) -> "GLoRA":
        """The same factors with another scale."""
        return replace(self, scale=self.scale * weight)

    def rows(self, start: int, stop: int) -> "GLoRA":
        """The rows of up; the change of the inputs is the same for every row."""
        return replace(self, up=self.up[start:stop].clone())

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """ΔW in float32; see Kind.delta."""
        base = pristine(self, weight)
        through = torch.einsum("oi...,ir->or...", base, self._input_up(base.device))
        down = self.input_down.to(base.device, torch.float32).flatten(1)
        moved = torch.einsum("or...,ri->oi...", through, down)
        return (moved * self.scale).add_(self._added.delta(base))

    def _input_up(self, device: torch.device) -> Tensor:
        return self.input_up.to(device, torch.float32).flatten(1)

    def live_form(self, weight: Tensor) -> LiveForm | None:
        """Both terms as one pair: down from both, up = [W0 · input_up, up]; None where W0 has a kernel."""
        base = pristine(self, weight)
        if prod(base.shape[2:]) != 1:
            return None
        through = base.flatten(1) @ self._input_up(base.device)
        up = torch.cat([through, self.up.to(base.device, torch.float32).flatten(1)], dim=1)
        added = self._added.factors().down.to(base.device, torch.float32).flatten(1)
        down = torch.cat([self.input_down.to(base.device, torch.float32).flatten(1), added])
        return LiveForm(None, Factors(down, up, self.scale))

    def tensors(self) -> Mapping[str, Tensor]:
        """The factors that there are, and the scale."""
        named = {"input_down": self.input_down, "input_up": self.input_up, "down": self.down, "up": self.up}
        middle = {} if self.mid is None else {"mid": self.mid}
        return {**named, **middle, "scale": number(self.scale)}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if it can be applied to a weight of `shape`."""
        if reason := self._added.problem(shape):
            return reason
        if self.input_up.shape[0] == shape[1]:
            return None
        return f"its first pair is over {self.input_up.shape[0]} inputs, but the layer's weight is {shape}"


def _rank(input_up: Tensor, input_down: Tensor, up: Tensor, down: Tensor) -> int | None:
    """The rank if these can be (in, rank), (rank, in), (out, rank), (rank, in ...); else None."""
    tensors = (input_up, input_down, up, down)
    if any(tensor.ndim not in (2, 4) for tensor in tensors):
        return None
    ranks = {input_up.shape[1], input_down.shape[0], up.shape[1], down.shape[0]}
    return ranks.pop() if len(ranks) == 1 and input_up.shape[0] == input_down.shape[1] else None
