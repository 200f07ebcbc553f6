"""LoHa: the elementwise product of two low-rank matrices."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Self

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds.kind import Factors, Kind, ScaleOf
from difflora.kinds.parts import accepted, fits, mix, need, number, take, worth

_FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_TUCKER = ("hada_t1", "hada_t2")


@dataclass(frozen=True, slots=True, eq=False)
class LoHa(Kind):
    """ΔW = scale · (w1_a @ w1_b) ∘ (w2_a @ w2_b).

    wX_a (out, rank), wX_b (rank, in) or, for a convolution, (rank, in·kh·kw); scale = alpha / rank. In Tucker
    form tX (rank, rank, kh, kw) stands between them, wX_b is (rank, in) and wX_a, as files have it,
    (rank, out): each half is Σ_ij tX[i, j] · wX_a[i] ⊗ wX_b[j].

    LyCORIS's `merge_to` multiplies alpha / rank in twice; its forward, and this, once.

    Raises AdapterError if the factors disagree.
    Source: Hyeon-Woo et al. 2022, "FedPara"; as LoHa in LyCORIS (Yeh et al. 2023).
    """

    name: ClassVar[str] = "loha"
    needs_weight: ClassVar[bool] = False

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    scale: float
    t1: Tensor | None = None
    t2: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.t1 is None) != (self.t2 is None):
            raise AdapterError("only one of hada_t1 and hada_t2 is there; expected both (Tucker) or none")
        halves = (("1", self.w1_a, self.w1_b, self.t1), ("2", self.w2_a, self.w2_b, self.t2))
        for which, a, b, mid in halves:
            _check_half(which, a, b, mid)
        one, two = (_extent(*half[1:]) for half in halves)
        if one != two:
            raise AdapterError(f"its halves are {one} and {two}; expected the same shape")

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """The hada_ leaves and alpha."""
        return take(shapes, frozenset((*_FACTORS, *_TUCKER)), frozenset({"alpha"}))

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """See Kind.from_leaves; alpha counts over the rows of hada_w1_b."""
        w1_a, w1_b, w2_a, w2_b = need(leaves, *_FACTORS)
        whole = cls(w1_a, w1_b, w2_a, w2_b, 1.0, *(leaves.get(name) for name in _TUCKER))
        return replace(whole, scale=scale(whole.rank))

    def to_leaves(self) -> Mapping[str, Tensor]:
        """The tensors as they are, alpha = scale · rank."""
        tensors = {f"hada_{name}": tensor for name, tensor in self.tensors().items() if name != "scale"}
        return {**tensors, "alpha": number(self.scale * self.rank)}

    @property
    def rank(self) -> int:
        """The rank of the first half; alpha is divided by it."""
        return self.w1_b.shape[0]

    @property
    def extent(self) -> tuple[int, ...]:
        """(out, in·kh·kw), or (out, in, kh, kw) in Tucker form."""
        return _extent(self.w1_a, self.w1_b, self.t1)

    def times(self, weight: float) -> "LoHa":
        """The same factors with another scale."""
        return replace(self, scale=self.scale * weight)

    def rows(self, start: int, stop: int) -> "LoHa":
        """The rows of both halves."""
        if self.t1 is None:
            return replace(self, w1_a=self.w1_a[start:stop].clone(), w2_a=self.w2_a[start:stop].clone())
        return replace(self, w1_a=self.w1_a[:, start:stop].clone(), w2_a=self.w2_a[:, start:stop].clone())

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """ΔW in float32; see Kind.delta."""
        device = self.w1_a.device if weight is None else accepted(self, weight).device
        up1, down1 = _pair(self.w1_a, self.w1_b, self.t1, device)
        up2, down2 = _pair(self.w2_a, self.w2_b, self.t2, device)
        flat = (up1 @ down1) * (up2 @ down2) * self.scale
        return flat if weight is None else flat.reshape(weight.shape)

    def factors(self) -> Factors | None:
        """Rank rank1 · rank2: every column of one half times every column of the other, in float32.

        None where those factors would be no smaller than ΔW.
        """
        out, *rest = self.extent
        rank1, rank2 = (_rank(a, mid) for a, mid in ((self.w1_a, self.t1), (self.w2_a, self.t2)))
        if not worth(rank1 * rank2, out, prod(rest)):
            return None
        up1, down1 = _pair(self.w1_a, self.w1_b, self.t1, self.w1_a.device)
        up2, down2 = _pair(self.w2_a, self.w2_b, self.t2, self.w1_a.device)
        up = (up1[:, :, None] * up2[:, None, :]).flatten(1)
        down = (down1[:, None, :] * down2[None, :, :]).flatten(0, 1)
        return Factors(down, up, self.scale)

    def tensors(self) -> Mapping[str, Tensor]:
        """The factors that there are, and the scale."""
        named = {"w1_a": self.w1_a, "w1_b": self.w1_b, "w2_a": self.w2_a, "w2_b": self.w2_b}
        middle = {"t1": self.t1, "t2": self.t2}
        present = {name: tensor for name, tensor in middle.items() if tensor is not None}
        return {**named, **present, "scale": number(self.scale)}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if ΔW can be added to a weight of `shape`."""
        if fits(self.extent, shape):
            return None
        return f"its factors make a change of {self.extent}, but the layer's weight is {shape}"


def _check_half(which: str, a: Tensor, b: Tensor, mid: Tensor | None) -> None:
    shapes = f"hada_w{which}_a is {tuple(a.shape)} and hada_w{which}_b is {tuple(b.shape)}"
    if a.ndim != 2 or b.ndim != 2:
        raise AdapterError(f"{shapes}; expected 2 dimensions")
    if b.shape[0] == 0:
        raise AdapterError(f"{shapes}: rank 0 changes nothing")
    if mid is None and a.shape[1] != b.shape[0]:
        raise AdapterError(f"{shapes}; expected (out, rank) and (rank, in) of one rank")
    if mid is not None and (mid.ndim != 4 or mid.shape[:2] != (a.shape[0], b.shape[0])):
        raise AdapterError(
            f"hada_t{which} is {tuple(mid.shape)}, {shapes}; expected (rank, rank, kh, kw), (rank, out), "
            "(rank, in)"
        )


def _extent(a: Tensor, b: Tensor, mid: Tensor | None) -> tuple[int, ...]:
    return (a.shape[0], b.shape[1]) if mid is None else (a.shape[1], b.shape[1], *mid.shape[2:])


def _rank(a: Tensor, mid: Tensor | None) -> int:
    return a.shape[1] if mid is None else a.shape[0]


def _pair(a: Tensor, b: Tensor, mid: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """One half as up (out, rank) and down (rank, rest), in float32."""
    a, b = a.to(device, torch.float32), b.to(device, torch.float32)
    if mid is None:
        return a, b
    return a.T, mix(mid.to(device, torch.float32), b).flatten(1)
