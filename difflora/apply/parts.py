"""What a stack does to each module, taken apart: low-rank pairs, gains, dense ΔW, and changes of the bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from difflora.adapter import Adapter
from difflora.apply.layers import Layer
from difflora.kinds import Factors, Kind, LiveForm


@dataclass(slots=True, eq=False)
class Parts:
    """How adapters change one module. Keys are the data hashes of adapters, in their canonical order.

    `pairs`: one entry a low-rank kind. `gains` (out,) and `biases` (out,) float32, summed over the kinds of
    an adapter. `dense`: the kinds that need ΔW itself, or whose factors
    would be larger.
    """

    pairs: list[tuple[str, Factors]] = field(default_factory=list)
    gains: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    dense: dict[str, list[Kind]] = field(default_factory=dict)

    def add(self, key: str, kind: Kind, layer: Layer) -> None:
        """Adds what `kind` of the adapter `key` does to `layer`."""
        form = kind.live_form(layer.weight)
        if form is None or not _is_small(form, layer):
            self.dense.setdefault(key, []).append(kind)
        else:
            if form.factors is not None:
                self.pairs.append((key, form.factors))
            _sum(self.gains, key, form.gain)
        _sum(self.biases, key, kind.bias_delta(layer.bias))

    @property
    def ranks(self) -> tuple[tuple[str, int], ...]:
        """The rank of every pair with the adapter it belongs to."""
        return tuple((key, factors.down.shape[0]) for key, factors in self.pairs)

    def dense_bytes(self, layer: Layer) -> int:
        """Memory of one dense ΔW an adapter, and of their sum, in the layer's precision."""
        weight = layer.weight
        return (len(self.dense) + 1) * weight.numel() * weight.element_size() if self.dense else 0

    def deltas(self, key: str, layer: Layer) -> Tensor:
        """ΔW of the adapter's dense kinds in float32, in the shape of the weight."""
        first, *rest = self.dense[key]
        total = first.delta(layer.weight)
        for kind in rest:
            total = total + kind.delta(layer.weight)
        return total


def _is_small(form: LiveForm, layer: Layer) -> bool:
    """Whether the layer can take this form, and it is smaller than ΔW."""
    if not layer.takes_pairs:
        return form.gain is None and form.factors is None
    if form.factors is None:
        return True
    weight, rank = layer.weight, form.factors.down.shape[0]
    return rank * (weight.shape[0] + weight[0].numel()) < weight.numel()


def _sum(totals: dict[str, Tensor], key: str, change: Tensor | None) -> None:
    if change is not None:
        change = change.float()
        totals[key] = totals[key] + change if key in totals else change


def parts_of(adapters: Sequence[Adapter], layers: Mapping[str, Layer]) -> dict[str, Parts]:
    """What `adapters`, in canonical order, do to each of `layers`."""
    found = {path: Parts() for path in layers}
    for path, layer in layers.items():
        for adapter in adapters:
            for kind in adapter.modules.get(path, ()):
                found[path].add(adapter.data_hash, kind, layer)
    return found
