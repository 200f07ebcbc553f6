"""The parts of many modules alike, stacked, so that a change of weights is a few kernels for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from difflora.apply.layers import Layer
from difflora.apply.parts import Parts


@dataclass(frozen=True, slots=True, eq=False)
class Keyed:
    """One tensor a module and adapter: `values` (modules, len(keys), ...)."""

    keys: tuple[str, ...]
    values: Tensor

    def only(self, active: frozenset[str]) -> Keyed:
        """Those of the active adapters; nothing is copied if that is all."""
        if active.issuperset(self.keys):
            return self
        keep = [index for index, key in enumerate(self.keys) if key in active]
        return Keyed(tuple(self.keys[index] for index in keep), self.values[:, keep])

    def mixed(self, dials: Mapping[str, float]) -> Tensor | None:
        """Σ dial · value (modules, ...) in float32, in the order of the keys; None if there are no keys."""
        if not self.keys:
            return None
        first, *rest = self.keys
        total = self.values[:, 0].float() * dials[first]
        for index, key in enumerate(rest, start=1):
            total.add_(self.values[:, index], alpha=dials[key])
        return total


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Concatenated factors: ΔW = up · diag(scale ∘ dial) · down.

    down (modules, R, rest) and up (modules, out, R) in the layers' dtype, scale (modules, R) float32; `keys`
    names the adapter of each of the R rank-one terms.
    """

    keys: tuple[str, ...]
    down: Tensor
    up: Tensor
    scale: Tensor

    def only(self, active: frozenset[str]) -> Pairs:
        """Those of the active adapters; nothing is copied if that is all."""
        if active.issuperset(self.keys):
            return self
        keep = [index for index, key in enumerate(self.keys) if key in active]
        keys = tuple(self.keys[index] for index in keep)
        return Pairs(keys, self.down[:, keep], self.up[:, :, keep], self.scale[:, keep])

    def scales(self, dials: Mapping[str, float]) -> Tensor:
        """scale ∘ dial (modules, R) in float32."""
        return self.scale * torch.tensor([dials[key] for key in self.keys], device=self.scale.device)

    def write(self, dials: Mapping[str, float], out: Tensor, changed: frozenset[str]) -> None:
        """up · diag(scale ∘ dial) into `out` (modules, out, R), in the columns of the adapters in `changed`:
        computed in float32, rounded once."""
        scales = self.scales(dials)[:, None, :]
        for span in self._spans(changed):
            columns, kept = self.up[..., span], out[..., span]
            if out.dtype == torch.float32:
                torch.mul(columns, scales[..., span], out=kept)
            else:
                kept.copy_(columns * scales[..., span])

    def _spans(self, chosen: frozenset[str]) -> list[slice]:
        """The runs of columns of the chosen adapters."""
        runs = groupby(range(len(self.keys)), key=lambda column: self.keys[column] in chosen)
        found = [list(columns) for wanted, columns in runs if wanted]
        return [slice(columns[0], columns[-1] + 1) for columns in found]


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """All that a stack does to modules of one shape, in the order of `layers`."""

    layers: tuple[Layer, ...]
    pairs: Pairs
    gains: Keyed
    dense: Keyed
    biases: Keyed

    def only(self, active: frozenset[str]) -> Bundle:
        """What the active adapters do."""
        chosen = (part.only(active) for part in (self.gains, self.dense, self.biases))
        return Bundle(self.layers, self.pairs.only(active), *chosen)

    @property
    def keys(self) -> tuple[str, ...]:
        """The adapters that do something here."""
        every = (*self.pairs.keys, *self.gains.keys, *self.dense.keys, *self.biases.keys)
        return tuple(dict.fromkeys(every))

    @property
    def prefers_dense(self) -> bool:
        """Whether one product with ΔW is the cheaper way, or the only one.

        Per row a pair costs R · (rest + out) multiplications and ΔW out · rest, and so do their memories:
        beyond that rank ΔW is never larger than the factors it is made of.
        """
        layer = self.layers[0]
        if self.dense.keys or not layer.takes_pairs:
            return True
        out, rest = self.up_shape
        return len(self.pairs.keys) * (rest + out) >= out * rest

    @property
    def up_shape(self) -> tuple[int, int]:
        """(out, rest) of the layers' weights."""
        weight = self.layers[0].weight
        return weight.shape[0], weight.numel() // weight.shape[0]


def bundle(layers: Sequence[Layer], parts: Sequence[Parts]) -> Bundle:
    """The parts of modules alike (see `alike`), stacked where they compute and in the dtype of their
    weights."""
    weight, device = layers[0].weight, layers[0].device
    keys = tuple(parts[0].dense)
    dense = torch.empty(len(layers), len(keys), *weight.shape, dtype=weight.dtype, device=device)
    for index, (layer, part) in enumerate(zip(layers, parts, strict=True)):
        for column, key in enumerate(keys):
            dense[index, column] = part.deltas(key, layer)
    return Bundle(
        tuple(layers),
        _pairs(weight, parts, device),
        gains=_keyed([part.gains for part in parts], device),
        dense=Keyed(keys, dense),
        biases=_keyed([part.biases for part in parts], device),
    )


def _pairs(weight: Tensor, parts: Sequence[Parts], device: torch.device) -> Pairs:
    keys = tuple(key for key, rank in parts[0].ranks for _ in range(rank))
    out, rest = weight.shape[0], weight.numel() // weight.shape[0]
    down = torch.empty(len(parts), len(keys), rest, dtype=weight.dtype, device=device)
    up = torch.empty(len(parts), out, len(keys), dtype=weight.dtype, device=device)
    for index, part in enumerate(parts):
        at = 0
        for _, factors in part.pairs:
            span = slice(at, at + factors.down.shape[0])
            down[index, span] = factors.down.flatten(1)
            up[index, :, span] = factors.up.flatten(1)
            at = span.stop
    scales = [
        [factors.scale for _, factors in part.pairs for _ in range(factors.down.shape[0])] for part in parts
    ]
    return Pairs(keys, down, up, torch.tensor(scales, dtype=torch.float32, device=device))


def _keyed(changes: Sequence[Mapping[str, Tensor]], device: torch.device) -> Keyed:
    keys = tuple(changes[0])
    rows = [[change[key].to(device) for key in keys] for change in changes]
    values = torch.stack([torch.stack(row) for row in rows]) if keys else torch.empty(len(rows), 0)
    return Keyed(keys, values)


def alike(layer: Layer, parts: Parts) -> tuple[object, ...]:
    """Modules of the same answer can share a bundle."""
    weight = layer.weight
    return (
        layer.path.split(".", 1)[0].startswith("text_encoder"),
        type(layer.module),
        layer.plain,
        layer.bias is not None,
        tuple(weight.shape),
        weight.dtype,
        parts.ranks,
        tuple(parts.gains),
        tuple(parts.dense),
        tuple(parts.biases),
    )
