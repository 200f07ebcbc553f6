"""Several adapters as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from difflora.adapter import Adapter, AdapterMeta, Stack
from difflora.algebra.blocks import BlockWeights, Term, terms_of
from difflora.algebra.changes import NeedingBase, Sites
from difflora.algebra.elementwise import combined
from difflora.algebra.methods import Elementwise, Linear, Sparsity, method_of
from difflora.algebra.report import Report
from difflora.algebra.resizing import resize
from difflora.algebra.sums import Weighted, weighted_sum
from difflora.errors import AdapterError
from difflora.kinds import Kind, LoRA

if TYPE_CHECKING:
    from difflora.families.model import Model


def merge(
    stack: Stack,
    *,
    method: str = "add",
    rank: int | None = None,
    base: Model | None = None,
    block_weights: BlockWeights | Sequence[BlockWeights] = (),
    density: float = 0.5,
    seed: int = 0,
) -> tuple[Adapter, Report]:
    """One adapter in the place of a stack, and what was lost.

    `method` is a row of METHODS. "add" is Σ weight · ΔW, exact for any ranks, kinds and signs: low-rank pairs
    are concatenated, other kinds stay beside them, and what depends on the base weight becomes a Full
    difference from `base` unless it can be kept (its weight is 1, or it has an exact multiple). "average"
    divides by the sum of the weights. "ties", "dare" and "magnitude" work on the entries of the true ΔW, of
    which a share `density` is kept, and give Full differences unless `rank` is given. `rank` then takes the
    best approximation of that rank of every module; Report.error says what that lost.

    `block_weights` maps rows ("IN04", "MID", "BASE", or a regular expression for paths) to factors: one table
    for all adapters, or one each. The order of the stack does not matter; `seed` is that of dare's draws.

    Raises NeedsBase naming the modules that need `base`, AdapterError if the adapters are of different
    families, a row of weights matches nothing, or every weight is 0, ConfigError on an unknown method.
    """
    row, sparsity = method_of(method), Sparsity(density, seed)
    terms = terms_of(stack, block_weights)
    meta = _meta(stack)
    modules = _modules(stack, terms, row, sparsity, Sites(base, stack))
    tokens = stack.tokens()
    if not modules and not tokens:
        raise AdapterError("every weight of the stack is 0, so there is nothing to merge")
    merged = Adapter(modules, meta, tokens)
    if rank is not None:
        return resize(merged, rank=rank, base=base)
    return merged, Report(dict.fromkeys(modules, 0.0), ranks=ranks_of(merged))


def ranks_of(adapter: Adapter) -> dict[str, int]:
    """Path -> rank of every module whose change is one LoRA, beside changes of vectors."""
    found = {}
    for path, kinds in adapter.modules.items():
        ranks = [kind.rank for kind in kinds if isinstance(kind, LoRA)]
        if len(ranks) == 1:
            found[path] = ranks[0]
    return found


def _modules(
    stack: Stack, terms: Sequence[Term], row: Linear | Elementwise, sparsity: Sparsity, sites: Sites
) -> dict[str, tuple[Kind, ...]]:
    needing = NeedingBase()
    found: dict[str, tuple[Kind, ...]] = {}
    for path in stack.paths():
        weights = _weights(terms, row, path)
        parts = [
            Weighted(kind, weight, owner)
            for owner, (term, weight) in enumerate(zip(terms, weights, strict=True))
            for kind in (term.adapter.modules.get(path, ()) if weight != 0.0 else ())
        ]
        if parts:
            with needing.at(path):
                if isinstance(row, Elementwise):
                    keys = [(term.adapter.data_hash, path) for term in terms]
                    found[path] = combined(parts, row, sparsity, site=sites[path], keys=keys)
                else:
                    found[path] = weighted_sum(parts, sites[path])
    needing.require()
    return found


def _weights(terms: Sequence[Term], row: Linear | Elementwise, path: str) -> list[float]:
    """What each adapter's ΔW is multiplied by."""
    weights = [term.weight(path) for term in terms]
    if isinstance(row, Elementwise) or not any(weights):
        return weights
    divisor = row.divisor([term.dial(path) for term in terms])
    return [weight / divisor for weight in weights]


def _meta(stack: Stack) -> AdapterMeta:
    """What is known of the sum: the facts that all adapters share, and all their names and triggers."""
    metas = [adapter.meta for adapter, _ in stack]
    families = sorted({meta.family for meta in metas if meta.family})
    if len(families) > 1:
        raise AdapterError(
            f"adapters of {' and '.join(families)} cannot be merged: they change different models. Merge "
            "those of one family."
        )
    bases = {meta.base for meta in metas}
    return AdapterMeta(
        name="+".join(dict.fromkeys(meta.name for meta in metas)) or "merged",
        family=families[0] if families else "",
        base=bases.pop() if len(bases) == 1 else "",
        trigger=", ".join(dict.fromkeys(meta.trigger for meta in metas if meta.trigger)),
    )
