"""What one adapter does to each module, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from difflora.adapter import Adapter, Stack
from difflora.algebra.blocks import block_of
from difflora.algebra.changes import NeedingBase, Sites, change_of
from difflora.algebra.spectrum import Spectrum
from difflora.threads import one_thread

if TYPE_CHECKING:
    from difflora.families.model import Model

SHARES = (0.5, 0.9, 0.99)
"""The shares of ‖ΔW‖² for which a profile says how many terms hold them."""


@dataclass(frozen=True, slots=True)
class ModuleProfile:
    """One module. `values` are its singular values σ, falling; `terms[i]` of them hold SHARES[i] of Σσ²;
    `effective_rank` is that of `compare`."""

    norm: float
    effective_rank: float
    terms: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Profile:
    """Path -> profile; `unknown` maps modules whose ΔW cannot be told without a base to the reason."""

    modules: Mapping[str, ModuleProfile]
    unknown: Mapping[str, str] = field(default_factory=dict)

    @property
    def norms_by_block(self) -> dict[str, float]:
        """Block -> ‖ΔW‖ over its modules, in the order of the model's names."""
        squares: dict[str, float] = {}
        for path, module in self.modules.items():
            block = block_of(path)
            squares[block] = squares.get(block, 0.0) + module.norm**2
        return {block: squares[block] ** 0.5 for block in sorted(squares)}

    @property
    def norm(self) -> float:
        """‖ΔW‖ over all modules."""
        return sum(module.norm**2 for module in self.modules.values()) ** 0.5

    @property
    def spectra(self) -> dict[str, tuple[float, ...]]:
        """Component -> its spectrum: term n is √Σσₙ² over its modules, so that the squares of all terms of
        all components add up to ‖ΔW‖²."""
        squares: dict[str, list[float]] = {}
        for path, module in self.modules.items():
            sums = squares.setdefault(path.partition(".")[0], [])
            sums += [0.0] * (len(module.values) - len(sums))
            for place, value in enumerate(module.values):
                sums[place] += value**2
        return {name: tuple(square**0.5 for square in squares[name]) for name in sorted(squares)}

    def error(self, rank: int) -> float:
        """‖ΔW − ΔW'‖ / ‖ΔW‖ of the adapter that `resize` makes of it with that rank in every module."""
        lost = sum(value**2 for module in self.modules.values() for value in module.values[rank:])
        return lost**0.5 / self.norm if self.norm else 0.0


def profile(adapter: Adapter, *, base: Model | None = None) -> Profile:
    """‖ΔW‖ and spectrum of every module whose weight the adapter changes; ΔW of low-rank kinds is not formed.

    Modules that need a base and have none are listed in `unknown`. Raises FitError if the adapter does not
    fit `base`.
    """
    sites, needing = Sites(base, Stack([(adapter, 1.0)])), NeedingBase()
    found: dict[str, ModuleProfile] = {}
    with one_thread(), torch.no_grad():
        for path, kinds in sorted(adapter.modules.items()):
            with needing.at(path):
                change = change_of(kinds, sites[path])
                if change is not None:
                    found[path] = _profiled(change.spectrum())
    return Profile(found, needing.found)


def _profiled(spectrum: Spectrum) -> ModuleProfile:
    terms = tuple(_terms(spectrum.values, share) for share in SHARES)
    return ModuleProfile(spectrum.norm, spectrum.effective_rank, terms, tuple(spectrum.values.tolist()))


def _terms(values: torch.Tensor, share: float) -> int:
    held = values.square().cumsum(0)
    return int((held < share * held[-1]).sum()) + 1 if held[-1] else 0
