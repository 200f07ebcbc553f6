"""safetensors files: read with every byte accounted for, written atomically and reproducibly."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from difflora.errors import AdapterFileError, listing
from difflora.files import replacing
from difflora.formats.safe import DTYPES, Header, clip, load_header, open_plain
from difflora.threads import one_thread

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_RANK = {code: place for place, code in enumerate(DTYPES)}


@dataclass(frozen=True, slots=True)
class TensorFile:
    """What a safetensors file holds; `data_hash` is the sha256 of its data section (AutoV3 in full)."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    data_hash: str


@dataclass(frozen=True, slots=True)
class WrittenBytes:
    """The sha256 of a written file's data section and of the whole file, 64 hex digits each."""

    data_hash: str
    file_hash: str


def read_tensors(path: str | os.PathLike[str]) -> TensorFile:
    """Every tensor of a safetensors file on the CPU, each in memory of its own, in the order of their data.

    The file is opened once and read once, so that what was checked is what is used. Values are not judged
    here: see `not_finite`.

    Raises AdapterFileError if the file is malformed or shorter than its header says.
    """
    with open_plain(path) as file:
        return load_tensors(file, load_header(file, str(path)), str(path))


def load_tensors(file: BinaryIO, header: Header, where: str) -> TensorFile:
    """The tensors of an open file that stands where `load_header` left it; `where` names it in errors."""
    digest = hashlib.sha256()
    tensors: dict[str, Tensor] = {}
    for name, form in header.tensors.items():
        tensor = torch.empty(form.shape, dtype=DTYPES[form.dtype])
        view = _bytes(tensor)
        if file.readinto(view) != len(view):  # pyright: ignore[reportAttributeAccessIssue]
            raise AdapterFileError(f"{where}: {clip(name)}: the file became shorter while it was read")
        if form.dtype == "BOOL" and bool((tensor.reshape(-1).view(torch.uint8) > 1).any()):
            raise AdapterFileError(f"{where}: {clip(name)}: a BOOL is neither 0 nor 1")
        digest.update(view)
        tensors[name] = tensor
    return TensorFile(tensors, header.metadata, digest.hexdigest())


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """One line for each tensor that holds NaN or an infinity."""
    problems = []
    with one_thread():
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                count = int((~torch.isfinite(tensor)).sum())
                problems.append(f"{clip(name)}: {count} of {tensor.numel()} values are NaN or infinite")
    return problems


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> WrittenBytes:
    """Writes a safetensors file; the same tensors and metadata give the same bytes in any process.

    The data section is in the order of the safetensors library (dtype by alignment, widest first, then
    name), so its sha256 is the hash other tools compute. The file appears under its name only once it is
    whole, on disk, and its header has been read back.

    Raises AdapterFileError if there is nothing to write or what was written does not read back, OSError as
    the system reports it; a file that was there before is then untouched.
    """
    target = Path(path)
    data_digest, file_digest = hashlib.sha256(), hashlib.sha256()
    _writable(tensors, target)
    with replacing(target) as file:
        head = header_bytes(tensors, metadata or {})
        file.write(head)
        file_digest.update(head)
        for view in _views(tensors):
            file.write(view)
            file_digest.update(view)
            data_digest.update(view)
        file.flush()
        _check_written(Path(file.name), tensors, target)
    return WrittenBytes(data_digest.hexdigest(), file_digest.hexdigest())


def data_hash_of(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 that the data section of a file of these tensors has."""
    digest = hashlib.sha256()
    for view in _views(tensors):
        digest.update(view)
    return digest.hexdigest()


def window_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], start: int, stop: int) -> bytes:
    """Bytes `start` to `stop` of the file that these tensors and this metadata make, without writing it."""
    found = bytearray()
    position = 0
    for piece in (memoryview(header_bytes(tensors, metadata)), *_views(tensors)):
        found += piece[max(0, start - position) : max(0, stop - position)]
        position += len(piece)
        if position >= stop:
            break
    return bytes(found)


def header_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The length and the header of a file of these tensors; its metadata is sorted."""
    content: dict[str, object] = {}
    if metadata:
        content["__metadata__"] = dict(sorted(metadata.items()))
    position = 0
    for name in _order(tensors):
        tensor = tensors[name]
        end = position + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        content[name] = {"dtype": _CODES[tensor.dtype], "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _order(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(tensors, key=lambda name: (_RANK[_CODES[tensors[name].dtype]], name))


def _views(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    return (_bytes(tensors[name].detach().cpu().contiguous()) for name in _order(tensors))


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _writable(tensors: Mapping[str, Tensor], where: Path) -> None:
    problems = [
        f"{clip(name)}: {str(tensor.dtype).removeprefix('torch.')} cannot be stored"
        for name, tensor in tensors.items()
        if tensor.dtype not in _CODES
    ]
    if problems or not tensors:
        raise AdapterFileError(
            f"{where}: cannot be written.\n{listing(problems or ['there are no tensors'])}"
        )


def _check_written(temporary: Path, tensors: Mapping[str, Tensor], target: Path) -> None:
    """Raises AdapterFileError unless the header on disk is valid and lists these tensors."""
    with open(temporary, "rb") as file:
        header = load_header(file, str(target))
    found = {name: (form.dtype, form.shape) for name, form in header.tensors.items()}
    wanted = {name: (_CODES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}
    if found != wanted:
        raise AdapterFileError(f"{target}: what was written does not read back; the disk may be faulty")
