"""LoKr: a Kronecker product, either side full or decomposed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Self

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.kinds.kind import Factors, Kind, ScaleOf
from difflora.kinds.parts import accepted, fits, mix, number, take, worth

_NAMES = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LoKr(Kind):
    """ΔW = scale · w1 ⊗ w2, of (o1, i1) and (o2, i2) or (o2, i2, kh, kw): out = o1·o2, in = i1·i2.

    Each side is full, or a product: w1 = w1_a (o1, rank) @ w1_b (rank, i1), w2 = w2_a (o2, rank) @ w2_b
    (rank, i2) or (rank, i2·kh·kw); in Tucker form t2 (rank, rank, kh, kw) stands between w2_b (rank, i2) and
    w2_a, as files have it, (rank, o2). scale = alpha / rank, with the rank of w2_b, else of w1_b; 1 if both
    sides are full, whatever alpha says.

    LyCORIS's `merge_to` multiplies alpha / rank in twice; its forward, and this, once. PEFT multiplies
    alpha / r in with both sides full too: its reader does so with `times`.

    Raises AdapterError if a side is missing, given twice or contradicts itself.
    Source: Edalati et al. 2022, "KronA"; as LoKr in LyCORIS (Yeh et al. 2023).
    """

    name: ClassVar[str] = "lokr"
    needs_weight: ClassVar[bool] = False

    scale: float = 1.0
    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None

    def __post_init__(self) -> None:
        one, two = self._sides
        for side in (one, two):
            side.check()
        if len(one.extent) != 2:
            raise AdapterError(f"lokr_w1 is {one.extent}; expected (o1, i1)")
        if self.rank is None and self.scale != 1.0:
            raise AdapterError(
                f"its scale is {self.scale}, but both sides are full: files have no place for a scale then. "
                "Multiply it into w1"
            )

    @property
    def _sides(self) -> "tuple[_Side, _Side]":
        return _Side("w1", self.w1, self.w1_a, self.w1_b, None), _Side(
            "w2", self.w2, self.w2_a, self.w2_b, self.t2
        )

    @classmethod
    def claim(cls, shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
        """The lokr_ leaves and alpha."""
        return take(shapes, frozenset(f"lokr_{name}" for name in _NAMES), frozenset({"alpha"}))

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Tensor], scale: ScaleOf) -> Self:
        """See Kind.from_leaves. `scale` is not asked if both sides are full."""
        w1, w1_a, w1_b, w2, w2_a, w2_b, t2 = (leaves.get(f"lokr_{name}") for name in _NAMES)
        whole = cls(w1=w1, w1_a=w1_a, w1_b=w1_b, w2=w2, w2_a=w2_a, w2_b=w2_b, t2=t2)
        return whole if whole.rank is None else replace(whole, scale=scale(whole.rank))

    def to_leaves(self) -> Mapping[str, Tensor]:
        """The tensors as they are, alpha = scale · rank; no alpha if both sides are full."""
        tensors = {f"lokr_{name}": tensor for name, tensor in self.tensors().items() if name != "scale"}
        return tensors if self.rank is None else {**tensors, "alpha": number(self.scale * self.rank)}

    @property
    def rank(self) -> int | None:
        """What alpha is divided by; None if both sides are full."""
        b = self.w1_b if self.w2_b is None else self.w2_b
        return None if b is None else b.shape[0]

    @property
    def extent(self) -> tuple[int, ...]:
        """(out, in) or (out, in, kh, kw); (out, in·kh·kw) where the kernel is flattened."""
        (o1, i1), (o2, i2, *kernel) = (side.extent for side in self._sides)
        return (o1 * o2, i1 * i2, *kernel)

    def times(self, weight: float) -> "LoKr":
        """The same factors with another scale; multiplied into w1, in float32, if both sides are full."""
        if self.rank is None and self.w1 is not None:
            return replace(self, w1=self.w1.float() * weight)
        return replace(self, scale=self.scale * weight)

    def rows(self, start: int, stop: int) -> "LoKr | None":
        """Whole blocks of o2 rows, or rows inside one block; None where the range cuts through blocks."""
        one, two = self._sides
        block = two.extent[0]
        if start % block == 0 and stop % block == 0:
            cut = one.rows(start // block, stop // block)
            return replace(self, w1=cut.full, w1_a=cut.a)
        first = start // block
        if stop > (first + 1) * block:
            return None
        outer, inner = one.rows(first, first + 1), two.rows(start - first * block, stop - first * block)
        return replace(self, w1=outer.full, w1_a=outer.a, w2=inner.full, w2_a=inner.a)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """ΔW in float32; see Kind.delta."""
        one, two = self._sides
        device = one.device if weight is None else accepted(self, weight).device
        flat = _kron(one.matrix(device), two.matrix(device)).mul_(self.scale)
        return flat if weight is None else flat.reshape(weight.shape)

    def factors(self) -> Factors | None:
        """The Kronecker products of the sides' factors, in float32: (A·B) ⊗ (C·D) = (A ⊗ C)·(B ⊗ D).

        None where they would be no smaller than ΔW, as with both sides full.
        """
        out, *rest = self.extent
        one, two = self._sides
        if not worth(one.inner * two.inner, out, prod(rest)):
            return None
        (up1, down1), (up2, down2) = one.pair(one.device), two.pair(one.device)
        return Factors(_kron(down1, down2), _kron(up1, up2), self.scale)

    def tensors(self) -> Mapping[str, Tensor]:
        """The factors that there are, and the scale."""
        named = zip(
            _NAMES,
            (self.w1, self.w1_a, self.w1_b, self.w2, self.w2_a, self.w2_b, self.t2),
            strict=True,
        )
        present = {name: tensor for name, tensor in named if tensor is not None}
        return {**present, "scale": number(self.scale)}

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """None if ΔW can be added to a weight of `shape`."""
        if fits(self.extent, shape):
            return None
        return f"its factors make a change of {self.extent}, but the layer's weight is {shape}"


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """One side of the product: `full`, or `a` and `b` with perhaps `mid` between them."""

    name: str
    full: Tensor | None
    a: Tensor | None
    b: Tensor | None
    mid: Tensor | None

    def check(self) -> None:
        """Raises AdapterError if the side is missing, given twice or contradicts itself."""
        leaf = f"lokr_{self.name}"
        if self.full is not None and (self.a is not None or self.b is not None or self.mid is not None):
            raise AdapterError(f"{leaf} is there in full and decomposed; expected one of them")
        if self.full is not None:
            if self.full.ndim not in (2, 4) or 0 in self.full.shape:
                raise AdapterError(f"{leaf} is {tuple(self.full.shape)}; expected 2 dimensions or 4")
            return
        if self.a is None or self.b is None:
            missing = " and ".join(
                f"{leaf}_{which}" for which, part in (("a", self.a), ("b", self.b)) if part is None
            )
            raise AdapterError(f"{missing} missing; expected {leaf}, or {leaf}_a and {leaf}_b")
        shapes = f"{leaf}_a is {tuple(self.a.shape)} and {leaf}_b is {tuple(self.b.shape)}"
        if self.a.ndim != 2 or self.b.ndim != 2 or self.b.shape[0] == 0:
            raise AdapterError(f"{shapes}; expected 2 dimensions and a rank above 0")
        if self.mid is None and self.a.shape[1] != self.b.shape[0]:
            raise AdapterError(f"{shapes}; expected one rank")
        if self.mid is not None and (
            self.mid.ndim != 4 or self.mid.shape[:2] != (self.a.shape[0], self.b.shape[0])
        ):
            raise AdapterError(f"lokr_t2 is {tuple(self.mid.shape)}, {shapes}; expected (rank, rank, kh, kw)")

    @property
    def device(self) -> torch.device:
        return self._tensors[0].device

    @property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        """(full, full) or (a, b)."""
        first, second = (self.full, self.full) if self.full is not None else (self.a, self.b)
        assert first is not None and second is not None
        return first, second

    @property
    def extent(self) -> tuple[int, ...]:
        """(o, i) or (o, i, kh, kw)."""
        a, b = self._tensors
        if self.full is not None:
            return tuple(self.full.shape)
        return (a.shape[0], b.shape[1]) if self.mid is None else (a.shape[1], b.shape[1], *self.mid.shape[2:])

    @property
    def inner(self) -> int:
        """The rank of `pair`."""
        o, *rest = self.extent
        a, _ = self._tensors
        return min(o, prod(rest)) if self.full is not None else a.shape[1 if self.mid is None else 0]

    def pair(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """up (o, inner) and down (inner, rest) in float32; one is the identity where the side is full."""
        a, b = (tensor.to(device, torch.float32) for tensor in self._tensors)
        if self.full is not None:
            flat = a.flatten(1)
            eye = torch.eye(min(flat.shape), device=device)
            return (eye, flat) if flat.shape[0] <= flat.shape[1] else (flat, eye)
        if self.mid is None:
            return a, b
        return a.T.contiguous(), mix(self.mid.to(device, torch.float32), b).flatten(1)

    def matrix(self, device: torch.device) -> Tensor:
        """The side as (o, rest) in float32."""
        if self.full is not None:
            return self.full.to(device, torch.float32).flatten(1)
        up, down = self.pair(device)
        return up @ down

    def rows(self, start: int, stop: int) -> "_Side":
        """The rows start to stop alone."""
        if self.full is not None:
            return replace(self, full=self.full[start:stop].clone())
        a, _ = self._tensors
        cut = a[start:stop] if self.mid is None else a[:, start:stop]
        return replace(self, a=cut.clone())


def _kron(a: Tensor, b: Tensor) -> Tensor:
    """The Kronecker product of two matrices; torch.kron fails on a transposed row, whose strides it keeps."""
    return torch.einsum("ij,kl->ikjl", a, b).reshape(a.shape[0] * b.shape[0], -1)
