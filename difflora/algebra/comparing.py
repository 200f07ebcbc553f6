"""How alike two adapters are, module by module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difflora.adapter import Adapter, Stack
from difflora.algebra.changes import Change, NeedingBase, Sites, changes_at, inner
from difflora.algebra.spectrum import Spectrum
from difflora.errors import AdapterError
from difflora.threads import one_thread

if TYPE_CHECKING:
    from difflora.families.model import Model

# Directions whose singular value is smaller than this share of the largest are rounding.
_NOISE = 1e-6


@dataclass(frozen=True, slots=True)
class ModuleComparison:
    """One module that both adapters change.

    cosine:  ⟨ΔW_a, ΔW_b⟩ / (‖ΔW_a‖ ‖ΔW_b‖), from -1 to 1; 0 where one of them is 0.
    overlap: φ(k, k) of the input subspaces, from 0 to 1, with k the smaller effective rank, rounded.
    rank_a, rank_b: effective ranks: exp of the entropy of the singular values.
    """

    norm_a: float
    norm_b: float
    cosine: float
    overlap: float
    rank_a: float
    rank_b: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two adapters side by side. `only_a` and `only_b` map modules that one alone changes to ‖ΔW‖."""

    modules: Mapping[str, ModuleComparison]
    only_a: Mapping[str, float]
    only_b: Mapping[str, float]

    @property
    def norm_a(self) -> float:
        """‖ΔW‖ of the whole of a, in Frobenius norm over all modules."""
        return _total([module.norm_a for module in self.modules.values()], self.only_a)

    @property
    def norm_b(self) -> float:
        """‖ΔW‖ of the whole of b."""
        return _total([module.norm_b for module in self.modules.values()], self.only_b)

    @property
    def cosine(self) -> float:
        """The cosine of both as vectors over all modules; 0 where one of them is 0."""
        product = math.fsum(m.cosine * m.norm_a * m.norm_b for m in self.modules.values())
        norms = self.norm_a * self.norm_b
        return product / norms if norms else 0.0


def compare(a: Adapter, b: Adapter, *, base: Model | None = None) -> Comparison:
    """Norms, cosines, subspace overlap and effective ranks of every module; biases are not compared.

    Of low-rank kinds ΔW is never formed: norms and cosines come from Gram matrices of the factors, the
    subspaces from their QR and SVD.
    Raises NeedsBase naming the modules whose ΔW depends on the base weight if there is no `base`,
    AdapterError if the two are of different families, or naming modules of which they have different shapes.
    """
    sites, needing = Sites(base, Stack([(a, 1.0), (b, 1.0)])), NeedingBase()
    modules: dict[str, ModuleComparison] = {}
    only_a: dict[str, float] = {}
    only_b: dict[str, float] = {}
    with one_thread(), torch.no_grad():
        for path in sorted(a.modules.keys() | b.modules.keys()):
            with needing.at(path):
                own, other = changes_at(path, (a, b), sites)
                if own is not None and other is not None:
                    modules[path] = _compared(own, other)
                elif own is not None:
                    only_a[path] = own.norm
                elif other is not None:
                    only_b[path] = other.norm
    needing.require()
    return Comparison(modules, only_a, only_b)


def subspace_overlap(a: Adapter, b: Adapter, path: str, *, base: Model | None = None) -> Tensor:
    """φ(i, j) of one module for every i and j, (rank of a, rank of b) in float64, each from 0 to 1.

    φ(i, j) = ‖V_aᵀ V_b‖² / min(i, j) over the i and j foremost input directions: 1 where the smaller space
    lies within the larger.
    Raises AdapterError if one of them does not change the weight of `path`, NeedsBase as `compare` does.
    Source: Hu et al. 2021, "LoRA", section 7.2.
    """
    sites = Sites(base, Stack([(a, 1.0), (b, 1.0)]))
    with one_thread(), torch.no_grad():
        own, other = changes_at(path, (a, b), sites)
        if own is None or other is None:
            raise AdapterError(f"{path}: only modules whose weight both adapters change can be compared")
        return _overlaps(own.spectrum(), other.spectrum())


def _compared(a: Change, b: Change) -> ModuleComparison:
    one, two = a.spectrum(), b.spectrum()
    norms = one.norm * two.norm
    grid = _overlaps(one, two)
    foremost = max(1, round(min(one.effective_rank, two.effective_rank)))
    return ModuleComparison(
        norm_a=one.norm,
        norm_b=two.norm,
        cosine=max(-1.0, min(1.0, inner(a, b) / norms)) if norms else 0.0,
        overlap=float(grid[foremost - 1, foremost - 1]) if grid.numel() else 0.0,
        rank_a=one.effective_rank,
        rank_b=two.effective_rank,
    )


def _overlaps(a: Spectrum, b: Spectrum) -> Tensor:
    first, second = (spectrum.right[: _directions(spectrum)] for spectrum in (a, b))
    sums = (first @ second.T).square().cumsum(0).cumsum(1)
    rows, columns = torch.arange(1, len(first) + 1), torch.arange(1, len(second) + 1)
    return sums / torch.minimum(rows[:, None], columns[None, :]).to(sums)


def _directions(spectrum: Spectrum) -> int:
    """The number of singular values that are more than rounding."""
    return int((spectrum.values > _NOISE * spectrum.values[0]).sum())


def _total(norms: list[float], alone: Mapping[str, float]) -> float:
    return math.sqrt(math.fsum(norm**2 for norm in (*norms, *alone.values())))
