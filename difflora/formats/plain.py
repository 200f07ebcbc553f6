"""Headers in the exact spelling of the safetensors library, as nearly all are: taken in column by column.

Going through the JSON of a header piece by piece takes four times as long, and a library has thousands of
them. Only that can say what is wrong with a header, and it has the last word on each that is not taken here.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
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
    r'"([^"]++)":\{"dtype":"([A-Z0-9]++","shape":\[[0-9,]*+)\],'
    r'"data_offsets":\[(0|[1-9][0-9]{0,18}+),([1-9][0-9]{0,18}+)\]\}'
)
_BETWEEN = '","shape":['
_SHAPE = re.compile(rf"(?:[1-9][0-9]{{0,9}}+(?:,[1-9][0-9]{{0,9}}+){{0,{MAX_DIMS - 1}}}+)?")


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """What a tensor is like, and its size in bytes.

    Made by `form`, which gives tensors that are alike the same one, unless very many others came between.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int


class PlainHeader(NamedTuple):
    """The tensors in the order of their data, which they cover without hole or overlap, and the metadata, of
    which all that is known is that they are text."""

    tensors: Mapping[str, Form]
    metadata: Mapping[str, str]


@lru_cache(maxsize=1 << 13)
def form(dtype: str, shape: tuple[int, ...]) -> Form:
    """The form of tensors of a dtype, by its name in DTYPES, and a shape."""
    return Form(dtype, shape, math.prod(shape) * DTYPES[dtype].itemsize)


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
    if before != ("," if start else "{") or not _only_commas(columns[4::5]):
        return None
    if not isinstance(pairs, tuple) or not all(isinstance(value, str) for _, value in pairs):
        return None
    metadata, tensors = dict(pairs), _tensors(columns, data_size)
    return PlainHeader(tensors, metadata) if tensors and len(metadata) == len(pairs) else None


def _only_commas(between: Sequence[str]) -> bool:
    """Whether nothing stands between tensors but commas, and nothing behind them but the closing brace."""
    return bool(between) and {*between[:-1]} <= {","} and between[-1].rstrip(" \t\n\r") == "}"


def _tensors(columns: Sequence[str], data_size: int) -> dict[str, Form]:
    """The tensors of every five texts (name, dtype and shape, begin, end, what follows) in the order of their
    data; none of them if anything is wrong with one, or they do not lie one after the other."""
    names, forms, begins, ends = (columns[column::5] for column in range(4))
    if begins != ["0", *ends[:-1]]:  # a header need not be in the order of the data
        rows = sorted(zip(begins, names, forms, ends, strict=True), key=lambda row: int(row[0]))
        begins, names, forms, ends = map(list, zip(*rows, strict=True))
    found = [one for one in map(_form, forms) if one]
    stops = list(accumulate([one.size for one in found]))
    sound = _sound_names(tuple(names))
    if begins != ["0", *ends[:-1]] or stops != list(map(int, ends)) or stops[-1] != data_size or not sound:
        return {}
    return dict(zip(sound, found, strict=True))


@lru_cache(maxsize=1 << 13)
def _form(text: str) -> Form | None:
    """The form that a dtype and a shape, as a header spells them, mean; None if no tensor can have it."""
    dtype, _, shape = text.partition(_BETWEEN)
    if dtype not in DTYPES or not _SHAPE.fullmatch(shape):
        return None
    sizes = tuple(map(int, shape.split(","))) if shape else ()
    return form(dtype, sizes) if max(sizes, default=0) <= MAX_DIM else None


@lru_cache(maxsize=32)  # thousands of files have the names of a few
def _sound_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, if they are as they stand, all different, and no longer or more than they may be."""
    letters = "".join(names)
    is_sound = (
        len(names) <= MAX_TENSORS
        and len({*names, METADATA}) > len(names)
        and max(map(len, names)) <= MAX_NAME
        and "\\" not in letters
        and letters.isprintable()
    )
    return names if is_sound else ()
