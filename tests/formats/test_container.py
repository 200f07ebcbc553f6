"""The container writes what the safetensors library would, the same each time, and never half of it."""

import errno
import hashlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from difflora.errors import AdapterFileError
from difflora.files import STALE_SECONDS, atomic_write
from difflora.formats.container import (
    header_bytes,
    not_finite,
    read_tensors,
    window_of,
    write_tensors,
)
from difflora.formats.safe import DTYPES, read_header


def every_dtype() -> dict[str, torch.Tensor]:
    """Two tensors of each dtype, with names whose order differs from that of the dtypes, and a 0-d one."""
    tensors = {"é.alpha": torch.tensor(2.0)}
    for number, dtype in enumerate(reversed(DTYPES.values())):
        tensors[f"z{number}"] = torch.randint(0, 2, (3, 2)).to(dtype)
        tensors[f"A{9 - number}"] = torch.randint(0, 2, (2, 1, 5)).to(dtype)
    return tensors


def test_bytes_equal_those_of_the_safetensors_library(tmp_path: Path) -> None:
    tensors, metadata = every_dtype(), {"title": 'größe "x"\n\t\\ </script>'}
    write_tensors(tmp_path / "a.safetensors", tensors, metadata)
    assert (tmp_path / "a.safetensors").read_bytes() == safetensors.torch.save(tensors, metadata)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    tensors, metadata = every_dtype(), {"a": "1", "b": "2"}
    written = write_tensors(tmp_path / "a.safetensors", tensors, metadata)
    file = read_tensors(tmp_path / "a.safetensors")
    assert file.metadata == metadata
    assert file.tensors.keys() == tensors.keys()
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in tensors.items())
    assert all(file.tensors[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert file.data_hash == written.data_hash


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    tensors = every_dtype()
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    found = read_tensors(tmp_path / "a.safetensors").tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_views_and_transposed_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    whole = torch.rand(6, 4)
    tensors = {"transposed": whole.T, "slice": whole[1:3, ::2]}
    write_tensors(tmp_path / "a.safetensors", tensors)
    found = read_tensors(tmp_path / "a.safetensors").tensors
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


WRITE = """
import sys, torch
from difflora.formats.container import write_tensors
tensors = {name: torch.arange(4.0) for name in {"b", "a", "c", "d"}}
write_tensors(sys.argv[1], tensors, {key: key for key in {"one", "two", "three", "four"}})
"""


def test_other_processes_write_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for seed in "1", "2":
        target = tmp_path / f"{seed}.safetensors"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", WRITE, str(target)], env=environment, check=True)
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_any_window_of_the_file_is_known_without_writing_it(tmp_path: Path) -> None:
    tensors, metadata = every_dtype(), {"a": "b"}
    write_tensors(tmp_path / "a.safetensors", tensors, metadata)
    content = (tmp_path / "a.safetensors").read_bytes()
    start = len(header_bytes(tensors, metadata))
    for window in ((0, 10), (start - 3, start + 20), (start + 5, len(content) + 9), (len(content), 10**6)):
        assert window_of(tensors, metadata, *window) == content[slice(*window)]


@pytest.mark.skipif(os.name != "posix", reason="file modes are a POSIX matter")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_is_respected(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
        atomic_write(tmp_path / "a.json", b"{}")
    finally:
        os.umask(before)
    for name in ("a.safetensors", "a.json"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.safetensors"
    write_tensors(target, {"a": torch.ones(2)})
    before = target.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(target, {"a": torch.zeros(2)})
    with pytest.raises(OSError, match="No space left"):
        atomic_write(target, b"new")
    assert target.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.json"
    atomic_write(target, b"old")

    def interrupted(source: Path, destination: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(target, b"new")
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_killed_writers_left_behind_is_removed(tmp_path: Path) -> None:
    stale, fresh, other = (tmp_path / name for name in (".a.json.1.tmp", ".a.json.2.tmp", ".b.json.1.tmp"))
    for leftover in (stale, fresh, other):
        leftover.write_bytes(b"half")
    old = time.time() - STALE_SECONDS - 1
    os.utime(stale, (old, old))
    os.utime(other, (old, old))
    atomic_write(tmp_path / "a.json", b"whole")
    assert not stale.exists()
    assert fresh.exists(), "another process may still be writing it"
    assert other.exists(), "it belongs to another file"


def test_a_mount_that_cannot_sync_folders_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    atomic_write(tmp_path / "a.json", b"whole")
    assert (tmp_path / "a.json").read_bytes() == b"whole"


def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"a\.safetensors.*\n.*phase: complex64 cannot be stored"):
        write_tensors(tmp_path / "a.safetensors", {"phase": torch.ones(2, dtype=torch.complex64)})
    with pytest.raises(AdapterFileError, match="no tensors"):
        write_tensors(tmp_path / "a.safetensors", {})
    assert not os.listdir(tmp_path)


def test_a_header_that_would_be_refused_is_not_left_on_disk(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="control characters"):
        write_tensors(tmp_path / "a.safetensors", {"bell\x07": torch.ones(2)})
    assert not os.listdir(tmp_path)


def test_values_that_are_not_finite_are_counted() -> None:
    tensors = {
        "good": torch.ones(3),
        "whole": torch.ones(3, dtype=torch.int64),
        "nan": torch.tensor([1.0, float("nan"), float("inf")], dtype=torch.bfloat16),
    }
    assert not_finite(tensors) == ["nan: 2 of 3 values are NaN or infinite"]


def test_values_are_looked_at_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    isfinite = torch.isfinite
    monkeypatch.setattr(
        torch, "isfinite", lambda tensor: seen.append(torch.get_num_threads()) or isfinite(tensor)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert not_finite({"a": torch.ones(2), "b": torch.ones(2)}) == []
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [1, 1]


def test_control_characters_in_metadata_values_are_replaced(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)}, {"note": "red\x1b[31m\u202eevil\nline"})
    assert read_header(tmp_path / "a.safetensors").metadata["note"] == "red\ufffd[31m\ufffdevil\nline"
