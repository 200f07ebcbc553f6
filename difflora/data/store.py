"""Computed tensors kept by key, in memory and, where a folder is given, on disk for the next run."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from difflora.errors import AdapterFileError, DataError
from difflora.formats.container import data_hash_of, read_tensors, write_tensors

Named = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Counts:
    """Entries that came from `memory`, `disk`, or were `computed`; `replaced` ones were damaged on disk."""

    memory: int = 0
    disk: int = 0
    computed: int = 0
    replaced: int = 0


class TensorStore:
    """Named tensors by key.

    An entry on disk carries the hash of its key and of its data; one that disagrees with either is computed
    again, never used.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.counts = Counts()
        self._memory: dict[str, Named] = {}

    def get(self, key: str, compute: Callable[[], Named]) -> Named:
        """The tensors of `key` (on the CPU, not to be changed), computed only where no sound entry exists.

        Raises DataError if the folder cannot be written.
        """
        if key in self._memory:
            self.counts = replace(self.counts, memory=self.counts.memory + 1)
            return self._memory[key]
        tensors = self._read(key)
        if tensors is None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in compute().items()}
            self._write(key, tensors)
            self.counts = replace(self.counts, computed=self.counts.computed + 1)
        else:
            self.counts = replace(self.counts, disk=self.counts.disk + 1)
        self._memory[key] = tensors
        return tensors

    def path(self, key: str) -> Path | None:
        """The file of a key, in one of 256 sub-folders so that none grows long; None without a folder."""
        name = _digest(key)
        return None if self.folder is None else self.folder / name[:2] / f"{name}.safetensors"

    def _read(self, key: str) -> Named | None:
        path = self.path(key)
        if path is None or not path.exists():
            return None
        try:
            file = read_tensors(path)
        except AdapterFileError:
            file = None
        if file is None or dict(file.metadata) != {"key": _digest(key), "data_hash": file.data_hash}:
            self.counts = replace(self.counts, replaced=self.counts.replaced + 1)
            return None
        return file.tensors

    def _write(self, key: str, tensors: Named) -> None:
        path = self.path(key)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors, {"key": _digest(key), "data_hash": data_hash_of(tensors)})
        except OSError as error:
            raise DataError(
                f"{path}: the cache cannot be written: {error.strerror or error}. "
                "Free some space, set cache_folder to another place, or cache_latents to 'memory'."
            ) from error


def _digest(key: str) -> str:
    # the key itself may hold anything, a caption for one
    return hashlib.sha256(key.encode("utf-8", errors="surrogatepass")).hexdigest()
