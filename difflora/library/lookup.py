"""Names looked up in a list, never joined to a path, and what to say of those that are not in it."""

import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath

from difflora.errors import LibraryError, listing
from difflora.library.notes import SUFFIX


def labels(folders: Sequence[Path]) -> tuple[str, ...]:
    """What the names of each folder begin with: "" for one folder, else the end of its path that tells it
    from the others. Raises LibraryError if one lies in another, whose files would then count twice."""
    if len(folders) == 1:
        return ("",)
    real = [PurePath(os.path.realpath(folder)) for folder in folders]
    inside = [
        f"{folders[place]} in {folders[other]}"
        for place, one in enumerate(real)
        for other, outer in enumerate(real)
        if place != other and one.is_relative_to(outer)
    ]
    if inside:
        raise LibraryError(f"adapter folders that lie in each other; name the outer one:\n{listing(inside)}")
    return tuple(f"{_ending(one, [other for other in real if other != one])}/" for one in real)


def names_meant(name: str, names: Collection[str]) -> list[str]:
    """Names that end in `name` at a folder's border; one that equals it stands alone."""
    wanted = _wanted(name)
    if wanted in names:
        return [wanted]
    return [one for one in names if one.endswith("/" + wanted)] if wanted else []


def not_found(name: str, where: str, names: Sequence[str], unusable: Mapping[str, str]) -> str:
    """The message for a name that means no file, with those that are near."""
    meant = names_meant(name, unusable)
    if meant:
        return f"the adapter '{name}' in {where} {unusable[meant[0]]}"
    short = {known.rpartition("/")[2].casefold(): known for known in names}
    short |= {known.casefold(): known for known in names}
    wanted = _wanted(name).casefold()
    near = dict.fromkeys(short[key] for key in difflib.get_close_matches(wanted, short, 5, 0.6))
    if not names:
        return f"no adapter is called '{name}': {where} holds no {SUFFIX} files."
    hint = "Near names" if near else "The adapters are"
    return f"no adapter in {where} is called '{name}'. {hint}:\n{listing(list(near) or list(names))}"


def _wanted(name: str) -> str:
    return name.replace("\\", "/").removesuffix(SUFFIX)


def _ending(path: PurePath, others: Sequence[PurePath]) -> str:
    """The shortest end of a path that no other one has."""
    for count in range(1, len(path.parts)):
        own = path.parts[-count:]
        if all(other.parts[-count:] != own for other in others):
            return "/".join(own)
    return path.as_posix()
