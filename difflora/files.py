"""Files that are written whole or not at all."""

import errno
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

STALE_SECONDS = 600  # nobody writes to a temporary file that has not grown for so long: its writer was killed


def atomic_write(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes `content` to `path`, which at every moment holds either what it held before or all of `content`.

    Raises OSError as the system reports it; what was there before is then untouched.
    """
    with replacing(Path(path)) as file:
        file.write(content)


@contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `target`, on disk, when the block ends without an error."""
    stem = f".{target.name[:64]}."
    _sweep(target.parent, stem)
    temporary = target.parent / f"{stem}{secrets.token_hex(4)}.tmp"
    try:
        # Mode 0666 less the umask, as any program's files: helpers for temporary files give 0600.
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(target.parent)


def _sweep(folder: Path, stem: str) -> None:
    """Removes what killed writers of the same file have left behind."""
    for entry in os.scandir(folder):
        if entry.name.startswith(stem) and entry.name.endswith(".tmp"):
            leftover = Path(entry.path)
            with suppress(FileNotFoundError):  # another writer sweeps as well
                if time.time() - leftover.stat().st_mtime > STALE_SECONDS:
                    leftover.unlink()


def fsync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut, where the file system can: Windows has no such call and
    needs none, and some network mounts refuse it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(descriptor)
