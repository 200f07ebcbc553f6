"""What an adapter is read from: one safetensors file, or the folders that PEFT and diffusers save."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from difflora.errors import AdapterFileError
from difflora.formats import peft
from difflora.formats.container import TensorFile, load_tensors
from difflora.formats.format import Metadata
from difflora.formats.peft import PeftFolder
from difflora.formats.peft_config import METADATA_KEY
from difflora.formats.safe import Form, Header, load_header, open_plain

MAX_DATA = 16 << 30
"""Bytes of tensors that a file may have, read or written. Differences of all of SDXL are 14 GB in float32."""

_DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, slots=True)
class Source:
    """The tensors of an adapter as their headers describe them; `load` reads them."""

    where: Path
    size: int
    forms: Mapping[str, Form]
    metadata: Metadata
    load: Callable[[], TensorFile]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape."""
        return {name: form.shape for name, form in self.forms.items()}


def is_there(path: Path) -> bool:
    """Whether `path` is a file, or a folder that `opened` takes. Raises AdapterFileError as that does."""
    return path.is_file() or (path / _DIFFUSERS_FILE).is_file() or bool(peft.folders_of(path))


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Source]:
    """The source at `path`, whose files stay open while the block runs: what was checked is what is read.

    Raises AdapterFileError if there is none, a header is malformed, or a file is too large for an adapter.
    """
    where = Path(path)
    there = os.path.exists(where)  # False also for names that the system refuses: too long, or with a NUL
    if there and (where / _DIFFUSERS_FILE).is_file():
        where = where / _DIFFUSERS_FILE
    folders = peft.folders_of(where) if there else ()
    with ExitStack() as stack:
        if folders:
            yield _joined(where, [(one, _file(one.folder / peft.TENSORS, stack)) for one in folders])
        else:
            yield _file(where, stack)


def _file(path: Path, stack: ExitStack) -> Source:
    file = stack.enter_context(open_plain(path))
    header = load_header(file, str(path))
    if header.file_size - header.data_start > MAX_DATA:
        raise AdapterFileError(
            f"{path}: {header.file_size >> 20} MiB, the limit for an adapter is {MAX_DATA >> 20} MiB. "
            "A file of that size is a base model; it is loaded as one"
        )
    return _source(path, header, lambda: load_tensors(file, header, str(path)))


def _source(path: Path, header: Header, load: Callable[[], TensorFile]) -> Source:
    return Source(path, header.file_size, header.tensors, header.metadata, load)


def _joined(where: Path, parts: Sequence[tuple[PeftFolder, Source]]) -> Source:
    """PEFT folders as one source, whose tensors are named after their component."""
    located = [(peft.located(folder, source.forms), source) for folder, source in parts]
    forms = {
        peft.outer(folder.component, name): form
        for folder, source in located
        for name, form in source.forms.items()
    }
    metadata = {key: value for _, source in reversed(parts) for key, value in source.metadata.items()}
    metadata[METADATA_KEY] = peft.configuration([folder for folder, _ in located])

    def load() -> TensorFile:
        files = [(folder.component, source.load()) for folder, source in located]
        tensors = {
            peft.outer(component, name): tensor
            for component, file in files
            for name, tensor in file.tensors.items()
        }
        return TensorFile(tensors, metadata, peft.data_hash([file.data_hash for _, file in files]))

    folder = where.parent if where.is_file() else where
    return Source(folder, sum(source.size for _, source in parts), forms, metadata, load)
