"""LoRA for Linear, 1×1 and k×k convolution layers (LoCon), also in Tucker form."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds.kind import Factors, Kind, ScaleOf
from difflora.kinds.parts import accepted, fits, mix, need, number, take

_DOWN, _UP, _MID, _BIAS = "lora_down.weight", "lora_up.weight", "lora_mid.weight", "lora_up.bias"


@dataclass(frozen=True, slots=True, eq=False)
class LoRA(Kind):
    """ΔW = scale · up @ down, both factors flattened to two dimensions; Δbias = scale · bias.

    down (rank, in) or (rank, in, kh, kw); up (out, rank) or (out, rank, 1, 1); scale = alpha / rank, or
    alpha / sqrt(rank) for rsLoRA. In Tucker form down is (rank, in, 1, 1) and `mid` (rank, rank, kh, kw) is
    between them: ΔW = scale · Σ_ij mid[i, j] · up[:, i] ⊗ down[j]. `bias` (out,) is the bias of the up layer.
    `gains` (rank,) float32 stand between up and down as a diagonal: what a sum in half precision has weighted
    without rounding. Files have no place for them; there they are multiplied into up, which is then float32.
    The tensors keep the dtype they came in; ΔW is computed in float32.

    Raises AdapterError if the ranks differ or a factor has a shape that no layer has.
    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models"; the convolution and Tucker
    forms are LyCORIS's LoCon (Yeh et al. 2023), the bias is PEFT's `lora_bias`. DyLoRA files are LoRA files
    whose up factor may be flat beside a convolution.
    """

    name: ClassVar[str] = "lora"
    needs_weight: ClassVar[bool] = False

    down: Tensor
    up: Tensor
    scale: float
    mid: Tensor | None = None
    bias: Tensor | None = None
    gains: Tensor | None = None

    def __post_init__(self) -> None:
        down, up = tuple(self.down.shape), tuple(self.up.shape)
        if len(down) not in (2, 4) or len(up) not in (2, 4):
            raise AdapterError(
                f"down is {down} and up is {up}; expected 2 dimensions (linear) or 4 (convolution)"
            )
        if len(up) == 4 and up[2:] != (1, 1):
            raise AdapterError(f"up is {up}; expected (out, rank, 1, 1)")
        if self.mid is not None:
            self._check_mid(tuple(self.mid.shape))
        elif down[0] != up[1]:
            raise AdapterError(f"down is {down} of rank {down[0]}, but up is {up} of rank {up[1]}")
        if down[0] == 0:
            raise AdapterError(f"down is {down}: rank 0 changes nothing")
        if self.bias is not None and tuple(self.bias.shape) != up[:1]:
            raise AdapterError(f"its bias is {tuple(self.bias.shape)}, but up is {up}; expected {up[:1]}")
        if self.gains is not None and tuple(self.gains.shape) != up[1:2]:
            raise AdapterError(f"its gains are {tuple(self.gains.shape)}, but up is {up}; expected {up[1:2]}")

    def _check_mid(self, mid: tuple[int, ...]) -> None:
        down, up = tuple(self.down.shape), tuple(self.up.shape)
        if len(mid) != 4 or mid[:2] != (up[1], down[0]):
            raise AdapterError(
                f"mid is {mid} between up {up} and down {down}; expected ({up[1]}, {down[0]}, kh, kw)"
            )
        if len(down) == 4 and down[2:] != (1, 1):
            raise AdapterError(
                f"down is {down} beside mid {mid}; expected (rank, in, 1, 1): mid is the kernel"
            )

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """down and up with mid, the bias of up, and alpha."""
        return take(shapes, frozenset({_DOWN, _UP, _MID, _BIAS}), frozenset({"alpha"}))

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """See Kind.from_leaves. A flat factor beside one of 4 dimensions becomes a 1×1 convolution."""
        down, up = need(leaves, _DOWN, _UP)
        if down.ndim == 4 and up.ndim == 2:
            up = up[:, :, None, None]
        elif down.ndim == 2 and up.ndim == 4:
            down = down[:, :, None, None]
        whole = cls(down, up, 1.0, leaves.get(_MID), leaves.get(_BIAS))
        return replace(whole, scale=scale(whole.rank))

    def to_leaves(self) -> Mapping[str, Tensor]:
        """The tensors as they are, alpha = scale · rank."""
        leaves = {_DOWN: self.down, _UP: self.folded().up, "alpha": number(self.scale * self.rank)}
        if self.mid is not None:
            leaves[_MID] = self.mid
        if self.bias is not None:
            leaves[_BIAS] = self.bias
        return leaves

    def times(self, weight: float) -> "LoRA":
        """The same factors with another scale."""
        return replace(self, scale=self.scale * weight)

    def folded(self) -> "LoRA":
        """The same change without gains: they are in up."""
        if self.gains is None:
            return self
        gains = self.gains.to(self.up.device, torch.float32)
        return replace(self, up=self.up * gains.view(1, -1, *[1] * (self.up.ndim - 2)), gains=None)

    def rows(self, start: int, stop: int) -> "LoRA":
        """The rows of up and of its bias."""
        bias = None if self.bias is None else self.bias[start:stop].clone()
        return replace(self, up=self.up[start:stop].clone(), bias=bias)

    @property
    def rank(self) -> int:
        """The number of rows of down; alpha is divided by it."""
        return self.down.shape[0]

    @property
    def extent(self) -> tuple[int, ...]:
        """(out, in) or (out, in, kh, kw)."""
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """ΔW in float32; see Kind.delta. Raises AdapterError if `weight` has another shape."""
        if weight is None:
            return self._flat_delta(self.up.device)
        return self._flat_delta(accepted(self, weight).device).reshape(weight.shape)

    def _flat_delta(self, device: torch.device) -> Tensor:
        up = self.folded().up.to(device, torch.float32)
        return (up.flatten(1) @ self._kernels(device).flatten(1)).mul_(self.scale)

    def _kernels(self, device: torch.device) -> Tensor:
        """down in float32, with mid in it."""
        down = self.down.to(device, torch.float32)
        return down if self.mid is None else mix(self.mid.to(device, torch.float32), down.flatten(1))

    def bias_delta(self, bias: Tensor | None = None) -> Tensor | None:
        """scale · bias; None if up has none."""
        if self.bias is None:
            return None
        device = self.bias.device if bias is None else bias.device
        return self.bias.to(device, torch.float32) * self.scale

    def factors(self) -> Factors:
        """The factors themselves, with gains in up; in Tucker form down and mid are multiplied in float32."""
        down = self.down if self.mid is None else self._kernels(self.down.device)
        return Factors(down, self.folded().up, self.scale)

    def tensors(self) -> Mapping[str, Tensor]:
        """The factors that there are, and the scale."""
        named = {"down": self.down, "up": self.up, "mid": self.mid, "bias": self.bias, "gains": self.gains}
        present = {name: tensor for name, tensor in named.items() if tensor is not None}
        return {**present, "scale": number(self.scale)}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if ΔW can be added to a weight of `shape`.

        A 2-D pair fits a 1×1 convolution and the other way round: files in the wild hold both for the same
        layer.
        """
        if fits(self.extent, shape):
            return None
        mid = "" if self.mid is None else f", mid is {tuple(self.mid.shape)}"
        factors = f"down is {tuple(self.down.shape)}{mid} and up is {tuple(self.up.shape)}"
        return f"{factors}, but the layer's weight is {shape}"
