"""Trainable factors for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from difflora.adapter import Adapter, AdapterMeta
from difflora.apply import Attached, attach, detached
from difflora.errors import CheckpointError, listing
from difflora.inject.arena import Arena
from difflora.inject.options import NetworkOptions
from difflora.inject.targets import targets
from difflora.inject.trainable import Layer, Trainable

if TYPE_CHECKING:
    from difflora.families.model import Model


@dataclass(frozen=True, slots=True, eq=False)
class Injected:
    """Trainable factors while they are attached; `unet` and `text` are their storage, None where nothing is
    trained."""

    factors: tuple[Trainable, ...]
    unet: Arena | None
    text: Arena | None
    attached: tuple[Attached, ...]

    def arenas(self) -> tuple[Arena, ...]:
        """The storages in use."""
        return tuple(arena for arena in (self.unet, self.text) if arena is not None)

    def off(self) -> AbstractContextManager[None]:
        """A `with` block in which the model is the base alone."""
        return detached(self.attached)

    def collect(self, meta: AdapterMeta, *, dtype: torch.dtype = torch.float32) -> Adapter:
        """A copy of the factors as an Adapter, on the CPU, in `dtype`."""
        return Adapter({factor.path: (factor.kind(dtype),) for factor in self.factors}, meta)

    @torch.no_grad()
    def restore(self, adapter: Adapter) -> None:
        """Writes the factors of a collected adapter back. Raises CheckpointError if the layers, kinds or
        shapes differ."""
        mine, theirs = {factor.path for factor in self.factors}, set(adapter.modules)
        if mine != theirs:
            raise CheckpointError(
                f"the checkpoint has factors for {len(theirs)} layers, this run for {len(mine)}. "
                "They differ in:\n" + listing(sorted(mine ^ theirs))
            )
        for factor in self.factors:
            (kind,) = adapter.modules[factor.path]
            values = factor.values(kind)
            for name, parameter in factor.parameters.items():
                if values[name].shape != parameter.shape:
                    raise CheckpointError(
                        f"{factor.path}: {name} is {tuple(values[name].shape)} in the checkpoint, and "
                        f"{tuple(parameter.shape)} in this run"
                    )
                parameter.copy_(values[name])


@contextmanager
def injected(model: Model, options: NetworkOptions, *, seed: int) -> Iterator[Injected]:
    """Attaches trainable factors for the length of a `with` block.

    Before the first step every output is bit-identical to the base, for every kind. Factors are float32
    whatever the base's dtype; where they start is a pure function of the seed and the path. Frozen layers of
    the UNet keep less for the backward pass meanwhile, with the same outputs and gradients.

    Raises ConfigError if the options select no layer.
    """
    layers = [_layer(model, path, options, seed) for path in targets(model, options)]
    unet = _stored([layer for layer in layers if not _is_text(layer)], options, model.device)
    text = _stored([layer for layer in layers if _is_text(layer)], options, model.device)
    parameters = {**unet.parameters, **text.parameters}
    factors = tuple(options.trainable(layer, parameters[layer.path]) for layer in layers)
    attached: list[Attached] = []
    try:
        for factor in factors:
            attached.append(attach(factor.layer.module, factor.forward()))
        learning = tuple(attached)
        attached += _lean(model, layers)
        yield Injected(factors, unet.arena, text.arena, learning)
    finally:
        for attachment in reversed(attached):
            attachment.detach()


@dataclass(frozen=True, slots=True, eq=False)
class _Stored:
    """One storage, None for no layer, and its views: path of the layer -> name -> parameter."""

    arena: Arena | None
    parameters: Mapping[str, Mapping[str, nn.Parameter]]


def _stored(layers: Sequence[Layer], options: NetworkOptions, device: torch.device) -> _Stored:
    """Where the factors of the layers start, copied into one storage: the originals are not kept."""
    if not layers:
        return _Stored(None, {})
    starts = {layer.path: options.trainable.start(layer) for layer in layers}
    arena = Arena([tensor for start in starts.values() for tensor in start.values()], device)
    views = iter(arena.views)
    return _Stored(arena, {path: {name: next(views) for name in start} for path, start in starts.items()})


def _is_text(layer: Layer) -> bool:
    return layer.path.startswith("text_encoder")


def _lean(model: Model, layers: list[Layer]) -> Iterator[Attached]:
    from difflora.inject.lean import attach_lean  # brings diffusers, which options alone do not need

    return attach_lean(model.pipeline.unet, trained=frozenset(layer.module for layer in layers))


def _layer(model: Model, path: str, options: NetworkOptions, seed: int) -> Layer:
    module = model.module(path)
    assert isinstance(module, nn.Linear | nn.Conv2d), "targets() selects no other"
    shape = model.shapes()[path]
    return Layer(path, module, shape, options.rank, options.scale, seed=seed, lokr_factor=options.lokr_factor)
