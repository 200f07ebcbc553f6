"""Live weights of modules alike: written in place while the same adapters are in use, laid out anew when one
comes or goes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from difflora.apply.attach import Forward
from difflora.apply.bundle import Bundle
from difflora.apply.forms import (
    Affine,
    Beside,
    ConvPair,
    Effective,
    ImageParts,
    LinearPair,
    Output,
    PerImage,
)
from difflora.apply.layers import Layer

Dials = Mapping[str, float]
"""The weight of each adapter, by its data hash."""


class Slot:
    """Stands in for a layer's forward; what it computes changes with the weights."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.form: Forward = layer.base

    def __call__(self, x: Tensor) -> Tensor:
        return self.form(x)


class Group:
    """The slots of modules alike, and the memory that their weights are written into."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.slots = [Slot(layer) for layer in bundle.layers]
        self._active: frozenset[str] | None = None
        self._mixed: Mixed | None = None
        self._written: Dials = {}

    @torch.no_grad()
    def set(self, dials: Dials) -> None:
        """One weight an adapter, for all rows. Adapters at 0 are left out: 0 equals absent bit for bit."""
        active = frozenset(key for key in self.bundle.keys if dials[key] != 0)
        if self._active != active:
            self._active = active
            self._mixed = _mixed(self.bundle.only(active)) if active else None
            self._written = {}
            for index, slot in enumerate(self.slots):
                slot.form = slot.layer.base if self._mixed is None else self._mixed.form(index)
        if self._mixed is not None:
            changed = frozenset(key for key in active if self._written.get(key) != dials[key])
            self._mixed.write(dials, changed)
            self._written = {key: dials[key] for key in active}

    @torch.no_grad()
    def set_rows(self, rows: Sequence[Dials]) -> None:
        """One set of weights an image."""
        self._active = self._mixed = None
        active = frozenset(key for key in self.bundle.keys if any(dials[key] != 0 for dials in rows))
        parts = _image_parts(self.bundle.only(active), rows)
        for slot, part in zip(self.slots, parts, strict=True):
            slot.form = PerImage(slot.layer, part) if active else slot.layer.base


class Mixed(ABC):
    """A bundle under weights that are the same for all rows."""

    @abstractmethod
    def write(self, dials: Dials, changed: frozenset[str]) -> None:
        """Takes these weights, in place; those of other adapters than `changed` are as they were."""

    @abstractmethod
    def form(self, index: int) -> Forward:
        """What the module of that index runs; it sees every later `write`."""


def _mixed(bundle: Bundle) -> Mixed:
    return MixedWeight(bundle) if bundle.prefers_dense else MixedPair(bundle)


class MixedPair(Mixed):
    """Two products with the concatenated factors, the weights folded into up; gains and biases beside.

    Another weight writes the columns of its own adapter: what it costs does not grow with their number.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.up = torch.empty_like(bundle.pairs.up)
        layer = bundle.layers[0]
        shape = (len(bundle.layers), bundle.up_shape[0], *([] if layer.channels_last else [1, 1]))
        has_shift = bundle.biases.keys or (bundle.gains.keys and layer.bias is not None)
        empty = partial(torch.empty, dtype=layer.weight.dtype, device=layer.device)
        self.gain = empty(shape) if bundle.gains.keys else None
        self.shift = empty(shape) if has_shift else None

    def write(self, dials: Dials, changed: frozenset[str]) -> None:
        bundle = self.bundle
        if bundle.pairs.keys:
            bundle.pairs.write(dials, self.up, changed)
        gain, shift = _affine(bundle, dials)
        for kept, new in ((self.gain, gain), (self.shift, shift)):
            if kept is not None and new is not None:
                kept.copy_(new.view(kept.shape))

    def form(self, index: int) -> Forward:
        layer, pairs = self.bundle.layers[index], self.bundle.pairs
        gain = None if self.gain is None else self.gain[index]
        shift = None if self.shift is None else self.shift[index]
        affine = Affine(gain, shift)
        if not pairs.keys:
            return Output(layer, affine)
        of_type = LinearPair if layer.channels_last else ConvPair
        return of_type(layer, pairs.down[index], self.up[index], affine)


