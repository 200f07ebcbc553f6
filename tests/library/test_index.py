"""What a library keeps of its folders between runs: nothing is read twice, nothing stale is believed."""

import os
import shutil
import time

import pytest

from difflora.adapter import same
from difflora.errors import LibraryError
from difflora.formats import hashes, inspect, write
from difflora.library import Library, shelf
from difflora.library import entry as entry_module
from tests.library.collection import collect
from tests.library.scenes import adapter


def looked_at(monkeypatch):
    """The files whose headers are read from now on."""
    seen = []
    monkeypatch.setattr(entry_module, "inspect", lambda path: seen.append(path.name) or inspect(path))
    return seen


def test_what_the_index_knows_is_not_read_again(folder, tmp_path, monkeypatch):
    index = tmp_path / "index"
    (folder / "cut.safetensors").write_bytes(b"cut")
    first = Library(folder, index=index)
    wanted = dict(first.entries), dict(first.broken)
    seen = looked_at(monkeypatch)
    again = Library(folder, index=index)
    assert (dict(again.entries), dict(again.broken)) == wanted
    assert not seen
    write(adapter(8), folder / "neon.safetensors")
    again.refresh()
    assert again.entries["neon"] != wanted[0]["neon"]
    assert seen == ["neon.safetensors"]
    assert [path.parent for path in tmp_path.rglob("*.index.json")] == [index]


def test_computed_hashes_are_kept(folder, tmp_path, monkeypatch):
    Library(folder, index=tmp_path / "index").hash_files()
    monkeypatch.setattr(shelf, "hashes", lambda path: pytest.fail(f"{path} was read"))
    library = Library(folder, index=tmp_path / "index")
    known = hashes(folder / "neon.safetensors")
    for digits in (known.data_hash, known.autov3, known.autov2, known.sha256):
        assert same(library.by_hash(digits), adapter(1))
    with pytest.raises(LibraryError, match="no adapter"):
        library.by_hash("0" * 64)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"\x00\xff" * 99,
        lambda raw: b"[" * 99999,
        lambda raw: b'{"layout": 1}',
        lambda raw: raw.replace(b'"layout":1', b'"layout":0'),
        lambda raw: raw.replace(b'"ranks":[2]', b'"ranks":["x"]'),
        lambda raw: raw.replace(b'"reader":"', b'"reader":"old'),
        lambda raw: raw.replace(b'"root":"', b'"root":"/elsewhere'),
    ],
)
def test_an_index_that_cannot_be_used_is_made_anew(folder, tmp_path, monkeypatch, damage):
    index = tmp_path / "index"
    wanted = Library(folder, index=index).entries
    (file,) = index.iterdir()
    good = file.read_bytes()
    assert damage(good) != good
    file.write_bytes(damage(good))
    seen = looked_at(monkeypatch)
    assert Library(folder, index=index).entries == wanted
    assert len(seen) == 5
    assert file.read_bytes() == good


def test_nothing_is_written_into_the_folder(folder, tmp_path, monkeypatch):
    before = sorted(folder.rglob("*"))
    with pytest.raises(LibraryError, match="inside the adapter folder"):
        Library(folder, index=folder / "a")
    monkeypatch.setenv("DIFFLORA_CACHE", str(folder / "cache"))
    inside = Library(folder)
    inside.hash_files()
    assert inside.index_problems
    assert sorted(folder.rglob("*")) == before
    (tmp_path / "file").write_text("")
    refused = Library(folder, index=tmp_path / "file" / "below")
    assert len(refused.entries) == 5
    assert "cannot be written" in refused.index_problems[0]


def test_a_file_that_changed_unseen_is_not_taken_for_the_old_one(folder, tmp_path):
    library = Library(folder, index=tmp_path / "index")
    library.hash_files()
    path = folder / "neon.safetensors"
    truth, state = hashes(path).data_hash, path.stat()
    write(adapter(8), path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    with pytest.raises(LibraryError, match="no adapter"):
        Library(folder, index=tmp_path / "index").by_hash(truth)


def timed_index(tmp_path, count):
    """Processor seconds for the `count` adapters in the folder `many`, without an index and with one."""
    times = []
    for _ in range(4):
        start = time.process_time()
        library = Library(tmp_path / "many", index=tmp_path / "index")
        assert (len(library.entries), len(library.broken)) == (count, 0)
        times.append(time.process_time() - start)
    return times[0], min(times[1:])


def test_hundreds_of_small_files_are_indexed_at_once(tmp_path):
    source = tmp_path / "one.safetensors"
    write(adapter(0), source)
    raw = source.read_bytes()
    for number in range(400):
        path = tmp_path / "many" / str(number % 40) / f"style {number}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
        path.with_suffix(".json").write_text('{"activation text": "some words"}')
    cold, warm = timed_index(tmp_path, 400)
    assert cold < 1.6
    assert warm < 0.16


def test_adapters_of_real_size_are_known_by_their_headers(tmp_path):
    """Each of their modules, in every spelling; the bound is far above what a file takes once others like it
    were looked at, and far below what its tensors took when each was looked at by itself."""
    modules = collect(tmp_path / "many", 120)
    cold, _ = timed_index(tmp_path, 120)
    entries = Library(tmp_path / "many", index=tmp_path / "index").entries.values()
    assert sum(sum(entry.kinds.values()) for entry in entries) == modules
    assert {entry.family for entry in entries} == {"sd1", "sdxl"}
    assert {kind for entry in entries for kind in entry.kinds} == {"lora", "loha", "lokr", "dora"}
    assert {entry.facts.format for entry in entries} == {"kohya", "diffusers", "peft"}
    assert {entry.trigger for entry in entries} == {"some words"}
    assert cold / 120 < 0.025


@pytest.mark.slow
def test_five_thousand_adapters_of_real_size_are_indexed_in_seconds(tmp_path):
    collect(tmp_path / "many", 5000)
    try:
        cold, warm = timed_index(tmp_path, 5000)
    finally:
        shutil.rmtree(tmp_path / "many")  # the headers alone are hundreds of megabytes
    print(f"5,000 files: {cold:.2f} s cold, {warm:.2f} s with an index")
    assert cold < 20
    assert warm < 1
