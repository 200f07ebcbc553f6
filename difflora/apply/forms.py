"""What runs at every call of a layer while a stack is applied live.

Where autograd is off, results are added into the output that the base has just made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from difflora.apply.layers import Layer
from difflora.errors import ApplyError


class Effective:
    """The layer with another weight, kept beside its own: W0 + ΔW and bias + Δbias, at the cost of the
    base."""

    def __init__(self, layer: Layer, weight: Tensor, bias: Tensor | None) -> None:
        self.product, self.weight, self.bias = layer.product, weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


class Beside:
    """base(x) + the layer's product with ΔW and Δbias."""

    def __init__(self, layer: Layer, change: Tensor, shift: Tensor | None) -> None:
        self.base, self.product, self.change, self.shift = layer.base, layer.product, change, shift

    def __call__(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return _add(y, self.product(x, self.change, self.shift))


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """diag(gain) · (y − bias) + Δbias for the layer's own output y, as gain ∘ y + shift.

    `gain` and `shift` are (out,), or (out, 1, 1) where channels come second; either may be None.
    """

    gain: Tensor | None
    shift: Tensor | None


class LinearPair:
    """base(x) + (x · downᵀ) · upᵀ, and what acts on the output: two products for any number of adapters."""

    def __init__(self, layer: Layer, down: Tensor, up: Tensor, affine: Affine) -> None:
        self.layer, self.base, self.affine = layer, layer.base, affine
        self.down, self.up = down.T, up.T

    def __call__(self, x: Tensor) -> Tensor:
        y = _affine(self.layer, x, self.base(x), self.affine)
        return _add_product(y, x.reshape(-1, x.shape[-1]) @ self.down, self.up)


class ConvPair:
    """base(x) and the low-rank change as two convolutions."""

    def __init__(self, layer: Layer, down: Tensor, up: Tensor, affine: Affine) -> None:
        assert isinstance(layer.module, nn.Conv2d)
        self.layer, self.base, self.affine = layer, layer.base, affine
        self.down = down.view(down.shape[0], *layer.weight.shape[1:])
        self.up = up[..., None, None]

    def __call__(self, x: Tensor) -> Tensor:
        y = _affine(self.layer, x, self.base(x), self.affine)
        return _add(y, torch.conv2d(self.layer.product(x, self.down, None), self.up))


class Output:
    """base(x) with a gain and a change of the bias alone."""

    def __init__(self, layer: Layer, affine: Affine) -> None:
        self.layer, self.affine = layer, affine

    def __call__(self, x: Tensor) -> Tensor:
        return _affine(self.layer, x, self.layer.base(x), self.affine)


@dataclass(frozen=True, slots=True, eq=False)
class ImageParts:
    """One mix an image: `scales` (images, R) of the pair down (R, rest) and up (out, R), `gain` and `shift`
    (images, out), and for each dense ΔW its weights (images, 1); a missing part is None."""

    images: int
    down: Tensor | None
    up: Tensor | None
    scales: Tensor | None
    gain: Tensor | None
    shift: Tensor | None
    dense: Sequence[tuple[Tensor, Tensor]]


class PerImage:
    """Every image of a batch with its own mix: row r of the input belongs to image r % images."""

    def __init__(self, layer: Layer, parts: ImageParts) -> None:
        self.layer, self.parts = layer, parts

    def __call__(self, x: Tensor) -> Tensor:
        layer, parts = self.layer, self.parts
        if x.shape[0] % parts.images:
            raise ApplyError(
                f"{parts.images} images have their own mix, but {layer.path} got {x.shape[0]} rows, which is "
                "no multiple. Give all images one mix with set_weights, or call it with that many rows."
            )
        y = layer.base(x)
        own = layer.pristine(x) if layer.foreign and parts.gain is not None else y
        total = y
        if parts.gain is not None:
            total = total + self._each(own, parts.gain)
        if parts.shift is not None:
            total = total + self._each(torch.ones_like(y), parts.shift)
        for delta, weights in parts.dense:
            total = total + self._each(layer.product(x, delta, None), weights)
        return self._with_pair(x, total)

    def _with_pair(self, x: Tensor, y: Tensor) -> Tensor:
        down, up, scales = self.parts.down, self.parts.up, self.parts.scales
        if down is None or up is None or scales is None:
            return y
        if isinstance(self.layer.module, nn.Conv2d):
            kernels = down.view(down.shape[0], *self.layer.weight.shape[1:])
            t = self._each(self.layer.product(x, kernels, None), scales)
            return _add(y, torch.conv2d(t, up[..., None, None]))
        if isinstance(self.layer.module, nn.Embedding):
            return _add_product(y, self._each(self.layer.product(x, up, None), scales).flatten(0, -2), down)
        return _add_product(y, self._each(x @ down.T, scales).flatten(0, -2), up.T)

    def _each(self, values: Tensor, factors: Tensor) -> Tensor:
        """values · factors (images, channels) in each row's channels."""
        repeats = values.shape[0] // factors.shape[0]
        if self.layer.channels_last:
            split = values.reshape(repeats, factors.shape[0], -1, values.shape[-1])
            return (split * factors[:, None, :]).view(values.shape)
        split = values.reshape(repeats, factors.shape[0], values.shape[1], -1)
        return (split * factors[:, :, None]).view(values.shape)


def _affine(layer: Layer, x: Tensor, y: Tensor, affine: Affine) -> Tensor:
    gain, shift = affine.gain, affine.shift
    if gain is not None:
        own = layer.pristine(x) if layer.foreign else y
        y = torch.addcmul(y, own, gain)
    return y if shift is None else y + shift


def _add(y: Tensor, change: Tensor) -> Tensor:
    """y + change; into y where nothing else can see it."""
    return y + change if torch.is_grad_enabled() else y.add_(change)


def _add_product(y: Tensor, t: Tensor, up: Tensor) -> Tensor:
    """y (..., out) + t (rows, R) · up (R, out); into y where nothing else can see it."""
    flat = y.reshape(-1, y.shape[-1])
    if torch.is_grad_enabled() or t.dtype != up.dtype or not y.is_contiguous():
        return torch.addmm(flat, t, up).view(y.shape)
    flat.addmm_(t, up)
    return y