class MixedWeight(Mixed):
    """One product with ΔW; in float32 with W0 + ΔW instead of W0, which costs nothing.

    In half precision W0 + ΔW would lose what of ΔW is smaller than the rounding of W0, so the two stay apart,
    as they do where something else is attached already.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        first = bundle.layers[0]
        self.effective = first.plain and first.weight.dtype == torch.float32
        empty = partial(torch.empty, dtype=first.weight.dtype, device=first.device)
        self.weights = empty((len(bundle.layers), *first.weight.shape))
        has_shift = bundle.biases.keys or (self.effective and first.bias is not None)
        self.shift = empty((len(bundle.layers), bundle.up_shape[0])) if has_shift else None

    def write(self, dials: Dials, changed: frozenset[str]) -> None:
        bundle = self.bundle
        ups = bundle.pairs.up.float() * bundle.pairs.scales(dials)[:, None, :]
        gains = bundle.gains.mixed(dials)
        count = len(bundle.layers)
        # Written in place, all modules are a few kernels; what needs room beside it is done one by one.
        step = count if self.weights.dtype == torch.float32 else 1
        for first in range(0, count, step):
            some = slice(first, first + step)
            kept = self.weights[some].view(-1, *bundle.up_shape)
            total = kept if kept.dtype == torch.float32 else torch.empty_like(kept, dtype=torch.float32)
            own = [layer.weight.to(layer.device).view(bundle.up_shape) for layer in bundle.layers[some]]
            torch.stack(own, out=total) if self.effective else total.zero_()
            if gains is not None:
                total.addcmul_(torch.stack(own).float(), gains[some][..., None])
            for column, key in enumerate(bundle.dense.keys):
                total.add_(bundle.dense.values[some, column].view(kept.shape), alpha=dials[key])
            if bundle.pairs.keys:
                total.baddbmm_(ups[some], bundle.pairs.down[some].float())
            if total is not kept:
                kept.copy_(total)
        self._write_shifts(bundle.biases.mixed(dials))

    def _write_shifts(self, shifts: Tensor | None) -> None:
        if self.shift is None:
            return
        self.shift.zero_()
        if self.effective:
            for index, layer in enumerate(self.bundle.layers):
                if layer.bias is not None:
                    self.shift[index] = layer.bias
        if shifts is not None:
            self.shift += shifts

    def form(self, index: int) -> Forward:
        of_kind = Effective if self.effective else Beside
        shift = None if self.shift is None else self.shift[index]
        return of_kind(self.bundle.layers[index], self.weights[index], shift)


def _affine(bundle: Bundle, dials: Dials) -> tuple[Tensor | None, Tensor | None]:
    """The gain and the shift (modules, out) float32 by which the layers' outputs change.

    A gain acts on the output without its bias: gain ∘ (y − bias) + Δbias = gain ∘ y + shift.
    """
    gain, shift = bundle.gains.mixed(dials), bundle.biases.mixed(dials)
    if gain is not None and bundle.layers[0].bias is not None:
        biases = torch.stack([layer.bias for layer in bundle.layers if layer.bias is not None])
        biases = biases.to(gain)
        shift = -gain * biases if shift is None else shift - gain * biases
    return gain, shift


def _image_parts(bundle: Bundle, rows: Sequence[Dials]) -> list[ImageParts]:
    """What each module does, image by image."""
    pairs, first = bundle.pairs, bundle.layers[0]
    dials = torch.tensor([[row[key] for key in pairs.keys] for row in rows], device=first.device)
    scales = pairs.scale[:, None, :] * dials
    affine = [_affine(bundle, row) for row in rows]
    gain, shift = (_stacked(parts, first.weight.dtype) for parts in zip(*affine, strict=True))
    shares = [
        torch.tensor([[row[key]] for row in rows], dtype=first.weight.dtype, device=first.device)
        for key in bundle.dense.keys
    ]
    return [
        ImageParts(
            len(rows),
            down=pairs.down[index] if pairs.keys else None,
            up=pairs.up[index] if pairs.keys else None,
            scales=scales[index].to(first.weight.dtype) if pairs.keys else None,
            gain=None if gain is None else gain[index],
            shift=None if shift is None else shift[index],
            dense=list(zip(bundle.dense.values[index], shares, strict=True)),
        )
        for index in range(len(bundle.layers))
    ]


def _stacked(rows: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor | None:
    """(modules, out) of each image as (modules, images, out); None if there is nothing."""
    present = [row for row in rows if row is not None]
    return torch.stack(present, dim=1).to(dtype) if present else None
