"""The header of a safetensors file, checked in full before a byte of tensor data is used.

The format: 8 bytes with the length n of the header (little endian), n bytes of JSON, then the tensor data.
The reference parser lets through duplicate names (the last one wins), unknown fields, control characters in
names and empty tensors; all of these are refused here.
"""

import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from difflora.errors import AdapterFileError, listing
from difflora.formats.plain import (
    DTYPES,
    MAX_DIM,
    MAX_DIMS,
    MAX_NAME,
    MAX_TENSORS,
    METADATA,
    Form,
    form,
    plain_header,
)

MAX_HEADER = 16 << 20
MAX_METADATA = 1_024

PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".pkl"})
PICKLE_MAGIC = (b"\x80", b"PK\x03\x04")  # a bare pickle, and the zip that torch.save writes

# Line breaks and tabs are ordinary in JSON and comments; the rest moves cursors or turns text around.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_FIELDS = frozenset({"dtype", "shape", "data_offsets"})
_JSON_STRING = re.compile(rb'"(?:[^"\\]++|\\.?)*+(?:"|\Z)', re.DOTALL)  # never goes back: linear in any text


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor, and where it lies: `begin` and `end` are byte offsets into the data section."""

    form: Form
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A valid header: the tensors in the order of their data, which they cover without hole or overlap.

    Control characters in the values of `metadata` are replaced by U+FFFD. `data_start` is the file offset of
    the data section.
    """

    tensors: Mapping[str, Form]
    metadata: Mapping[str, str]
    data_start: int
    file_size: int


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of the safetensors file `path`.

    Raises AdapterFileError naming everything that is wrong with it, or that it cannot be opened.
    """
    with open_plain(path) as file:
        return load_header(file, str(path))


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """`path` opened for reading. Raises AdapterFileError if it is no plain file, cannot be opened, or has the
    ending of a pickle."""
    if Path(path).suffix.lower() in PICKLE_SUFFIXES:
        open_any(path).close()
        raise AdapterFileError(_pickle_message(str(path)))
    return open_any(path)


def open_any(path: str | os.PathLike[str]) -> BinaryIO:
    """`open_plain` for a file that may be a pickle."""
    where = Path(path)
    try:
        mode = where.stat().st_mode
        if stat.S_ISDIR(mode):
            raise AdapterFileError(f"{where}: is a folder; name the .safetensors file inside it")
        if not stat.S_ISREG(mode):  # a FIFO would block for ever when opened
            raise AdapterFileError(f"{where}: is not a plain file")
        return open(where, "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise AdapterFileError(f"{clip(str(where))}: cannot be opened: {reason}") from error


def load_header(file: BinaryIO, where: str) -> Header:
    """The header of an open file, which is left at its first byte of data; `where` names it in errors."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if begins_as_pickle(start, size):
        raise AdapterFileError(_pickle_message(where))
    if len(start) < 8:
        raise AdapterFileError(f"{where}: not a safetensors file: {size} bytes, expected at least 8")
    length = int.from_bytes(start, "little")
    if not _plausible(start, size):
        raise AdapterFileError(
            f"{where}: not a whole safetensors file: the header claims {length} bytes of a file of {size}; "
            f"the limit is {MAX_HEADER}. Download or export it again"
        )
    text = file.read(length)
    if len(text) < length:
        raise AdapterFileError(f"{where}: became shorter while it was read")
    _require_few_parts(text, where)
    data_size = size - 8 - length
    if plain := plain_header(text, data_size):
        return Header(plain.tensors, _metadata(plain.metadata, where), 8 + length, size)
    content = _parse_json(text, where)
    metadata = _metadata(content.pop(METADATA, {}), where)
    entries = _entries(content, data_size, where)
    return Header(entries, metadata, 8 + length, size)


def begins_as_pickle(start: bytes, size: int) -> bool:
    """Whether the first 8 bytes of a file of `size` bytes are a pickle's.

    A safetensors file begins with the length of its header, which may be 640 = 0x0280, as pickles begin.
    """
    return start.startswith(PICKLE_MAGIC) and not _plausible(start, size)


def _plausible(start: bytes, size: int) -> bool:
    return 2 <= int.from_bytes(start, "little") <= min(MAX_HEADER, size - 8)


def _pickle_message(where: str) -> str:
    return (
        f"{where}: is a Python pickle, which can run any code when it is loaded, so it is not opened. "
        "Expected a .safetensors file; to take out its tensors alone, in a process of its own, run: "
        f'difflora convert "{where}"'
    )


def _require_few_parts(text: bytes, where: str) -> None:
    """Raises AdapterFileError for a header that would become millions of objects once it is parsed."""
    # Few headers have so many even with those inside their strings, which take long to be left out.
    if _has_many_parts(text) and _has_many_parts(_JSON_STRING.sub(b"", text)):
        raise AdapterFileError(f"{where}: the header lists more than {MAX_TENSORS} tensors could need")


def _has_many_parts(structure: bytes) -> bool:
    # A tensor has two lists, and between its parts and the next tensor at most as many commas as this.
    lists, commas = 2 * MAX_TENSORS, (MAX_DIMS + 4) * MAX_TENSORS
    return structure.count(b"[") > lists or (len(structure) > commas and structure.count(b",") > commas)


