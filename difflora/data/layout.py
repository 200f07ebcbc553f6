"""Where the images of a data folder lie: in itself, or in folders inside it named as kohya's trainers do."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from difflora.data import images
from difflora.data.dataset import Problem
from difflora.errors import DataError, listing

MAX_REPEATS = 1000
_NUMBERED = re.compile(r"(\d+)_(.*)", re.DOTALL)
_NOT_DATA = frozenset({"__macosx", "__pycache__", "thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class Concept:
    """A folder whose files are images and captions.

    `prefix` leads from the data folder to its files ("" or "10_cat/"). `caption` is what its name says of
    images without a caption file, "" for a folder without a number.
    """

    path: Path
    prefix: str
    repeats: int
    caption: str


def find_concepts(root: Path) -> tuple[tuple[Concept, ...], tuple[Problem, ...]]:
    """The folders that hold images, sorted by name, and the folders that should not be there.

    Raises DataError if `root` cannot be listed or holds no image where one is looked for.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}: `data` names the folder with the images to learn from")
    files, folders = _listed(root)
    if any(looks_like_image(name) for name in files):
        concept, misnamed = _concept(root, prefix="", name=root.resolve().name)
        return (concept,), (*misnamed, *_unread(root, folders))
    found: list[Concept] = []
    problems: list[Problem] = []
    plain: list[str] = []
    for name in folders:
        if not holds_images(root / name):
            if _NUMBERED.fullmatch(name):
                problems.append(Problem(f"{name}/", "holds no image"))
        elif not _NUMBERED.fullmatch(name):
            plain.append(name)
        else:
            concept, more = _concept(root / name, prefix=f"{name}/", name=name)
            found.append(concept)
            inner = _listed(root / name)[1]
            problems += [*more, *_unread(root / name, inner, prefix=f"{name}/")]
    if not found:
        raise DataError(_nothing_found(root, folders, plain))
    reason = "holds images, but its name has no number of repeats: rename it to 1_{0} to learn from it too"
    problems += [Problem(f"{name}/", reason.format(name)) for name in plain]
    return tuple(found), tuple(problems)


def visible(path: Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder, without hidden ones and those that operating systems leave behind."""
    try:
        with os.scandir(path) as entries:
            yield from (
                e for e in entries if not e.name.startswith(".") and e.name.casefold() not in _NOT_DATA
            )
    except OSError as error:
        raise DataError(f"{path}: cannot be listed: {error.strerror or error}") from error


def looks_like_image(name: str) -> bool:
    """Whether the name ends as a picture's does, of an accepted format or not."""
    return Path(name).suffix.casefold() in (*images.EXTENSIONS, *images.REFUSED_EXTENSIONS)


def holds_images(path: Path) -> bool:
    """Whether any visible file in a folder, at any depth, is named as a picture."""
    files, folders = _listed(path)
    # links inside are not followed: they may lead in circles
    inner = (path / name for name in folders if not (path / name).is_symlink())
    return any(map(looks_like_image, files)) or any(map(holds_images, inner))


def by_name(name: str) -> tuple[str, str]:
    """The sort key of names: the same order on file systems that mind the case and those that do not."""
    return name.casefold(), name


def _listed(path: Path) -> tuple[list[str], list[str]]:
    """The names of files and of folders, sorted."""
    files, folders = [], []
    for entry in visible(path):
        # entry.is_dir() raises on a link that leads to itself
        (folders if os.path.isdir(entry.path) else files).append(entry.name)
    return sorted(files, key=by_name), sorted(folders, key=by_name)


def _concept(path: Path, *, prefix: str, name: str) -> tuple[Concept, tuple[Problem, ...]]:
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return Concept(path, prefix, repeats=1, caption=""), ()
    repeats = int(match[1])
    problems: tuple[Problem, ...] = ()
    if not 1 <= repeats <= MAX_REPEATS:
        reason = f"the folder name {name} asks for {repeats} repeats, expected 1 to {MAX_REPEATS}: rename it"
        problems = (Problem(prefix or "./", reason),)
    return Concept(path, prefix, repeats=repeats, caption=" ".join(match[2].split())), problems


def _unread(path: Path, folders: list[str], *, prefix: str = "") -> list[Problem]:
    """Folders beside images that hold images themselves: left unread they would be missed without a word."""
    reason = "holds images too, but lies beside images and is not read: move them up, or the folder elsewhere"
    return [Problem(f"{prefix}{name}/", reason) for name in folders if holds_images(path / name)]


def _nothing_found(root: Path, folders: list[str], plain: list[str]) -> str:
    if plain:
        return (
            f"{root} holds no image itself, but these folders inside it do:\n{listing(plain)}\n"
            f"Point `data` at one of them, or rename each to REPEATS_NAME, such as 1_{plain[0]}, to use all."
        )
    inside = f", nor does any of its {len(folders)} folders" if folders else ""
    return f"{root} holds no image{inside}. Expected files ending in {', '.join(images.EXTENSIONS)}"
