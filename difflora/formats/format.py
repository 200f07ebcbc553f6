"""What every adapter file format promises, and the neutral words that reading and writing share.

A file is a set of named tensors. A format splits each name into the module it belongs to and a leaf, which
says which factor it is; the leaves are kohya's and LyCORIS's own spellings ("lora_down.weight", "alpha",
"hada_w1_a" ...), into which every format translates.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar

from torch import Tensor, dtype

from difflora.adapter import Adapter
from difflora.errors import AdapterFileError, listing
from difflora.families import Family
from difflora.kinds import Kind, ScaleOf

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"

Metadata = Mapping[str, str]
Scale = Callable[[str, int], float]
"""(module, rank) -> scale."""


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor's name taken apart: the module, by a name that families know, and the leaf."""

    module: str
    leaf: str


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """All tensor names of a file taken apart, those that are none of its format's with None; `modules` are
    the modules, each once. Files of the same names mostly have the same object."""

    of: Mapping[str, Part | None]
    modules: tuple[str, ...]


def parts_in(of: Mapping[str, Part | None]) -> Parts:
    """The parts of a file, with their modules."""
    return Parts(of, tuple(dict.fromkeys(part.module for part in of.values() if part)))


@dataclass(frozen=True, slots=True)
class Encoded:
    """An adapter in the words of one format. `metadata` holds only what the format itself needs.

    `stored` maps tensors that were computed in float32 to what they are stored as where no dtype is asked
    for: that of the factors they were made of.
    """

    tensors: Mapping[str, Tensor]
    metadata: Metadata
    stored: Mapping[str, dtype] = field(default_factory=dict)


class Format(ABC):
    """One file format for adapters: a set of functions, of which no object is made.

    `is_folder`: whether an adapter is a folder of files. `is_written`: whether difflora writes it.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    is_folder: ClassVar[bool] = False
    is_written: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def recognises(cls, names: Collection[str], metadata: Metadata) -> bool:
        """Whether a file with these tensor names is of this format."""

    @classmethod
    @abstractmethod
    def part(cls, name: str) -> Part | None:
        """A tensor name taken apart; None if it is none of this format's."""

    @classmethod
    def parts(cls, shapes: Mapping[str, tuple[int, ...]], metadata: Metadata) -> Parts:
        """Every tensor name of a file taken apart."""
        return _parts(cls, tuple(shapes))

    @classmethod
    def settled(cls, kinds: tuple[Kind, ...], scale: ScaleOf) -> tuple[Kind, ...]:
        """The kinds of one module, where this format means another thing by the same leaves than LyCORIS."""
        return kinds

    @classmethod
    def path(cls, module: str, family: Family) -> str | None:
        """A path that the module stands for; None if the family has no such module."""
        return next(iter(family.paths_of(module)), None)

    @classmethod
    def scale(cls, metadata: Metadata, modules: Collection[str]) -> Scale:
        """How strongly each of `modules` acts for which the file holds no alpha tensor: fully, by default.

        Raises ValueError, saying why, if the metadata cannot be understood or is about other modules.
        """
        return lambda module, rank: 1.0

    @classmethod
    @abstractmethod
    def encode(cls, adapter: Adapter, family: Family) -> Encoded:
        """The tensors of a file that holds `adapter`, and the metadata without which they would be misread.

        Raises AdapterFileError naming everything that this format cannot hold.
        """


# A library has thousands of files, which have the names of a few.
@lru_cache(maxsize=32)
def _parts(layout: type[Format], names: tuple[str, ...]) -> Parts:
    return parts_in({name: _part(layout, name) for name in names})


@lru_cache(maxsize=1 << 15)
def _part(layout: type[Format], name: str) -> Part | None:
    return layout.part(name)


def refusal(adapter: Adapter, title: str, problems: list[str], step: str) -> AdapterFileError:
    """The error for an adapter that a format cannot hold; `problems` are all of them, one a line."""
    return AdapterFileError(
        f"adapter {adapter.meta.name!r} cannot be written as a {title} (problems: {len(problems)}).\n"
        f"{listing(problems)}\n{step}"
    )