def _parse_json(text: bytes, where: str) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise AdapterFileError(f"{where}: the header starts with {text[:8]!r}, expected {{")
    try:
        content = json.loads(text.decode(), object_pairs_hook=_Objects(), parse_constant=_no_constants)
    except (ValueError, RecursionError) as error:  # ValueError: bad UTF-8, bad JSON, a number of 5000 digits
        raise AdapterFileError(f"{where}: the header cannot be read: {clip(str(error), 200)}") from error
    return content


class _Objects:
    """Makes each JSON object; gives up at a name that is there twice, or at too many objects."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self._count += 1
        # The metadata is one more object, and one more name; the object around all is one more again.
        if self._count > MAX_TENSORS + 2 or len(pairs) > MAX_TENSORS + 1:
            raise ValueError(f"it lists more than {MAX_TENSORS} tensors")
        content = dict(pairs)
        if len(content) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            raise ValueError(f"{clip(counts.most_common(1)[0][0])} is there twice")
        return content


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _metadata(content: Any, where: str) -> dict[str, str]:
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise AdapterFileError(f"{where}: {METADATA} must map text to text")
    if len(content) > MAX_METADATA:
        raise AdapterFileError(f"{where}: {len(content)} metadata entries, the limit is {MAX_METADATA}")
    problems = [f"metadata {clip(key)}: {reason}" for key in content if (reason := _name_problem(key))]
    for key, value in content.items():
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            problems.append(f"metadata {clip(key)}: is not valid Unicode")
    if problems:
        raise AdapterFileError(f"{where}: the metadata is malformed.\n{listing(problems)}")
    return {key: _UNPRINTABLE.sub("\ufffd", value) for key, value in content.items()}


def _entries(content: Mapping[str, Any], data_size: int, where: str) -> dict[str, Form]:
    if len(content) > MAX_TENSORS:
        raise AdapterFileError(f"{where}: it lists more than {MAX_TENSORS} tensors")
    problems: list[str] = []
    entries: dict[str, _Entry] = {}
    for name, fields in content.items():
        reason = _name_problem(name) or _entry_problem(fields)
        if reason:
            problems.append(f"{clip(name)}: {reason}")
            continue
        entries[name] = _Entry(form(fields["dtype"], tuple(fields["shape"])), *fields["data_offsets"])
    if not problems:
        if not entries:
            raise AdapterFileError(f"{where}: holds no tensors")
        entries = dict(sorted(entries.items(), key=lambda item: item[1].begin))
        problems = _cover_problems(entries, data_size)
    if problems:
        raise AdapterFileError(
            f"{where}: the header is malformed (problems: {len(problems)}).\n{listing(problems)}\n"
            "The file is damaged or was made to mislead; download or export it again"
        )
    return {name: entry.form for name, entry in entries.items()}


def _name_problem(name: str) -> str | None:
    if not 0 < len(name) <= MAX_NAME:
        return f"a name of {len(name)} letters, expected 1 to {MAX_NAME}"
    if not name.isprintable():
        return "control characters in the name"
    return None


def _entry_problem(fields: Any) -> str | None:
    if not isinstance(fields, dict) or fields.keys() != _FIELDS:
        return f"expected exactly the fields {', '.join(sorted(_FIELDS))}"
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"dtype is {clip(str(dtype))}, expected one of {', '.join(DTYPES)}"
    if not _whole_numbers(shape, MAX_DIM, count=range(MAX_DIMS + 1)):
        return f"the shape is {clip(str(shape))}, expected at most {MAX_DIMS} numbers from 0 to {MAX_DIM}"
    if not _whole_numbers(offsets, 2**63, count=range(2, 3)):
        return f"data_offsets are {clip(str(offsets))}, expected two byte offsets"
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if expected == 0:
        return f"the shape {shape} holds no values"
    if offsets[1] - offsets[0] != expected:
        return f"{offsets[1] - offsets[0]} bytes of data, expected {expected} for {dtype} {shape}"
    return None


def _whole_numbers(values: Any, limit: int, *, count: range) -> bool:
    """Whether `values` is a list of whole numbers up to `limit`, and of a length in `count`."""
    if not isinstance(values, list) or len(values) not in count:
        return False
    return all(type(value) is int and 0 <= value <= limit for value in values)  # bool is an int, but no size


def _cover_problems(entries: Mapping[str, _Entry], data_size: int) -> list[str]:
    """Every place where the data section is not covered exactly once."""
    problems = []
    end, last = 0, ""
    for name, entry in entries.items():
        if entry.begin < end:
            problems.append(
                f"{clip(name)}: {end - entry.begin} bytes of its data overlap those of {clip(last)}"
            )
        elif entry.begin > end:
            problems.append(f"{clip(name)}: a hole of {entry.begin - end} bytes lies before its data")
        end, last = max(end, entry.end), name
    if end > data_size:
        problems.append(
            f"{clip(last)}: its data ends at byte {end} of the data section, which has {data_size}"
        )
    elif end < data_size:
        problems.append(f"{data_size - end} bytes after the last tensor belong to none")
    return problems


def clip(text: str, limit: int = 160) -> str:
    """`text` fit for an error message: unprintable letters escaped, and no longer than `limit`."""
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text[:limit])
    return shown if len(text) <= limit else f"{shown}..."
