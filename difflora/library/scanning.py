"""A folder listed: which adapters are in it, and what lies beside them. No file is opened."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from difflora.errors import LibraryError
from difflora.families import FAMILIES
from difflora.formats.folders import UNFINISHED
from difflora.formats.peft import CONFIG, TENSORS
from difflora.library.notes import CIVITAI, SUFFIX, USER, stem_of

PREVIEW_SUFFIXES = tuple(
    f"{middle}.{kind}" for middle in ("", ".preview") for kind in ("png", "jpg", "jpeg", "webp", "gif")
)
CHECKPOINT = {"adapter.safetensors", "optimizer.safetensors"}  # the state of a training, not made to be used
_COMPONENTS = {component.name for family in FAMILIES for component in family.components}


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file as it was when it was looked at; with another size or time it is another one."""

    size: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Found:
    """An adapter file or PEFT folder, and the notes and the picture beside it."""

    path: Path
    stamp: Stamp
    sidecars: Mapping[str, Stamp] = field(default_factory=dict)
    """Ending -> stamp."""
    preview: Path | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """Name -> what was found, and name -> why something cannot be used. Names are paths below the root."""

    files: Mapping[str, Found]
    unusable: Mapping[str, str]


def scan(root: Path) -> Listing:
    """The adapters in a folder and its subfolders; links out of it are named and not followed.

    Raises LibraryError if there is no such folder.
    """
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise LibraryError(f"the adapter folder {root} {kind}: expected a folder of {SUFFIX} files.")
    files: dict[str, Found] = {}
    unusable: dict[str, str] = {}
    for path, found in _walk(root):
        # A name that is not Unicode could be neither typed nor kept in a recipe.
        given = path.relative_to(root).as_posix()
        readable = given.encode(errors="replace").decode()
        name = readable[: -len(SUFFIX)] if readable.casefold().endswith(SUFFIX) else readable
        if given != readable:
            found = "has a file name that is no valid text: rename it."
        elif name in files and isinstance(found, Found):
            found = f"has the same name as {files[name].path.name}: rename one of them."
        if isinstance(found, Found):
            files[name] = found
        else:
            unusable[readable if name in files else name] = found
    return Listing(dict(sorted(files.items())), unusable)


def _walk(root: Path) -> Iterator[tuple[Path, Found | str]]:
    """Every adapter below `root`, and what cannot be used with the reason."""
    # realpath and not Path.resolve, which raises on a link to itself.
    inside = Path(os.path.realpath(root))
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as opened:
                here = {entry.name: entry for entry in sorted(opened, key=lambda entry: entry.name)}
        except OSError as error:
            yield folder, f"cannot be listed: {error.strerror}"
            continue
        if here.keys() >= CHECKPOINT:
            continue
        subfolders: list[Path] = []
        for name, entry in here.items():
            path = folder / name
            is_folder = os.path.isdir(path) if entry.is_symlink() else entry.is_dir()  # a loop is none
            if not is_folder and not name.casefold().endswith(SUFFIX):
                continue
            if entry.is_symlink() and not (target := Path(os.path.realpath(path))).is_relative_to(inside):
                yield path, f"is a link out of the folder, to {target}: it is not followed."
            elif is_folder and not entry.is_symlink():
                if not (name.startswith(".") and name.endswith(UNFINISHED)):
                    subfolders.append(path)
            elif not is_folder and not (name == TENSORS and CONFIG in here and folder != root):
                yield path, _file(path, entry, here)
        for path, parts in _peft(folder, subfolders).items():
            yield path, _joined(path, parts, here)
            subfolders = [one for one in subfolders if one != path and one not in parts]
        waiting += reversed(subfolders)


def _peft(folder: Path, subfolders: list[Path]) -> dict[Path, list[Path]]:
    """PEFT adapter -> the folders that it consists of, among these subfolders."""
    configured = [path for path in subfolders if (path / CONFIG).is_file() and (path / TENSORS).is_file()]
    split = {
        path: parts
        for path in subfolders
        if path not in configured
        and (parts := [path / name for name in sorted(_COMPONENTS) if (path / name / CONFIG).is_file()])
    }
    return {path: [path] for path in configured} | split


def _joined(path: Path, parts: list[Path], beside: Mapping[str, os.DirEntry[str]]) -> Found | str:
    try:
        states = [(part / name).stat() for part in parts for name in (CONFIG, TENSORS)]
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    stamp = Stamp(sum(one.st_size for one in states), max(one.st_mtime_ns for one in states))
    return _with_sidecars(path, stamp, beside)


def _file(path: Path, entry: os.DirEntry[str], beside: Mapping[str, os.DirEntry[str]]) -> Found | str:
    try:
        state = entry.stat()
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    return _with_sidecars(path, Stamp(state.st_size, state.st_mtime_ns), beside)


def _with_sidecars(path: Path, stamp: Stamp, beside: Mapping[str, os.DirEntry[str]]) -> Found:
    """What is beside an adapter: plain files only, as a link could show what is elsewhere."""
    stem = stem_of(path)

    def plain(ending: str) -> os.DirEntry[str] | None:
        entry = beside.get(stem + ending)
        return entry if entry is not None and entry.is_file(follow_symlinks=False) else None

    sidecars = {
        ending: Stamp(state.st_size, state.st_mtime_ns)
        for ending in (USER, CIVITAI)
        if (entry := plain(ending)) is not None and (state := entry.stat(follow_symlinks=False))
    }
    preview = next((path.parent / (stem + ending) for ending in PREVIEW_SUFFIXES if plain(ending)), None)
    return Found(path, stamp, sidecars, preview)
