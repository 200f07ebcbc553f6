"""The parameters of a base as they lie in its files, by path, read one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from difflora.families import Component, Family, family
from difflora.families.detect import identify
from difflora.families.family import canonical_names
from difflora.families.folder import folder_weights
from difflora.families.headers import read_header
from difflora.families.hub import download
from difflora.families.model import BaseFacts, Model
from difflora.families.namings import NAMINGS
from difflora.families.places import Folder, HubId, locate
from difflora.families.spellings import Slices, whole

LEAVES = ("weight", "bias")


class Parameters(Protocol):
    """Weights and biases by path, of files or of a model in memory."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """path -> shape of its weight."""
        ...

    def value(self, path: str, leaf: str) -> Tensor | None:
        """The weight or bias of a module as stored; None if it has none."""
        ...


class Loaded:
    """The parameters of a model in memory, without what a merged stack has written over them."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See Parameters."""
        return self.model.shapes()

    def value(self, path: str, leaf: str) -> Tensor | None:
        """See Parameters."""
        if f"{path}.{leaf}" in self.model.pristine:
            return self.model.pristine[f"{path}.{leaf}"]
        live = self.model.module(path)._parameters.get(leaf)
        return None if live is None else live.detach()


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a file that holds parameters of modules: `slices` says of which, row by row.

    `transposed`: the file has (in, out) where the module has (out, in).
    """

    file: Path
    name: str
    leaf: str
    slices: Slices
    shape: tuple[int, ...]
    transposed: bool

    def rows(self, path: str) -> Tensor:
        """The rows of the tensor that are those of `path`, in the order of the module's."""
        count = self.shape[-1] if self.transposed else self.shape[0]
        spans = [
            torch.arange(count * one.start // one.of, count * one.stop // one.of)
            for one in self.slices
            if one.path == path
        ]
        return torch.cat(spans)

    def shape_of(self, path: str) -> tuple[int, ...]:
        """The shape of that parameter of `path`."""
        shape = self.shape[::-1] if self.transposed else self.shape
        return (len(self.rows(path)), *shape[1:])


@dataclass(frozen=True)
class Checkpoint:
    """The weight files of a base: `root` is a diffusers folder or a single file.

    `tensors` are those that are loaded in float32, and values come from them. Where a folder has a component
    in other files too (half precision, weights without EMA), `variants` are the tensors of those.
    """

    root: Path
    facts: BaseFacts
    family: Family
    tensors: tuple[Stored, ...]
    variants: tuple[Stored, ...] = ()

    @cached_property
    def by_path(self) -> Mapping[tuple[str, str], Stored]:
        """(path, leaf) -> the tensor that holds it."""
        found: dict[tuple[str, str], Stored] = {}
        for stored in self.tensors:
            for one in stored.slices:
                found.setdefault((one.path, stored.leaf), stored)
        return found

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """See Parameters."""
        return {
            path: stored.shape_of(path) for (path, leaf), stored in self.by_path.items() if leaf == "weight"
        }

    def value(self, path: str, leaf: str) -> Tensor | None:
        """See Parameters."""
        stored = self.by_path.get((path, leaf))
        if stored is None:
            return None
        return part_of(self._opened[stored.file].get_tensor(stored.name), stored, path)

    @cached_property
    def _opened(self) -> Mapping[Path, safe_open]:
        """Every file, opened once: of a large one the header alone takes a while."""
        return {file: safe_open(file, framework="pt") for file in {stored.file for stored in self.tensors}}


def part_of(tensor: Tensor, stored: Stored, path: str) -> Tensor:
    """The parameter of `path` within a stored tensor, in the shape of the module's."""
    tensor = tensor.T if stored.transposed else tensor
    whole = len(stored.slices) == 1 and stored.slices[0].is_whole
    return tensor if whole else tensor[stored.rows(path)]


def open_checkpoint(base: Model | str | Path) -> Checkpoint:
    """The files of a base: a folder, a single file, an id on the Hub, or those that a model was loaded from.

    Raises BaseModelError if it is no base.
    """
    source = base.source if isinstance(base, Model) else base
    place = locate(source)
    if isinstance(place, HubId):
        place = Folder(download(place.id, dtype=torch.float32), place.name)
    facts = base.facts if isinstance(base, Model) else identify(place.path)
    member = family(facts.family)
    if isinstance(place, Folder):
        return _folder(place.path, facts, member)
    return Checkpoint(place.path, facts, member, tuple(_single(place.path, member)))


def parameters_of(base: Model | str | Path) -> Parameters:
    """The parameters of a model in memory, or of files."""
    return Loaded(base) if isinstance(base, Model) else open_checkpoint(base)


def _folder(root: Path, facts: BaseFacts, member: Family) -> Checkpoint:
    weights = folder_weights(root, member, dtype=torch.float32)
    tensors: list[Stored] = []
    variants: list[Stored] = []
    for part in member.components:
        for file in sorted((root / part.name).glob("*.safetensors")):
            (tensors if file in weights[part.name].files else variants).extend(_stored(file, part.name))
    return Checkpoint(root, facts, member, tuple(tensors), tuple(variants))


def _stored(file: Path, component: str) -> Iterator[Stored]:
    shapes = read_header(file).shapes
    canonical = canonical_names(shapes, component)
    for name, shape in shapes.items():
        module, _, leaf = canonical[name].rpartition(".")
        if leaf in LEAVES:
            yield Stored(file, name, leaf, whole(f"{component}.{module}"), shape, transposed=False)


def _single(path: Path, member: Family) -> Iterator[Stored]:
    shapes = read_header(path).shapes
    for part in member.components:
        for module, slices in _originals(part, member.paths).items():
            for name, leaf in _spelt(module):
                if name in shapes:
                    transposed = module.endswith("text_projection") and name == module
                    yield Stored(path, name, leaf, slices, shapes[name], transposed)


def _originals(part: Component, paths: Iterable[str]) -> Mapping[str, Slices]:
    """The names of all modules of a component in single-file checkpoints, and what their rows are."""
    inner = sorted(path.split(".", 1)[1] for path in paths if path.startswith(f"{part.name}."))
    found: dict[str, Slices] = {}
    for original in part.originals:
        for name, slices in NAMINGS[original.naming](inner).items():
            found[original.prefix + name] = tuple(
                replace(one, path=f"{part.name}.{one.path}") for one in slices
            )
    return found


def _spelt(module: str) -> tuple[tuple[str, str], ...]:
    """(tensor, leaf) of a module; OpenCLIP has bare parameters, and attention's under their own names."""
    return (
        (f"{module}.weight", "weight"),
        (f"{module}.bias", "bias"),
        (f"{module}_weight", "weight"),
        (f"{module}_bias", "bias"),
        (module, "weight"),
    )
