"""What becomes of the adapters of a stack in their sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from difflora.adapter import Adapter, Stack, Weight
from difflora.algebra.changes import Change, NeedingBase, Sites, changes_at, inner
from difflora.threads import one_thread

if TYPE_CHECKING:
    from difflora.families.model import Model

# A sum with less than this share of its parts' energy is nothing that a larger weight could bring back.
_GONE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Interference:
    """How the adapters of a stack meet; `names` are theirs in its order, the same adapter counted once.

    products: path -> (N, N) float64: ⟨w_i ΔW_i, w_j ΔW_j⟩; zero where an adapter does not change the module.
    weights:  those of the stack, with which the sum has the energy Σ ‖w_i ΔW_i‖² that its parts have on their
              own: larger where they cancel, smaller where they reinforce each other; separately for the
              UNet and the text encoders.
    """

    names: tuple[str, ...]
    products: Mapping[str, Tensor]
    weights: tuple[Weight, ...]

    @property
    def clash(self) -> Mapping[str, float]:
        """Path -> 1 − ‖Σ w ΔW‖² / Σ ‖w ΔW‖²: 1 where the adapters cancel each other, 0 where they do not
        meet, below 0 where they reinforce each other; worst first."""
        found = {path: 1 - _ratio(product) for path, product in self.products.items()}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    @property
    def survival(self) -> Mapping[str, tuple[float, ...]]:
        """Path -> for each adapter how much of it is in the sum: ⟨Σ, w_i ΔW_i⟩ / ‖w_i ΔW_i‖². 1 is all of it,
        below 0 its opposite; 1 where it does not change the module."""
        return {path: _survival(product) for path, product in self.products.items()}

    @property
    def total_survival(self) -> tuple[float, ...]:
        """For each adapter how much of it is in the sum, over all modules together."""
        count = len(self.names)
        return _survival(sum(self.products.values(), torch.zeros(count, count, dtype=torch.float64)))

    def cosine(self, path: str) -> Tensor:
        """(N, N): the cosines of the weighted changes of one module; 0 where one is 0."""
        product = self.products[path]
        norms = product.diagonal().clamp_min(0).sqrt()
        return product / (norms[:, None] * norms).clamp_min(torch.finfo(norms.dtype).tiny)


def interference(stack: Stack, *, base: Model | None = None) -> Interference:
    """Which modules of a stack clash, how much of each adapter survives in the sum, and balanced weights.

    Of low-rank kinds ΔW is never formed; changes of biases are not looked at. Raises NeedsBase naming the
    modules whose ΔW depends on the base weight if there is no `base`, AdapterError on different families or
    shapes.
    """
    entries: dict[str, tuple[Adapter, Weight]] = {}
    for adapter, weight in stack:
        known = entries.get(adapter.data_hash)
        entries[adapter.data_hash] = (adapter, weight if known is None else known[1] + weight)
    sites, needing = Sites(base, stack), NeedingBase()
    products: dict[str, Tensor] = {}
    with one_thread(), torch.no_grad():
        for path in stack.paths():
            with needing.at(path):
                found = changes_at(path, [adapter for adapter, _ in entries.values()], sites)
                if any(change is not None for change in found):
                    dials = [weight.of(path) for _, weight in entries.values()]
                    products[path] = _products(found, dials)
    needing.require()
    unet, text = (_balance(products, is_text=is_text) for is_text in (False, True))
    return Interference(
        tuple(adapter.meta.name for adapter, _ in entries.values()),
        products,
        tuple(Weight(weight.unet * unet, weight.text * text) for _, weight in stack),
    )


def _products(found: Sequence[Change | None], dials: Sequence[float]) -> Tensor:
    result = torch.zeros(len(found), len(found), dtype=torch.float64)
    for i, one in enumerate(found):
        for j, other in enumerate(found[: i + 1]):
            if one is not None and other is not None:
                result[i, j] = result[j, i] = inner(one, other) * dials[i] * dials[j]
    return result


def _ratio(product: Tensor) -> float:
    """‖Σ‖² over the energy of the parts; 1 where there is none."""
    parts = float(product.diagonal().sum())
    return max(0.0, float(product.sum())) / parts if parts else 1.0


def _survival(product: Tensor) -> tuple[float, ...]:
    own = product.diagonal()
    return tuple(torch.where(own > 0, product.sum(dim=1) / own, torch.ones_like(own)).tolist())


def _balance(products: Mapping[str, Tensor], *, is_text: bool) -> float:
    chosen = [product for path, product in products.items() if path.startswith("text_encoder") == is_text]
    ratio = _ratio(sum(chosen[1:], chosen[0])) if chosen else 1.0
    return 1 / math.sqrt(ratio) if ratio > _GONE else 1.0
