"""The change of one module as one object: a low-rank pair where there is one, else a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difflora.adapter import Adapter, Stack
from difflora.algebra.kernels import Kernel, has_linear_projections, kernel_of
from difflora.algebra.spectrum import Spectrum, dense_spectrum, pair_spectrum
from difflora.errors import AdapterError, NeedsBase, listing
from difflora.fit import fits
from difflora.kinds import Bias, Full, Kind, LoHa, LoKr, LoRA, Norm

if TYPE_CHECKING:
    from difflora.families.model import Model


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """What the base has at a path, both None without a base; and the kernel that the layer there has by its
    name."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    kernel: Kernel = ()


class Sites:
    """The weights of a base by path, without what a merged stack has written over them.

    Raises AdapterError if the adapters of the stack are of different families, FitError if one does not fit
    the base.
    """

    def __init__(self, base: Model | None, stack: Stack) -> None:
        _require_one_family(stack)
        self.base = base
        self._linear_projections = base is None and has_linear_projections(stack)
        if base is not None:
            for adapter, _ in stack:
                fits(adapter, base).require()

    def __getitem__(self, path: str) -> Site:
        if self.base is None:
            return Site(kernel=kernel_of(path, linear_projections=self._linear_projections))
        return Site(self._value(self.base, path, "weight"), self._value(self.base, path, "bias"))

    def _value(self, base: Model, path: str, leaf: str) -> Tensor | None:
        live = base.module(path)._parameters.get(leaf)
        value = base.pristine.get(f"{path}.{leaf}", None if live is None else live.detach())
        return None if value is None else value.cpu()


def _require_one_family(stack: Stack) -> None:
    """Raises AdapterError if two adapters name different families, whose modules may have names in common."""
    named = {adapter.meta.family: adapter.meta.name for adapter, _ in stack if adapter.meta.family}
    if len(named) > 1:
        those = " and ".join(f"{name!r} is for {family}" for family, name in sorted(named.items()))
        raise AdapterError(
            f"{those}: they change different models, so nothing of one can be set against the other. Give "
            "adapters of one family."
        )


class NeedingBase:
    """Collects the modules that cannot do without a base, to name them all at once."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    @contextmanager
    def at(self, path: str) -> Iterator[None]:
        """A block that a NeedsBase ends: it is remembered for `path`."""
        try:
            yield
        except NeedsBase as error:
            self.found[path] = str(error)

    def require(self) -> None:
        """Raises NeedsBase naming every module that was found."""
        if self.found:
            lines = [f"{path}: {reason}" for path, reason in self.found.items()]
            raise NeedsBase(
                f"{len(lines)} modules need the base weight:\n"
                f"{listing(lines)}\nGive the base model that the adapter was made for: base=load(...) in "
                "Python, --base-model BASE on the command line."
            )


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """ΔW = up · down in float64: up (out, R), down (R, rest), the scale within up."""

    up: Tensor
    down: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, rest)."""
        return self.up.shape[0], self.down.shape[1]

    @property
    def norm(self) -> float:
        """‖ΔW‖ in Frobenius norm, through the R × R Gram matrices."""
        return max(0.0, self.inner(self)) ** 0.5

    def inner(self, other: Pair) -> float:
        """⟨ΔW, ΔW'⟩ = Σ (upᵀ up') ∘ (down down'ᵀ)."""
        return float(((self.up.T @ other.up) * (self.down @ other.down.T)).sum())

    def matrix(self) -> Tensor:
        """ΔW (out, rest)."""
        return self.up @ self.down

    def spectrum(self) -> Spectrum:
        """The singular value decomposition; of ΔW itself only where that is smaller than the factors."""
        rank, least = self.down.shape[0], min(self.up.shape[0], self.down.shape[1])
        return dense_spectrum(self.matrix()) if rank > least else pair_spectrum(self.up, self.down)


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """ΔW (out, rest) in float32."""

    delta: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out, rest)."""
        return self.delta.shape[0], self.delta.shape[1]

    @property
    def norm(self) -> float:
        """‖ΔW‖ in Frobenius norm."""
        return float(torch.linalg.vector_norm(self.delta, dtype=torch.float64))

    def matrix(self) -> Tensor:
        """ΔW (out, rest)."""
        return self.delta

    def spectrum(self) -> Spectrum:
        """The singular value decomposition."""
        return dense_spectrum(self.delta)


Change = Pair | Dense


def inner(a: Change, b: Change) -> float:
    """⟨ΔW, ΔW'⟩ in Frobenius' sense; no ΔW is formed of two pairs."""
    if isinstance(a, Pair) and isinstance(b, Pair):
        return a.inner(b)
    return float((a.matrix().double() * b.matrix()).sum())


def change_of(kinds: Sequence[Kind], site: Site) -> Change | None:
    """The change of the weight that `kinds` make together; None if they change the bias alone.

    Raises NeedsBase where it depends on a weight that `site` does not have.
    """
    kinds = [kind for kind in kinds if not isinstance(kind, Bias)]
    if not kinds:
        return None
    factors = [kind.factors() for kind in kinds]
    pairs = [factor for factor in factors if factor is not None]
    if len(pairs) < len(kinds):
        return Dense(dense_of(kinds, site).flatten(1))
    ups = [factor.up.double().flatten(1) * factor.scale for factor in pairs]
    downs = [factor.down.double().flatten(1) for factor in pairs]
    return Pair(torch.cat(ups, dim=1), torch.cat(downs))


def dense_of(kinds: Sequence[Kind], site: Site) -> Tensor:
    """ΔW of `kinds`, none of them a Bias, in float32: in the shape of the weight, or of the first kind that
    has one; of a norm without a base (channels, 1)."""
    first, *rest = kinds
    total = first.delta(site.weight)
    for kind in rest:
        total += kind.delta(site.weight)
    if site.weight is None:
        total = total.reshape(extent_of(kinds, tuple(total.shape)))
    return total if total.ndim > 1 else total[:, None]


def extent_of(kinds: Sequence[Kind], flat: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the weight as far as the kinds know it: the one of most dimensions; else `flat`."""
    known = [extent for kind in kinds if (extent := _extent(kind)) is not None]
    return max(known, key=len, default=flat)


