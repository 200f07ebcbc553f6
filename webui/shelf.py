"""The library as the page sees it: what a search finds, its pictures, and the trash."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from difflora import Library, LibraryEntry
from difflora.errors import LibraryError, listing
from webui.shared import Shared

PAGE = 24
COVER = 256
SORTS = ("name", "newest", "largest", "rank")
ANY = "any"
_BLANK, _FAINT = (52, 60, 84), (128, 140, 172)


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for, and which page of it."""

    words: str = ""
    family: str = ANY
    kind: str = ANY
    order: str = SORTS[0]
    page: int = 0


def found(library: Library, query: Query) -> list[LibraryEntry]:
    """The entries that a query asks for, in its order: every word is in the name, trigger, kind or hash."""
    words = query.words.casefold().split()
    entries = [
        entry
        for entry in library.entries.values()
        if all(word in _text(entry) for word in words)
        and query.family in (ANY, entry.family)
        and query.kind in (ANY, *entry.kinds)
    ]
    keys: dict[str, Any] = {
        "name": lambda entry: entry.name.casefold(),
        "newest": lambda entry: -entry.modified_ns,
        "largest": lambda entry: -entry.size,
        "rank": lambda entry: -max(entry.ranks, default=0),
    }
    return sorted(entries, key=keys[query.order])


def _text(entry: LibraryEntry) -> str:
    hashes = f"{entry.hashes.autov2} {entry.hashes.autov3} {entry.hashes.legacy}"
    return f"{entry.name} {entry.trigger} {' '.join(entry.kinds)} {hashes}".casefold()


def another() -> int:
    """A number that there has not been, for a State that tells when files have come or gone."""
    return time.monotonic_ns()


def to_trash(entry: LibraryEntry, shared: Shared) -> Path:
    """Moves an adapter and what lies beside it into a new folder of the trash, which is returned.

    Raises LibraryError if it is not in the folder that the page writes to, or cannot be moved.
    """
    own = shared.settings.adapters
    if not entry.path.resolve().is_relative_to(own.resolve()):
        raise LibraryError(f"{entry.name} lies in a folder that is only read: delete it there.")
    stem = entry.path.name if entry.path.is_dir() else entry.path.stem
    record = entry.path.with_name(f"{stem}.training.json")
    beside = [*entry.sidecars, *([entry.preview] if entry.preview else []), record]
    day = time.strftime("%Y%m%d-%H%M%S")
    target = Path(tempfile.mkdtemp(prefix=f"{day}-{stem[:60]}-", dir=shared.settings.trash))
    _move({path: target / path.relative_to(own) for path in (entry.path, *beside) if path.exists()})
    shared.library.refresh()
    return target


def out_of_trash(place: Path, shared: Shared) -> None:
    """Puts back what `to_trash` moved to `place`.

    Raises LibraryError if it is not there any more or cannot be moved, or naming every file that is in its
    way: nothing is overwritten, and then nothing is moved.
    """
    files = [path for path in sorted(place.rglob("*")) if path.is_symlink() or not path.is_dir()]
    if not files:
        raise LibraryError(f"{place.name} is not in the trash any more.")
    moves = {path: shared.settings.adapters / path.relative_to(place) for path in files}
    taken = [str(target) for target in moves.values() if os.path.lexists(target)]
    if taken:
        raise LibraryError(f"it cannot be put back, for other files have its names now:\n{listing(taken)}")
    _move(moves)
    shutil.rmtree(place)
    shared.library.refresh()


def _move(moves: Mapping[Path, Path]) -> None:
    for source, target in moves.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source, target)
        except OSError as error:
            raise LibraryError(f"{source} cannot be moved to {target}: {error.strerror}") from error


def cover(shared: Shared, entry: LibraryEntry) -> str:
    """A small copy of the picture beside an adapter, or a plain one."""
    try:
        source, changed = entry.preview, entry.preview.stat().st_mtime_ns if entry.preview else 0
    except OSError:  # it has gone since the folder was listed
        source, changed = None, 0
    folder = shared.private("covers")
    letters = _letters(entry.name)
    target = folder / (f"{entry.hashes.identity or entry.size}-{changed}.jpg" if source else f"{letters}.jpg")
    if not target.exists():
        partial = target.with_suffix(f".{secrets.token_hex(4)}")  # others may be shown the same one
        picture = _small(source) or _plain(letters)
        picture.save(partial, "JPEG", quality=88)
        os.replace(partial, target)
    return str(target)


def _small(source: Path | None) -> Image.Image | None:
    """A small copy; None of a broken picture, which is no reason not to show the adapter beside it."""
    if source is None:
        return None
    try:
        with Image.open(source) as picture:
            picture.draft("RGB", (COVER, COVER))
            image = picture.convert("RGB")
            image.thumbnail((COVER, COVER))
            return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def _letters(name: str) -> str:
    """The first letters of a name, as far as the font of `_plain` has them."""
    words = re.findall(r"[A-Za-z0-9]+", name.rpartition("/")[2])
    return "".join(word[0] for word in words[:2]).upper()


def _plain(letters: str) -> Image.Image:
    image = Image.new("RGB", (COVER, COVER), _BLANK)
    middle = (COVER / 2, COVER / 2 - 26)
    ImageDraw.Draw(image).text(middle, letters, _FAINT, ImageFont.load_default(84), anchor="mm")
    return image
