"""One adapter at another strength."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from difflora.adapter import Adapter, Stack, Weight, as_weight
from difflora.algebra.changes import NeedingBase, Sites
from difflora.algebra.merging import ranks_of
from difflora.algebra.report import Report
from difflora.algebra.sums import Weighted, multiples, weighted_sum

if TYPE_CHECKING:
    from difflora.families.model import Model


def scale(adapter: Adapter, weight: float | Weight, *, base: Model | None = None) -> tuple[Adapter, Report]:
    """The adapter that does at weight 1 what `adapter` does at `weight`; words stay as they are.

    Exact: LoRA, LoHa, LoKr and GLoRA get another scale, the others other numbers in float32. Raises NeedsBase
    naming the modules whose kinds have no exact multiple (DoRA, OFT, BOFT, Replace) if there is no `base`.
    """
    dial = as_weight(weight)
    sites, needing = Sites(base, Stack([(adapter, dial)])), NeedingBase()
    modules = {}
    for path, kinds in adapter.modules.items():
        with needing.at(path):
            parts = [Weighted(kind, dial.of(path), 0) for kind in kinds]
            own = multiples(parts)
            modules[path] = weighted_sum(parts, sites[path]) if own is None else own
    needing.require()
    scaled = replace(adapter, modules=modules, meta=replace(adapter.meta, file_hash=""))
    return scaled, Report(dict.fromkeys(modules, 0.0), ranks=ranks_of(modules))


def negate(adapter: Adapter, *, base: Model | None = None) -> tuple[Adapter, Report]:
    """The adapter that undoes `adapter`: `scale` by -1. Twice is the adapter itself."""
    return scale(adapter, -1.0, base=base)
