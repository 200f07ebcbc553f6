"""What is known of a folder's files, kept between runs: one JSON file a folder, in the user's cache.

It may be deleted at any time, and is made anew where it is damaged, of another folder or another version.
"""

import hashlib
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

import difflora.families
import difflora.formats
import difflora.kinds
from difflora.files import atomic_write
from difflora.library import entry, notes
from difflora.library.entry import Facts
from difflora.library.notes import Sidecars
from difflora.library.scanning import Stamp

LAYOUT = 1
STALE_SECONDS = 90 * 24 * 3600  # an index that was not used for so long is of a folder that is gone
_SUFFIX = ".index.json"


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one file while its stamps stay the same. Hashes are computed ones, "" if none."""

    stamp: Stamp
    facts: Facts | None = None
    data_hash: str = ""
    file_hash: str = ""
    sidecars: Sidecars = field(default_factory=Sidecars)
    beside: Mapping[str, Stamp] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Index:
    layout: int
    root: str
    reader: str
    rows: dict[str, Row]


_ADAPTER = TypeAdapter(_Index)


def cache_folder() -> Path:
    """Where indexes are kept: $DIFFLORA_CACHE, or the place for caches of this system's user."""
    if given := os.environ.get("DIFFLORA_CACHE"):
        return Path(given) / "library"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "difflora" / "library"


def index_path(folder: Path, root: Path) -> Path:
    """The index file of the adapter folder `root`, among those in `folder`."""
    key = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return folder / f"{key}{_SUFFIX}"


def load_rows(path: Path, root: Path) -> dict[str, Row]:
    """Name -> row, as kept; nothing if there is no index or none that can be used.

    Facts that another version of the readers found are left out, computed hashes stay.
    """
    try:
        index = _ADAPTER.validate_json(path.read_bytes())
        os.utime(path)
    except (OSError, ValidationError):
        return {}
    if index.layout != LAYOUT or index.root != _spelled(root):
        return {}
    if index.reader != _reader():
        return {name: Row(row.stamp, None, row.data_hash, row.file_hash) for name, row in index.rows.items()}
    return index.rows


def save_rows(path: Path, root: Path, rows: Mapping[str, Row]) -> None:
    """Keeps the rows; whoever reads at the same time sees the old index or the new one.

    Raises OSError as the system reports it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    index = _Index(LAYOUT, _spelled(root), _reader(), dict(rows))
    atomic_write(path, _ADAPTER.dump_json(index))
    for other in path.parent.glob(f"*{_SUFFIX}"):
        if time.time() - other.stat().st_mtime > STALE_SECONDS:
            other.unlink(missing_ok=True)


def _spelled(root: Path) -> str:
    return os.path.realpath(root).encode(errors="replace").decode()


@cache
def _reader() -> str:
    """Changes whenever the code that reads files does."""
    digest = hashlib.sha256()
    folders = [
        Path(str(one.__file__)).parent for one in (difflora.families, difflora.formats, difflora.kinds)
    ]
    files = [file for folder in folders for file in sorted(folder.rglob("*.py"))]
    for file in [*files, Path(entry.__file__), Path(notes.__file__)]:
        state = file.stat()
        digest.update(f"{file.name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
