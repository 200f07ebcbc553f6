"""Folders that are written whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from difflora.files import fsync_folder

UNFINISHED = ".new"
"""What the name of a folder ends in, after a dot at its beginning, while it is written."""


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """A folder with all that is in the folder `target`, or nothing where there is none, that takes its place
    when the block ends without an error. Files in it are to be replaced, not written into: they are the old
    ones under a second name.

    Whoever looks finds the old folder or the new one, or for a moment between two renames none at all; a
    program killed then leaves the old one beside it, as `.NAME.….old`. Raises OSError as the system reports
    it; what was there before is then untouched.
    """
    place = Path(os.path.realpath(target))  # of a link, the folder that it leads to
    stem = f".{place.name[:64]}.{secrets.token_hex(4)}"
    new, old = place.with_name(stem + UNFINISHED), place.with_name(f"{stem}.old")
    try:
        if place.exists():
            shutil.copytree(place, new, symlinks=True, copy_function=_again)
        else:
            new.mkdir(parents=True)
        yield new
        if place.exists():
            os.rename(place, old)
        try:
            os.rename(new, place)
        except BaseException:
            if old.exists():
                os.rename(old, place)
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    fsync_folder(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def _again(source: str, target: str) -> None:
    """The same file under a second name, or a copy where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
