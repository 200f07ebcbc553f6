"""The library as the page sees it: what a search finds, its pictures, and the trash."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from difflora import Library, LibraryEntry
from difflora.errors import LibraryError
from webui.shared import Shared

PAGE = 24
COVER = 256
SORTS = ("name", "newest", "largest", "rank")
ANY = "any"
_BLANK = (52, 60, 84)


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
        "newest": lambda entry: -entry.path.stat().st_mtime,
        "largest": lambda entry: -entry.size,
        "rank": lambda entry: -max(entry.ranks, default=0),
    }
    return sorted(entries, key=keys[query.order])


def _text(entry: LibraryEntry) -> str:
    hashes = f"{entry.hashes.autov2} {entry.hashes.autov3} {entry.hashes.legacy}"
    return f"{entry.name} {entry.trigger} {' '.join(entry.kinds)} {hashes}".casefold()


def to_trash(entry: LibraryEntry, shared: Shared) -> Path:
    """Moves an adapter and what lies beside it into the trash folder; returns where it is.

    Raises LibraryError if it is not in the folder that the page writes to.
    """
    own = shared.settings.adapters.resolve()
    if not entry.path.resolve().is_relative_to(own):
        raise LibraryError(f"{entry.name} lies in a folder that is only read: delete it there.")
    target = shared.settings.trash / f"{time.strftime('%Y%m%d-%H%M%S')}-{entry.path.stem}"
    target.mkdir(parents=True)
    beside = [*entry.sidecars, *([entry.preview] if entry.preview else [])]
    record = entry.path.with_suffix(".training.json")
    for path in (entry.path, *beside, *([record] if record.exists() else [])):
        shutil.move(path, target / path.name)
    shared.library.refresh()
    return target


def cover(shared: Shared, entry: LibraryEntry) -> str:
    """A small copy of the picture beside an adapter, or a plain one."""
    folder = shared.private("covers")
    source = entry.preview
    key = f"{entry.hashes.identity or entry.size}-{source.stat().st_mtime_ns if source else 0}"
    target = folder / f"{key}.jpg"
    if not target.exists():
        image = Image.new("RGB", (COVER, COVER), _BLANK)
        if source is not None:
            try:
                with Image.open(source) as picture:
                    image = picture.convert("RGB")
                    image.thumbnail((COVER, COVER))
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                pass  # a broken picture beside a good adapter is no reason not to show the adapter
        image.save(target, quality=88)
    return str(target)
