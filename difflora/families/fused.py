"""Modules of a file that stand for several of ours, or for one with its halves swapped: cut on reading,
joined on writing."""

from collections.abc import Mapping, Sequence

from difflora.families.family import Family
from difflora.kinds import Kind


def split(kinds: Sequence[Kind], family: Family, name: str) -> dict[str, tuple[Kind, ...]]:
    """The kinds of one module, by its name in a file, for each path that it stands for.

    Where the name is one whole module, the same objects under its path. Exact: the rows of a path's ΔW are
    the rows of the file's. A LoRA made by joining (each column of `up` belongs to one part) gives each part
    its own columns, and leaves out a part that has none.
    Raises KeyError if the family has no such module, AdapterError naming the kind that cannot be cut.
    """
    raise NotImplementedError


def join(parts: Sequence[Kind | None], heights: Sequence[int]) -> Kind:
    """The one change of a fused module whose parts, above each other, are changed by `parts`; exact.

    `heights` are the rows of each part; None stands for a part that is not changed.
    Raises AdapterError naming the kind that cannot be joined, and why.
    """
    raise NotImplementedError


def kohya_modules(family: Family, modules: Mapping[str, tuple[Kind, ...]]) -> dict[str, tuple[Kind, ...]]:
    """The modules of an adapter under the flattened names that a kohya file has for them, fused as there.

    Parts that cannot be joined exactly are written alone, under the names that OneTrainer gives them.
    """
    raise NotImplementedError
