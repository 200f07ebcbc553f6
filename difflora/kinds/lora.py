"""LoRA for Linear, 1×1 and k×k convolution layers (the latter also called LoCon)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds.kind import Factors, Kind, ScaleOf


@dataclass(frozen=True, slots=True, eq=False)
class LoRA(Kind):
    """ΔW = scale · up @ down, both factors flattened to two dimensions.

    down (rank, in) or (rank, in, kh, kw); up (out, rank) or (out, rank, 1, 1); scale = alpha / rank, or
    alpha / sqrt(rank) for rsLoRA. The factors keep the dtype they came in; ΔW is computed in float32.

    Raises AdapterError if the ranks differ or a factor has a shape that no layer has.
    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; the convolution form is
    LyCORIS's LoCon (Yeh et al. 2023).
    """

    name: ClassVar[str] = "lora"
    needs_weight: ClassVar[bool] = False

    down: Tensor
    up: Tensor
    scale: float

    def __post_init__(self) -> None:
        down, up = tuple(self.down.shape), tuple(self.up.shape)
        if len(down) not in (2, 4) or len(up) not in (2, 4):
            raise AdapterError(
                f"down is {down} and up is {up}; expected 2 dimensions (linear) or 4 (convolution)"
            )
        if len(up) == 4 and up[2:] != (1, 1):
            raise AdapterError(f"up is {up}; expected (out, rank, 1, 1)")
        if down[0] != up[1]:
            raise AdapterError(f"down is {down} of rank {down[0]}, but up is {up} of rank {up[1]}")
        if down[0] == 0:
            raise AdapterError(f"down is {down}: rank 0 changes nothing")

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """down and up, and their alpha."""
        found = frozenset(shapes) & {"lora_down.weight", "lora_up.weight"}
        return found | (frozenset(shapes) & {"alpha"}) if found else found

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """See Kind.from_leaves."""
        missing = [leaf for leaf in ("lora_down.weight", "lora_up.weight") if leaf not in leaves]
        if missing:
            raise AdapterError(f"{' and '.join(missing)} missing")
        down, up = leaves["lora_down.weight"], leaves["lora_up.weight"]
        return cls(down, up, scale(down.shape[0]))

    def to_leaves(self) -> Mapping[str, Tensor]:
        """down and up as they are, alpha = scale · rank."""
        alpha = torch.tensor(self.scale * self.rank, dtype=torch.float32)
        return {"lora_down.weight": self.down, "lora_up.weight": self.up, "alpha": alpha}

    def times(self, weight: float) -> "LoRA":
        """The same factors with another scale."""
        return replace(self, scale=self.scale * weight)

    def rows(self, start: int, stop: int) -> "LoRA":
        """The rows of up."""
        return replace(self, up=self.up[start:stop].clone())

    @property
    def rank(self) -> int:
        """The number of rank-one terms."""
        return self.down.shape[0]

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """ΔW in float32; see Kind.delta. Raises AdapterError if `weight` has another shape."""
        if weight is None:
            return self._flat_delta(self.up.device)
        if reason := self.problem(tuple(weight.shape)):
            raise AdapterError(reason)
        return self._flat_delta(weight.device).reshape(weight.shape)

    def _flat_delta(self, device: torch.device) -> Tensor:
        up, down = self.up.to(device, torch.float32), self.down.to(device, torch.float32)
        return (up.flatten(1) @ down.flatten(1)).mul_(self.scale)

    def factors(self) -> Factors:
        """The factors themselves."""
        return Factors(self.down, self.up, self.scale)

    def tensors(self) -> Mapping[str, Tensor]:
        """down, up and the scale."""
        return {"down": self.down, "up": self.up, "scale": torch.tensor(self.scale, dtype=torch.float32)}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if ΔW can be added to a weight of `shape`.

        A 2-D pair fits a 1×1 convolution and the other way round: files in the wild hold both for the same
        layer.
        """
        out, rest = self.up.shape[0], self.down.shape[1:]
        columns = rest.numel()
        fits = len(shape) >= 2 and shape[0] == out and torch.Size(shape[1:]).numel() == columns
        if fits and len(shape) == 4 and len(rest) == 3:
            fits = tuple(rest) == tuple(shape[1:])
        if fits:
            return None
        factors = f"down is {tuple(self.down.shape)} and up is {tuple(self.up.shape)}"
        return f"{factors}, but the layer's weight is {shape}"
