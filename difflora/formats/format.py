"""What every adapter file format promises, and the neutral words that reading and writing share.

A file is a set of named tensors. A format splits each name into the module it belongs to and a leaf, which
says which factor it is; the leaves are kohya's own spellings ("lora_down.weight", "alpha", "hada_w1_a"
...), into which every format translates.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from difflora.adapter import Adapter
from difflora.families import Family

DOWN, UP, ALPHA = "lora_down.weight", "lora_up.weight", "alpha"

Metadata = Mapping[str, str]
Scale = Callable[[str, int], float]
"""(module as the file names it, rank) -> scale."""


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor's name taken apart: the module as the file names it, and the leaf."""

    module: str
    leaf: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """An adapter in the words of one format. `metadata` holds only what the format itself needs."""

    tensors: Mapping[str, Tensor]
    metadata: Metadata


class Format(ABC):
    """One file format for adapters: a set of functions, of which no object is made."""

    name: ClassVar[str]
    title: ClassVar[str]

    @classmethod
    @abstractmethod
    def recognises(cls, names: Collection[str], metadata: Metadata) -> bool:
        """Whether a file with these tensor names is of this format."""

    @classmethod
    @abstractmethod
    def part(cls, name: str) -> Part | None:
        """A tensor name taken apart; None if it is none of this format's."""

    @classmethod
    @abstractmethod
    def path(cls, module: str, family: Family) -> str | None:
        """The path of a module as the file names it; None if the family has no such module."""

    @classmethod
    @abstractmethod
    def scale(cls, metadata: Metadata) -> Scale:
        """How strongly each module acts for which the file holds no alpha tensor.

        Raises ValueError, saying why, if the metadata cannot be understood.
        """

    @classmethod
    @abstractmethod
    def encode(cls, adapter: Adapter, family: Family) -> Encoded:
        """The tensors of a file that holds `adapter`, and the metadata without which they would be misread.

        Raises AdapterFileError naming everything that this format cannot hold.
        """
