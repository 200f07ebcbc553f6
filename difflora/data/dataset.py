"""What a scanned folder holds."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Item:
    """One usable image.

    `name` is its path inside the folder, with `/`. `caption` is without trigger. `size` is (width, height) in
    pixels, upright. `sha256` is of the bytes of the file.
    """

    path: Path
    name: str
    caption: str
    repeats: int
    size: tuple[int, int]
    sha256: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a file or folder, by its name inside the data folder, cannot be used."""

    name: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """The images to learn from, ordered by name (upper and lower case alike, then exactly).

    `skipped`: what was left out because `skip_bad` is set. `ignored`: names of files that are neither an
    image nor the caption of one.
    """

    root: Path
    items: tuple[Item, ...]
    skipped: tuple[Problem, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of every item."""
        return tuple(item.size for item in self.items)

    @property
    def repeats(self) -> tuple[int, ...]:
        """The repeats of every item."""
        return tuple(item.repeats for item in self.items)

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits that change with any image, caption or repeat, not with the folder's place."""
        facts = [[item.sha256, item.caption, item.repeats] for item in self.items]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
