"""Several adapters as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from difflora.adapter import Adapter, AdapterMeta, Stack
from difflora.algebra.blocks import BlockWeights, Term, terms_of
from difflora.algebra.changes import NeedingBase, Site, Sites
from difflora.algebra.elementwise import combined
from difflora.algebra.methods import Elementwise, Linear, Sparsity, method_of
from difflora.algebra.report import Report
from difflora.algebra.resizing import Resized
from difflora.algebra.spectrum import Target
from difflora.algebra.sums import Weighted, weighted_sum
from difflora.errors import AdapterError
from difflora.kinds import Full, Kind, LoRA

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

    `method` is a row of METHODS. "add" is Σ weight · ΔW, exact for any ranks, kinds and signs, with at most
    one kind a module that changes the weight: kinds with low-rank factors become one LoRA, whose rank is the
    sum of theirs; another one makes all of the module a Full difference, from `base` where it depends on the
    base weight. What stands alone in a module keeps its form if it can (its weight is 1, or it has an exact
    multiple). "average" divides by the sum of the weights. "ties", "dare" and "magnitude" work on the entries
    of the true ΔW, of which a share `density` is kept, and give Full differences. `rank` takes the best
    approximation of that rank of every module as soon as it is summed up, so that no more than one is whole
    at a time; Report.error says what that lost, Report.dense what Full differences take without it.

    `block_weights` maps rows ("IN04", "MID", "BASE", or a regular expression for paths) to factors: one table
    for all adapters, or one each. The order of the stack does not matter; `seed` is that of dare's draws.

    Raises NeedsBase naming the modules that need `base`, AdapterError if the adapters are of different
    families, a row of weights matches nothing, or every weight is 0, ConfigError on an unknown method.
    """
    terms, meta, tokens = terms_of(stack, block_weights), _meta(stack), stack.tokens()
    summing = _Summing(terms, method_of(method), Sparsity(density, seed))
    found = _Exact() if rank is None else Resized(Target(rank=rank))
    sites, needing = Sites(base, stack), NeedingBase()
    for path in stack.paths():
        parts = summing.parts(path)
        if parts:
            with needing.at(path):
                site = sites[path]
                # The sum, which may be a whole matrix, has no name here, so that it is gone before the next.
                found.add(path, summing.kinds(parts, path, site), site=site)
    needing.require()
    if not found.modules and not tokens:
        raise AdapterError("every weight of the stack is 0, so there is nothing to merge")
    return Adapter(found.modules, meta, tokens), found.report()


def ranks_of(modules: Mapping[str, tuple[Kind, ...]]) -> dict[str, int]:
    """Path -> rank of every module whose change is one LoRA, beside changes of vectors."""
    found = {}
    for path, kinds in modules.items():
        ranks = [kind.rank for kind in kinds if isinstance(kind, LoRA)]
        if len(ranks) == 1:
            found[path] = ranks[0]
    return found


@dataclass(eq=False)
class _Exact:
    """Modules as they are, of which nothing is lost."""

    modules: dict[str, tuple[Kind, ...]] = field(default_factory=dict)

    def add(self, path: str, kinds: tuple[Kind, ...], *, site: Site) -> None:
        self.modules[path] = kinds

    def report(self) -> Report:
        dense = {
            path: kind.diff.nbytes
            for path, kinds in self.modules.items()
            for kind in kinds
            if isinstance(kind, Full) and kind.diff.ndim > 1
        }
        return Report(dict.fromkeys(self.modules, 0.0), ranks=ranks_of(self.modules), dense=dense)


@dataclass(frozen=True, slots=True, eq=False)
class _Summing:
    """How the changes of one module by several adapters become one."""

    terms: Sequence[Term]
    row: Linear | Elementwise
    sparsity: Sparsity

    def parts(self, path: str) -> list[Weighted]:
        """What the adapters whose weight is not 0 do to a module."""
        return [
            Weighted(kind, weight, owner)
            for owner, (term, weight) in enumerate(zip(self.terms, self._weights(path), strict=True))
            for kind in (term.adapter.modules.get(path, ()) if weight != 0.0 else ())
        ]

    def kinds(self, parts: Sequence[Weighted], path: str, site: Site) -> tuple[Kind, ...]:
        """What becomes of them. Raises NeedsBase as `weighted_sum` does."""
        if isinstance(self.row, Linear):
            return weighted_sum(parts, site)
        keys = [(term.adapter.data_hash, path) for term in self.terms]
        return combined(parts, self.row, self.sparsity, site=site, keys=keys)

    def _weights(self, path: str) -> list[float]:
        """What each adapter's ΔW is multiplied by."""
        weights = [term.weight(path) for term in self.terms]
        if isinstance(self.row, Elementwise) or not any(weights):
            return weights
        divisor = self.row.divisor([term.dial(path) for term in self.terms])
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
