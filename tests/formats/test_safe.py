"""What is no plain safetensors file is not opened; what the reader accepts, the library reads the same."""

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
from difflora.formats import inspect
from difflora.formats.container import read_tensors
from difflora.formats.pickles import is_pickle
from difflora.formats.safe import MAX_HEADER, MAX_TENSORS, read_header
from tests.formats.malformed import entry, packed, raw


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


def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    """640 is 0x0280, and its first byte that of every pickle."""
    path = tmp_path / "a.safetensors"
    header = json.dumps({"a": entry(0, 16)}).encode().ljust(0x0280)
    path.write_bytes(raw(header))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert not is_pickle(path) and read_tensors(path).tensors.keys() == {"a"}
