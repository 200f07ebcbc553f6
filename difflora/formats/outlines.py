"""What the tensors of one module make: kinds from the tensors, or the names of kinds from a header alone.

A file has hundreds of modules, of which most are like many others but for their names. So what a header says
is found once for all modules of equal leaves, of this file and of those looked at before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from difflora.errors import AdapterError
from difflora.families import Family
from difflora.families.fused import split
from difflora.formats.format import Format
from difflora.formats.leaves import kinds_of, rank_of
from difflora.formats.plain import DTYPES, Form
from difflora.formats.plan import Group
from difflora.kinds import Kind, ScaleOf

T = TypeVar("T")


class Made(NamedTuple, Generic[T]):
    """What one module of a file makes: path -> its kinds, or their names; and the ranks of its factors."""

    pieces: Mapping[str, T]
    ranks: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Names:
    """The names of the kinds of a whole module; `problem` is why there are none."""

    names: tuple[str, ...] = ()
    ranks: frozenset[int] = frozenset()
    problem: str = ""


def made(
    layout: type[Format], family: Family, group: Group, *, leaves: Mapping[str, Tensor], scale: ScaleOf
) -> Made[tuple[Kind, ...]]:
    """The kinds that the tensors of a module, by leaf, make for each path that it stands for.

    Raises AdapterError, saying all that is wrong, if they make none.
    """
    kinds = layout.settled(kinds_of(leaves, scale), scale)
    return Made(split(kinds, family, group.module), _ranks(kinds))


def outlined(
    layout: type[Format], family: Family, group: Group, *, forms: Mapping[str, Form]
) -> Made[tuple[str, ...]]:
    """The names of the kinds that `made` gives for tensors like these, whatever their values and scale.

    Raises AdapterError as `made` does.
    """
    own = tuple([forms[name] for name in group.leaves.values()])
    if group.path is None:
        leaves = dict(zip(group.leaves, map(blank, own), strict=True))
        found = made(layout, family, group, leaves=leaves, scale=_full)
        names = {path: tuple(kind.name for kind in kinds) for path, kinds in found.pieces.items()}
        return Made(names, found.ranks)
    whole = _whole(layout, tuple(group.leaves), own)
    if whole.problem:
        raise AdapterError(whole.problem)
    return Made({group.path: whole.names}, whole.ranks)


@lru_cache(maxsize=1 << 14)
def _whole(layout: type[Format], leaves: tuple[str, ...], forms: tuple[Form, ...]) -> _Names:
    try:
        kinds = layout.settled(kinds_of(dict(zip(leaves, map(blank, forms), strict=True)), _full), _full)
    except AdapterError as error:
        return _Names(problem=str(error))
    return _Names(tuple(kind.name for kind in kinds), _ranks(kinds))


def _full(rank: int) -> float:
    return 1.0


def _ranks(kinds: tuple[Kind, ...]) -> frozenset[int]:
    return frozenset(rank for kind in kinds if (rank := rank_of(kind.to_leaves())) is not None)


def blank(form: Form) -> Tensor:
    """A tensor of that form without values; single numbers, which kinds look at, are 1."""
    if form.shape in ((), (1,)):
        return torch.ones(form.shape, dtype=DTYPES[form.dtype])
    return torch.empty(form.shape, dtype=DTYPES[form.dtype], device="meta")
