"""Headers in the exact spelling of the safetensors library, as nearly all are: taken in column by column.

Going through the JSON of a header piece by piece takes four times as long, and a library has thousands of
them. Only that can say what is wrong with a header, and it has the last word on each that is not taken here.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import sub
from typing import NamedTuple

import torch

MAX_TENSORS = 20_000
MAX_NAME = 256
MAX_DIMS = 8
MAX_DIM = 2**31 - 1

# In the order of the library's own enumeration, last first: its data section is sorted by this, then by name.
DTYPES: Mapping[str, torch.dtype] = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

METADATA = "__metadata__"

_METADATA_FIRST = f'{{"{METADATA}":'
# An object is a tuple of its pairs, so that a name that is there twice is seen.
_PAIRS = json.JSONDecoder(object_pairs_hook=tuple)
# Both never go back: linear in any text.
_TENSOR = re.compile(
    r'"([^"]++)":\{"dtype":"([A-Z0-9]++)","shape":\[([0-9,]*+)\],'
    r'"data_offsets":\[(0|[1-9][0-9]{0,18}+),([1-9][0-9]{0,18}+)\]\}'
)
_SHAPE = re.compile(rf"(?:[1-9][0-9]{{0,9}}+(?:,[1-9][0-9]{{0,9}}+){{0,{MAX_DIMS - 1}}}+)?")


class TensorEntry(NamedTuple):
    """Where one tensor lies: `begin` and `end` are byte offsets into the data section."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class PlainHeader(NamedTuple):
    """The tensors in the order of their data, which they cover without hole or overlap, and the metadata, of
    which all that is known is that they are text."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


class _Form(NamedTuple):
    shape: tuple[int, ...]
    size: int
    """In bytes."""


def plain_header(text: bytes, data_size: int) -> PlainHeader | None:
    """What a header says of `data_size` bytes of data, if it is plain and sound; None for any other."""
    try:
        whole = text.decode()
        pairs, start = (), 0
        if whole.startswith(_METADATA_FIRST):
            pairs, start = _PAIRS.raw_decode(whole, len(_METADATA_FIRST))
    except (ValueError, RecursionError):
        return None
    before, *columns = _TENSOR.split(whole[start:])
    if before != ("," if start else "{") or not _only_commas(columns[5::6]):
        return None
    if not isinstance(pairs, tuple) or not all(isinstance(value, str) for _, value in pairs):
        return None
    metadata = dict(pairs)
    tensors = _tensors(columns)
    end = next(reversed(tensors.values())).end if tensors else 0
    return PlainHeader(tensors, metadata) if end == data_size > 0 and len(metadata) == len(pairs) else None


def _only_commas(between: Sequence[str]) -> bool:
    """Whether nothing stands between tensors but commas, and nothing behind them but the closing brace."""
    return bool(between) and {*between[:-1]} <= {","} and between[-1].rstrip(" \t\n\r") == "}"


def _tensors(columns: Sequence[str]) -> dict[str, TensorEntry]:
    """The tensors of every six texts (name, dtype, shape, begin, end, what follows) in the order of their
    data; none of them if anything is wrong with one, or they do not lie one after the other."""
    names, dtypes, shapes = columns[0::6], columns[1::6], columns[2::6]
    begins, ends = list(map(int, columns[3::6])), list(map(int, columns[4::6]))
    if begins != sorted(begins):  # which a header need not list in their order
        rows = sorted(zip(begins, ends, names, dtypes, shapes, strict=True))
        begins, ends, names, dtypes, shapes = (list(column) for column in zip(*rows, strict=True))
    forms = list(map(_form, dtypes, shapes))
    sizes = [form.size for form in forms if form]
    if begins != [0, *ends[:-1]] or sizes != list(map(sub, ends, begins)) or not _sound_names(names):
        return {}
    entries = map(TensorEntry, dtypes, [form.shape for form in forms if form], begins, ends)
    return dict(zip(names, entries, strict=True))


@lru_cache(maxsize=4096)
def _form(dtype: str, shape: str) -> _Form | None:
    """What a dtype and a shape, as a header spells them, mean; None if a tensor cannot be like that."""
    if dtype not in DTYPES or not _SHAPE.fullmatch(shape):
        return None
    sizes = tuple(map(int, shape.split(","))) if shape else ()
    if max(sizes, default=0) > MAX_DIM:
        return None
    return _Form(sizes, math.prod(sizes) * DTYPES[dtype].itemsize)


def _sound_names(names: Sequence[str]) -> bool:
    """Whether the names are as they stand, all different, and no longer or more than they may be."""
    letters = "".join(names)
    return (
        len(names) <= MAX_TENSORS
        and len({*names, METADATA}) > len(names)
        and max(map(len, names)) <= MAX_NAME
        and "\\" not in letters
        and letters.isprintable()
    )
