"""Adapters of another rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from difflora.adapter import Adapter, Stack
from difflora.algebra.changes import NeedingBase, Site, Sites, bias_of, change_of, is_vector, shape_at
from difflora.algebra.report import Report
from difflora.algebra.spectrum import Spectrum, Target
from difflora.kinds import Bias, Kind, LoRA
from difflora.threads import one_thread

if TYPE_CHECKING:
    from difflora.families.model import Model


def resize(
    adapter: Adapter,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    base: Model | None = None,
) -> tuple[Adapter, Report]:
    """The best adapter of a lower rank in Frobenius norm, module by module, and what was lost.

    Exactly one of: `rank` terms for every module; as many as hold the share `energy` of Σσ²; as many as leave
    ‖ΔW − ΔW'‖ / ‖ΔW‖ at most `error`. Every module keeps at least one term. A LoRA that is small enough stays
    as it is, bit for bit; others come back as float32 LoRA of scale 1, their singular values shared evenly
    by both factors.

    ΔW of low-rank kinds is never formed: it is truncated by SVD through QR of the factors. Other kinds become
    LoRA through their ΔW, one module at a time. Changes of biases and norms stay.
    Report.error[path] = ‖ΔW − ΔW'‖ / ‖ΔW‖, and Report.norm[path] = ‖ΔW‖ of every matrix, so that
    Report.total_error is that of the whole adapter.

    Raises NeedsBase naming the modules whose ΔW depends on the base weight if there is no `base`; ConfigError
    unless exactly one target is given.
    Source: Eckart & Young 1936, "The approximation of one matrix by another of lower rank".
    """
    target = Target(rank=rank, energy=energy, error=error)
    sites, needing, found = Sites(base, Stack([(adapter, 1.0)])), NeedingBase(), Resized(target)
    for path, kinds in adapter.modules.items():
        with needing.at(path):
            found.add(path, kinds, site=sites[path])
    needing.require()
    meta = replace(adapter.meta, file_hash="")
    return replace(adapter, modules=found.modules, meta=meta), found.report()


def truncated(spectrum: Spectrum, rank: int, extent: tuple[int, ...]) -> LoRA:
    """The best LoRA of that rank for a weight of the shape `extent`, float32, scale 1."""
    root = spectrum.values[:rank].sqrt()
    up = (spectrum.left[:, :rank] * root).float()
    down = (root[:, None] * spectrum.right[:rank]).float()
    return LoRA(
        down.reshape(-1, *extent[1:]).contiguous(),
        up.reshape(*up.shape, *[1] * (len(extent) - 2)).contiguous(),
        1.0,
    )


@dataclass(eq=False)
class Resized:
    """Modules as they are resized one after the other, and what that lost of each."""

    target: Target
    modules: dict[str, tuple[Kind, ...]] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    norm: dict[str, float] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)

    @torch.no_grad()
    def add(self, path: str, kinds: Sequence[Kind], *, site: Site) -> None:
        """Resizes one module. Raises NeedsBase if its ΔW depends on a weight that `site` does not have."""
        vectors = tuple(kind for kind in kinds if is_vector(kind, site))
        matrices = tuple(kind for kind in kinds if not is_vector(kind, site))
        self.modules[path] = tuple(kinds)
        self.error[path] = 0.0
        with one_thread():
            lora = self._smaller(path, matrices, site)
        if lora is not None:
            self.modules[path] = (lora, *_vectors(vectors, matrices, site))

    def _smaller(self, path: str, matrices: tuple[Kind, ...], site: Site) -> LoRA | None:
        """The LoRA in the place of `matrices`; None if there are none, or one is small enough."""
        change = change_of(matrices, site)
        if change is None:
            return None
        own = matrices[0] if len(matrices) == 1 else None
        if isinstance(own, LoRA) and own.mid is None:
            self.ranks[path] = own.rank
            if self.target.rank is not None and self.target.rank >= own.rank:
                self.norm[path] = change.norm
                return None
        spectrum = change.spectrum()
        self.norm[path] = spectrum.norm
        rank = self.target.of(spectrum.values)
        if rank >= self.ranks.get(path, rank + 1):
            return None
        self.error[path], self.ranks[path] = spectrum.error(rank), rank
        flat = (spectrum.left.shape[0], spectrum.right.shape[1])
        return truncated(spectrum, rank, shape_at(matrices, flat, site))

    def report(self) -> Report:
        """What was lost of the modules so far."""
        return Report(self.error, norm=self.norm, ranks=self.ranks)


def _vectors(vectors: tuple[Kind, ...], matrices: tuple[Kind, ...], site: Site) -> tuple[Kind, ...]:
    """The changes of vectors that stay, with the biases of the kinds that were made into a LoRA."""
    if bias_of(matrices, site) is None:
        return vectors
    biases = [kind for kind in vectors if isinstance(kind, Bias)]
    total = bias_of((*matrices, *biases), site)
    assert total is not None
    return (*(kind for kind in vectors if not isinstance(kind, Bias)), Bias(total))
