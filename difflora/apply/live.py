"""A stack beside the layers: nothing is written into the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from difflora.adapter import Stack, Weight, as_weight
from difflora.apply.bundle import alike, bundle
from difflora.apply.group import Group, Slot
from difflora.apply.layers import Layer, layer_of
from difflora.apply.mix import Mix
from difflora.apply.parts import Parts, parts_of
from difflora.errors import ApplyError, listing

if TYPE_CHECKING:
    from difflora.families.model import Model

DENSE_LIMIT = 4 << 30
"""Bytes that dense ΔW may take unless another limit is given."""


class Live(Mix):
    """Every adapter of the stack at once beside each layer, as one concatenated pair of factors.

    ΔW = up · diag(s) · down with rank Σ rank_i: two matrix products for any number of adapters. From the rank
    on where one product with ΔW costs less, that is taken instead. A change of weights writes into memory
    that is there already. Adapters at weight 0 are left out, so that 0 equals absent bit for bit.

    Kinds without a low-rank form, and factors larger than what they make, keep one dense ΔW an adapter and
    module, and their sum: `dense_bytes` in all. Raises ApplyError if that is more than `dense_limit`, or a
    layer is of a type that nothing can act beside.
    """

    def __init__(self, model: Model, stack: Stack, *, dense_limit: int = DENSE_LIMIT) -> None:
        super().__init__(model, stack)
        layers = _layers(model, stack)
        with torch.no_grad():
            parts = parts_of([adapter for adapter, _ in stack.canonical()], layers)
        self.dense_bytes = sum(parts[path].dense_bytes(layer) for path, layer in layers.items())
        if self.dense_bytes > dense_limit:
            raise ApplyError(_too_much(parts, layers, limit=dense_limit))
        self._groups = _grouped(layers, parts)

    @property
    def slots(self) -> list[Slot]:
        """What stands in for each layer's forward."""
        return [slot for group in self._groups for slot in group.slots]

    def set_image_weights(self, rows: Sequence[Sequence[float | Weight]]) -> None:
        """Gives every image of a batch its own mix: one row of weights an image, in the order of the stack.

        Layers must then be called with a multiple of len(rows) rows, row r belonging to image r % len(rows):
        under classifier-free guidance the UNet's rows are [uncond × B, cond × B].
        Raises AdapterError if a row has another number of weights than the stack has adapters.
        """
        stacks = [self.stack.with_weights([as_weight(weight) for weight in row]) for row in rows]
        dials = [_dials(stack) for stack in stacks]
        for group in self._groups:
            group.set_rows([_of(group, weights) for weights in dials])

    def _update(self) -> None:
        dials = _dials(self.stack)
        for group in self._groups:
            group.set(_of(group, dials))


def _dials(stack: Stack) -> dict[str, Weight]:
    return {adapter.data_hash: weight for adapter, weight in stack.canonical()}


def _of(group: Group, dials: dict[str, Weight]) -> dict[str, float]:
    path = group.bundle.layers[0].path
    return {key: dials[key].of(path) for key in group.bundle.keys}


def _layers(model: Model, stack: Stack) -> dict[str, Layer]:
    found = {path: layer_of(path, model.module(path), device=model.device) for path in stack.paths()}
    unknown = [
        f"{path}: {type(model.module(path)).__name__}" for path, layer in found.items() if layer is None
    ]
    if unknown:
        raise ApplyError(
            f"{len(unknown)} of {len(found)} layers are of types that no change can act beside:\n"
            f"{listing(unknown)}\nApply the stack with mode='merged' (--mode merged)."
        )
    return {path: layer for path, layer in found.items() if layer is not None}


@torch.no_grad()
def _grouped(layers: dict[str, Layer], parts: dict[str, Parts]) -> list[Group]:
    together: dict[tuple[object, ...], list[str]] = {}
    for path, layer in layers.items():
        together.setdefault(alike(layer, parts[path]), []).append(path)
    return [
        Group(bundle([layers[path] for path in paths], [parts.pop(path) for path in paths]))
        for paths in together.values()
    ]


def _too_much(parts: dict[str, Parts], layers: dict[str, Layer], *, limit: int) -> str:
    sizes = {path: parts[path].dense_bytes(layers[path]) for path in layers}
    largest = sorted((path for path in sizes if sizes[path]), key=lambda path: -sizes[path])
    lines = [
        f"{path}: {sizes[path] / 2**20:,.1f} MiB for "
        + ", ".join(sorted({kind.name for kinds in parts[path].dense.values() for kind in kinds}))
        for path in largest
    ]
    return (
        f"changes that are not of low rank need {sum(sizes.values()) / 2**30:,.2f} GiB of dense updates in "
        f"{len(largest)} layers to act live; the limit is {limit / 2**30:,.2f} GiB. The largest:\n"
        f"{listing(lines)}\n"
        "Apply the stack with mode='merged' in Python or --mode merged on the command line, which keeps none "
        "of them, or raise the limit with dense_limit=."
    )
