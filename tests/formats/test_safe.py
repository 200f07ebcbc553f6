"""Malformed files are refused quickly, naming file and tensor, before a byte of their data is used."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflora.errors import AdapterFileError
from difflora.formats import inspect, read
from difflora.formats.container import read_tensors
from difflora.formats.safe import MAX_HEADER, MAX_METADATA, MAX_TENSORS, read_header

Header = dict[str, Any]


def entry(begin: int, end: int, *, dtype: str = "F32", shape: list[Any] | None = None) -> Header:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw(header: bytes, data: bytes = bytes(16), *, length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def packed(header: Header, data: bytes = bytes(16)) -> bytes:
    return raw(json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass"), data)


A = entry(0, 16)

# name -> (the file's bytes, what the error must say)
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "seven_bytes": (bytes(7), "7 bytes"),
    "header_of_nothing": (raw(b""), "header claims 0"),
    "header_longer_than_the_file": (raw(b"{}", length=10**6), "header claims 1000000"),
    "header_one_byte_too_long": (raw(b"{}", b"", length=3), "header claims 3"),
    "header_of_2_to_64": (raw(b"{}", length=2**64 - 1), "header claims"),
    "not_utf8": (raw(b'{"\xff": 1}'), "utf-8"),
    "not_json": (raw(b"{nonsense"), "cannot be read"),
    "an_array": (raw(b"[1, 2]"), "starts with"),
    "leading_space": (raw(b" " + json.dumps({"a": A}).encode()), "starts with"),
    "byte_order_mark": (raw(b"\xef\xbb\xbf{}"), "starts with"),
    "deep_nesting": (raw(b'{"a":' + b"[" * 100_000), "recursion"),
    "a_number_of_5000_digits": (raw(b'{"a":' + b"9" * 5000 + b"}"), "cannot be read"),
    "not_a_number": (raw(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'), "NaN"),
    "no_tensors": (packed({}, b""), "no tensors"),
    "metadata_only": (packed({"__metadata__": {"a": "b"}}, b""), "no tensors"),
    "duplicate_tensor": (
        raw(b'{"twin":' + json.dumps(A).encode() + b',"twin":' + json.dumps(A).encode() + b"}"),
        "twin is there twice",
    ),
    "duplicate_metadata": (
        raw(b'{"__metadata__":{"k":"1","k":"2"},"a":' + json.dumps(A).encode() + b"}"),
        "k is there twice",
    ),
    "duplicate_field": (
        raw(b'{"a":{"dtype":"F16","dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        "dtype is there twice",
    ),
    "metadata_is_a_list": (packed({"__metadata__": ["x"], "a": A}), "text to text"),
    "metadata_with_a_number": (packed({"__metadata__": {"k": 1}, "a": A}), "text to text"),
    "metadata_with_a_lone_surrogate": (
        raw(b'{"__metadata__":{"k":"\\ud800"},"a":' + json.dumps(A).encode() + b"}"),
        "k: is not valid Unicode",
    ),
    "metadata_key_with_an_escape": (packed({"__metadata__": {"k\x1b": "1"}, "a": A}), r"k\\x1b"),
    "too_much_metadata": (
        packed({"__metadata__": {str(n): "" for n in range(MAX_METADATA + 1)}, "a": A}),
        "metadata entries",
    ),
    "too_many_tensors": (
        packed({str(n): entry(0, 0, shape=[0]) for n in range(MAX_TENSORS + 1)}),
        "more than 20000 tensors",
    ),
    "a_flood_of_tensors": (
        packed({str(n): entry(0, 0, shape=[0]) for n in range(200_000)}),
        "more than 20000 tensors",
    ),
    "empty_name": (packed({"": A}), "name of 0 letters"),
    "long_name": (packed({"n" * 1_000_000: A}), "name of 1000000 letters"),
    "name_with_nul": (packed({"a\x00b": A}), r"a\\x00b: control"),
    "name_with_escape": (packed({"a\x1b[2J": A}), r"a\\x1b\[2J: control"),
    "name_turned_around": (packed({"a\u202eb": A}), r"a\\u202eb: control"),
    "missing_field": (packed({"lost": {"dtype": "F32", "shape": [4]}}), "lost: expected exactly"),
    "extra_field": (packed({"more": {**A, "extra": 1}}), "more: expected exactly"),
    "tensor_is_text": (packed({"word": "F32"}), "word: expected exactly"),
    "unknown_dtype": (packed({"odd": entry(0, 16, dtype="F128")}), "odd: dtype is F128"),
    "dtype_is_a_list": (packed({"odd": entry(0, 16) | {"dtype": ["F32"]}}), "odd: dtype is"),
    "negative_size": (packed({"minus": entry(0, 16, shape=[-4])}), "minus: the shape"),
    "size_of_2_to_40": (packed({"vast": entry(0, 16, shape=[0, 2**40])}), "vast: the shape"),
    "size_times_size_overflows": (
        packed({"vast": entry(0, 16, shape=[2**31 - 1] * 8)}),
        "vast: 16 bytes of data",
    ),
    "nine_dimensions": (packed({"deep": entry(0, 16, shape=[1] * 8 + [4])}), "deep: the shape"),
    "size_is_a_fraction": (packed({"part": entry(0, 16, shape=[4.0])}), "part: the shape"),
    "size_is_text": (packed({"text": entry(0, 16, shape=["4"])}), "text: the shape"),
    "size_is_true": (packed({"yes": entry(0, 16, shape=[True, 4])}), "yes: the shape"),
    "shape_is_text": (packed({"text": entry(0, 16) | {"shape": "4"}}), "text: the shape"),
    "no_values": (packed({"void": entry(0, 0, shape=[0, 4])}, b""), "void: the shape"),
    "three_offsets": (packed({"a": entry(0, 16) | {"data_offsets": [0, 8, 16]}}), "a: data_offsets"),
    "negative_offset": (packed({"a": entry(-4, 12, shape=[4])}), "a: data_offsets"),
    "ends_before_it_begins": (packed({"a": entry(16, 0, shape=[4])}), "a: -16 bytes"),
    "offset_is_null": (packed({"a": entry(0, 16) | {"data_offsets": [None, 16]}}), "a: data_offsets"),
    "wrong_size": (packed({"a": entry(0, 16, shape=[5])}), "a: 16 bytes of data, expected 20"),
    "past_the_end": (packed({"a": entry(0, 32)}), "a: its data ends at byte 32"),
    "whole_overlap": (packed({"a": A, "b": A}), "b: 16 bytes of its data overlap those of a"),
    "partial_overlap": (packed({"a": entry(0, 12), "b": entry(8, 16)}), "b: 4 bytes of its data overlap"),
    "a_hole": (packed({"a": entry(0, 4), "b": entry(8, 16)}), "b: a hole of 4 bytes"),
    "a_hole_at_the_start": (packed({"a": entry(4, 16)}), "a: a hole of 4 bytes"),
    "trailing_bytes": (packed({"a": A}, bytes(20)), "4 bytes after the last tensor"),
    "bool_that_is_neither": (
        packed({"b": entry(0, 16, dtype="BOOL", shape=[16])}, bytes([2] * 16)),
        "b: a BOOL",
    ),
    "pickle": (b"\x80\x02}q\x00." + bytes(100), "pickle"),
    "zip": (b"PK\x03\x04" + bytes(100), "pickle"),
    "zeros": (bytes(4096), "header claims 0"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_refused(tmp_path: Path, name: str) -> None:
    content, expected = MALFORMED[name]
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(AdapterFileError, match=expected) as caught:
        read_tensors(path)
    assert time.process_time() - start < 1
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable() or all(
        letter.isprintable() or letter == "\n" for letter in str(caught.value)
    )
    with pytest.raises(AdapterFileError):
        read(path)
    assert not inspect(path).ok


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    with open(path, "wb") as file:
        file.write((MAX_HEADER + 8).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 16 + 16)
    with pytest.raises(AdapterFileError, match="the limit is"):
        read_header(path)


def test_the_largest_allowed_header_takes_less_than_a_second(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    tensors = {str(n): entry(4 * n, 4 * n + 4) for n in range(MAX_TENSORS)}
    note = "x" * (MAX_HEADER - 1_700_000)
    path.write_bytes(packed({"__metadata__": {"note": note}, **tensors}, bytes(4 * MAX_TENSORS)))
    start = time.process_time()
    assert len(read_header(path).tensors) == MAX_TENSORS
    assert time.process_time() - start < 1


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.BIN", "a.pth", "a.pkl"])
def test_files_named_as_pickles_are_not_opened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    with pytest.raises(AdapterFileError, match=r"pickle.*Expected a \.safetensors file"):
        read_tensors(path)


def test_an_upper_case_ending_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "a.SAFETENSORS"
    safetensors.torch.save_file({"a": torch.ones(2)}, path)
    assert read_tensors(path).tensors.keys() == {"a"}


def test_what_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="folder"):
        read_header(tmp_path)
    with pytest.raises(AdapterFileError, match=r"absent\.safetensors: cannot be opened: No such file"):
        read_header(tmp_path / "absent.safetensors")
    for odd in ("nul\x00.safetensors", "n" * 5000):
        assert "cannot be opened" in inspect(tmp_path / odd).problem
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo.safetensors")
        with pytest.raises(AdapterFileError, match="plain file"):
            read_header(tmp_path / "fifo.safetensors")


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = safetensors.torch.save({"a": torch.rand(4, 4), "b": torch.rand(3)}, {"k": "v"})
    path = tmp_path / "cut.safetensors"
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(AdapterFileError):
            read_tensors(path)


WHOLE = safetensors.torch.save(
    {"a.b": torch.ones(2, 2), "c": torch.zeros(3, dtype=torch.float16)}, {"k": "v"}
)


@st.composite
def mutated(draw: Callable[..., Any]) -> bytes:
    """A good file with some bytes of its header changed, doubled or removed."""
    content = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(content) - 1))
        change = draw(st.sampled_from(("set", "copy", "drop")))
        if change == "set":
            content[place] = draw(st.sampled_from(list(b'{}[],:"0123456789-.\\ \x00\xffFabc')))
        elif change == "copy":
            content[place:place] = content[place : place + draw(st.integers(1, 20))]
        else:
            del content[place : place + draw(st.integers(1, 4))]
    return bytes(content)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(content=mutated())
def test_whatever_is_accepted_the_library_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)
    try:
        found = read_tensors(path)
    except AdapterFileError:
        return
    expected = safetensors.torch.load(content)
    assert found.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found.tensors[name], tensor) or bool(tensor.isnan().any())
