"""Every way to name the modules of a component. A new one is a function and an entry in NAMINGS."""

from collections.abc import Callable, Iterable, Mapping

from difflora.families.bfl import bfl_names
from difflora.families.mmdit import mmdit_names
from difflora.families.open_clip import open_clip_names
from difflora.families.sgm import sgm_names
from difflora.families.spellings import Naming, Slices, whole


def own_names(names: Iterable[str]) -> dict[str, Slices]:
    """The names themselves."""
    return {name: whole(name) for name in names}


def _sgm(names: Iterable[str]) -> dict[str, Slices]:
    return {original: whole(name) for name, original in sgm_names(names).items()}


NAMINGS: Mapping[Naming, Callable[[Iterable[str]], Mapping[str, Slices]]] = {
    "sgm": _sgm,
    "clip": own_names,
    "open_clip": open_clip_names,
    "t5": own_names,
    "bfl": bfl_names,
    "mmdit": mmdit_names,
}
"""Naming -> a function from the names of all modules of a component to what each original name holds.

Where several original names hold the same rows, the first is the one that is written.
"""