def shape_at(kinds: Sequence[Kind], flat: tuple[int, int], site: Site) -> tuple[int, ...]:
    """The shape of the matrix or convolution that `kinds` change by (out, rest) = `flat`: that of the base's
    weight; else as far as the kinds know it; else with the kernel that the layer has by its name.

    Raises NeedsBase if `rest` is no multiple of that kernel.
    """
    if site.weight is not None:
        return tuple(site.weight.shape)
    known = extent_of(kinds, flat)
    size = prod(site.kernel)
    # A file has the factors of a 1×1 convolution with its kernel, so those without are of a linear layer.
    is_linear = size == 1 and any(isinstance(kind, LoRA | Full) for kind in kinds)
    if len(known) > 2 or not site.kernel or is_linear:
        return known
    out, rest = flat
    if rest % size:
        raise NeedsBase(
            f"its change is {flat}, flattened, and {rest} columns are no multiple of a kernel of "
            f"{site.kernel}; give the base model, which has the shape"
        )
    return (out, rest // size, *site.kernel)


def _extent(kind: Kind) -> tuple[int, ...] | None:
    if isinstance(kind, LoRA | LoHa | LoKr):
        return kind.extent
    return tuple(kind.diff.shape) if isinstance(kind, Full) and kind.diff.ndim > 1 else None


def is_vector(kind: Kind, site: Site) -> bool:
    """Whether a kind changes no matrix: a bias, or the weight of a norm."""
    if isinstance(kind, Bias | Norm) or (isinstance(kind, Full) and kind.diff.ndim == 1):
        return True
    return site.weight is not None and site.weight.ndim == 1


def bias_of(kinds: Sequence[Kind], site: Site) -> Tensor | None:
    """Δbias (out,) of `kinds` in float32; None if they leave it alone."""
    changes = [change for kind in kinds if (change := kind.bias_delta(site.bias)) is not None]
    return sum(changes[1:], changes[0]) if changes else None


def changes_at(path: str, adapters: Sequence[Adapter], sites: Sites) -> list[Change | None]:
    """The change of one module by each adapter; None where it leaves the weight alone.

    Raises AdapterError if two are of different shapes, NeedsBase as `change_of` does.
    """
    site = sites[path]
    found = [change_of(adapter.modules.get(path, ()), site) for adapter in adapters]
    shapes = list(dict.fromkeys(change.shape for change in found if change is not None))
    if len(shapes) > 1:
        raise AdapterError(
            f"{path} is {' and '.join(map(str, shapes))} in different adapters: their bases differ. Use "
            "adapters made for one base."
        )
    return found
