"""A folder of adapter files: names, hashes, damage, links, and prompts resolved against it."""

import os
import threading

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from difflora.adapter import Weight, same
from difflora.errors import AdapterFileError, LibraryError, PromptError
from difflora.formats import hashes, inspect, write
from difflora.library import Library, resolve, shelf
from difflora.library import entry as entry_module
from difflora.library.scanning import CHECKPOINT
from difflora.training.checkpoint import ADAPTER, OPTIMIZER
from tests.library.scenes import adapter


def test_names_are_paths_below_the_folder(folder):
    library = Library(folder)
    expected = ("a/robot", "b/deep/mosaic v1.2", "b/robot", "halftone", "neon")
    assert library.names == expected
    assert tuple(library.entries) == expected
    assert library.broken == {}
    entry = library.entries["b/robot"]
    assert (entry.name, entry.report.family, entry.report.ranks) == ("b/robot", "sd1", (2,))


def test_the_state_of_a_training_is_no_adapter_of_the_library(folder):
    assert {ADAPTER, OPTIMIZER} == CHECKPOINT, "which a training writes"
    state = folder / "checkpoints" / "neon" / "step-00000100"
    state.mkdir(parents=True)
    write(adapter(1), state / ADAPTER)
    save_file({"exp_avg": torch.zeros(2)}, state / OPTIMIZER)
    library = Library(folder)
    assert not [name for name in library.names if "step" in name] and library.broken == {}


@pytest.mark.parametrize(
    ("name", "seed", "short"),
    [
        ("halftone", 0, "halftone"),
        ("halftone.safetensors", 0, "halftone"),
        ("a/robot", 2, "a/robot"),
        ("b\\robot", 3, "b/robot"),
        ("mosaic v1.2", 4, "mosaic v1.2"),
        ("deep/mosaic v1.2", 4, "mosaic v1.2"),
    ],
)
def test_get(folder, name, seed, short):
    library = Library(folder)
    found = library.get(name)
    assert same(found, adapter(seed))
    assert found.meta.name == short
    assert library.get(short) is found


def test_an_ambiguous_name_lists_its_meanings(folder):
    with pytest.raises(LibraryError, match="2 adapters") as caught:
        Library(folder).get("robot")
    assert "a/robot" in str(caught.value)
    assert "b/robot" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"), [("Halftones", "halftone"), ("mosaic", "mosaic v1.2"), ("zzz", "neon")]
)
def test_an_unknown_name_shows_near_ones(folder, name, hint):
    with pytest.raises(LibraryError, match=hint):
        Library(folder).get(name)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/../halftone", "./halftone", "", ".", "/", "robot/", "halftone\0"]
)
def test_names_are_never_paths(folder, name):
    write(adapter(9), folder.parent / "secret.safetensors")
    with pytest.raises(LibraryError):
        Library(folder).get(name)


def test_a_file_added_later_is_found_and_a_changed_one_read_again(folder):
    library = Library(folder)
    first = library.get("neon")
    write(adapter(7), folder / "new.safetensors")
    write(adapter(8), folder / "neon.safetensors")
    assert same(library.get("new"), adapter(7))
    library.refresh()
    assert same(library.get("neon"), adapter(8))
    assert same(first, adapter(1))


def test_by_hash(folder):
    library = Library(folder)
    full = hashes(folder / "a" / "robot.safetensors").data_hash
    for written in (full, full[:8], full[:12].upper(), "0x" + full):
        assert same(library.by_hash(written), adapter(2))
    assert library.by_hash(full).data_hash == full


def test_files_are_hashed_once_and_only_when_asked(folder, monkeypatch):
    calls = []
    monkeypatch.setattr(shelf, "hashes", lambda path: calls.append(path) or hashes(path))
    library = Library(folder)
    assert library.entries
    assert not calls
    full = hashes(folder / "neon.safetensors").data_hash
    for _ in range(2):
        library.by_hash(full[:10])
    assert calls == [folder / "neon.safetensors"]  # the header says where to look; the rest is not read
    write(adapter(8), folder / "neon.safetensors")
    library.refresh()
    with pytest.raises(LibraryError, match="no adapter"):
        library.by_hash(full)
    assert len(calls) == 6


def test_a_copy_of_an_adapter_is_no_ambiguity(folder):
    (folder / "copy.safetensors").write_bytes((folder / "neon.safetensors").read_bytes())
    full = hashes(folder / "neon.safetensors").data_hash
    assert same(Library(folder).by_hash(full[:8]), adapter(1))


@pytest.mark.parametrize("text", ["", "abc", "0123456", "xyz" * 4, "f" * 65, "*"])
def test_what_is_no_hash_is_refused(folder, text):
    with pytest.raises(LibraryError, match="hex digits"):
        Library(folder).by_hash(text)


def test_broken_files_are_listed_and_break_nothing_else(folder):
    (folder / "cut.safetensors").write_bytes((folder / "neon.safetensors").read_bytes()[:-100])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "text.safetensors").write_text("<html>not found</html>")
    library = Library(folder)
    assert sorted(library.broken) == ["cut", "empty", "text"]
    assert all(library.broken.values())
    assert len(library.entries) == 5
    assert same(library.get("neon"), adapter(1))
    full = hashes(folder / "neon.safetensors").data_hash
    assert same(library.by_hash(full), adapter(1))
    with pytest.raises(AdapterFileError):
        library.get("cut")


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_that_leave_the_folder_are_not_followed(folder):
    outside = folder.parent / "outside"
    outside.mkdir()
    write(adapter(9), outside / "secret.safetensors")
    (folder / "file.safetensors").symlink_to(outside / "secret.safetensors")
    (folder / "sub").symlink_to(outside)
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    (folder / "inside.safetensors").symlink_to(folder / "neon.safetensors")
    (folder / "again").symlink_to(folder)
    library = Library(folder)
    assert sorted(library.broken) == ["file", "loop", "sub"]
    assert "inside" in library.entries
    assert not any("secret" in name or name.startswith("again") for name in library.names)
    with pytest.raises(LibraryError, match="link out of the folder"):
        library.get("file")


def test_two_spellings_of_one_name_are_not_confused(folder):
    os.rename(folder / "halftone.safetensors", folder / "neon.SafeTensors")
    library = Library(folder)
    assert [name for name in library.names if "neon" in name] == ["neon"]
    assert "same name" in "".join(library.broken.values())


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
def test_a_file_name_that_is_no_text_is_listed(folder):
    os.rename(folder / "halftone.safetensors", os.fsencode(folder) + b"/bad\xff.safetensors")
    library = Library(folder)
    assert "no valid text" in library.broken["bad?"]
    assert len(library.names) == 4


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.write_text("x")], ids=["missing", "file"]
)
def test_a_library_needs_a_folder(tmp_path, make):
    make(tmp_path / "here")
    with pytest.raises(LibraryError, match="expected a folder"):
        Library(tmp_path / "here")


def test_an_empty_folder(tmp_path):
    library = Library(tmp_path)
    assert library.names == ()
    with pytest.raises(LibraryError, match="holds no"):
        library.get("x")


def test_resolve(folder):
    library = Library(folder)
    resolved = resolve("a cat <lora:halftone:0.5:0.8> in <lora:b/robot:-1><lora:halftone:0.25> ", library)
    assert resolved.prompt == "a cat  in"
    pairs = [(one.meta.name, weight) for one, weight in resolved.stack]
    assert pairs == [("halftone", Weight(unet=1.05, text=0.75)), ("b/robot", Weight(-1, -1))]
    plain = resolve(" a cat", library)
    assert (plain.prompt, len(plain.stack)) == (" a cat", 0)


def test_resolve_names_everything_that_is_missing(folder):
    with pytest.raises(LibraryError) as caught:
        resolve("<lora:nean:1> <lora:neon:1> <lora:robot:1>", Library(folder))
    assert "'nean'" in str(caught.value)
    assert "'robot'" in str(caught.value)
    with pytest.raises(PromptError):
        resolve("<lora:neon", Library(folder))


@pytest.mark.parametrize(
    "name",
    ["C:\\loras\\neon", "C:neon", "\\\\server\\share\\neon", "neon/../neon", "..", "~/neon", "a//robot"],
)
def test_names_of_other_systems_are_never_paths(folder, name):
    with pytest.raises(LibraryError):
        Library(folder).get(name)


def test_several_folders_are_told_apart_by_their_names(folder):
    other = folder.parent / "more" / "adapters"
    other.mkdir(parents=True)
    write(adapter(9), other / "neon.safetensors")
    write(adapter(10), other / "lone.safetensors")
    library = Library(folder, other)
    assert "more/adapters/neon" in library.names
    assert len(library.names) == 7
    assert same(library.get("lone"), adapter(10))
    with pytest.raises(LibraryError, match="2 adapters"):
        library.get("neon")
    assert same(library.get("more/adapters/neon"), adapter(9))
    with pytest.raises(LibraryError, match="lie in each other"):
        Library(folder, folder / "a")
    assert Library(folder, folder).names == Library(folder).names


def test_find_by_every_hash(folder):
    path = folder / "a" / "robot.safetensors"
    known, stated = hashes(path), Library(folder).entries["a/robot"].hashes.stated
    library = Library(folder)
    assert stated == known.data_hash
    for digits in (known.autov3, known.autov2, known.sha256, stated, stated[:8].upper(), "0x" + stated):
        assert library.find(digits).name == "a/robot"
    assert same(library.get(known.autov3), adapter(2))
    assert library.find("mosaic v1.2").hashes.autov2 in ("", hashes(library.find("mosaic v1.2").path).autov2)
    with pytest.raises(LibraryError, match="no adapter"):
        library.find("0123456789ab")
    with pytest.raises(LibraryError, match="Near names"):
        library.find("neom")


def restated(path, target, **metadata):
    """A copy of a file with other metadata."""
    with safe_open(path, "pt") as file:
        kept = {**file.metadata(), **metadata}
    save_file(load_file(path), target, metadata=kept)


def test_a_hash_that_a_header_states_wrongly_only_says_where_to_look(folder):
    truth = hashes(folder / "neon.safetensors").data_hash
    restated(folder / "halftone.safetensors", folder / "a" / "liar.safetensors", sshs_model_hash=truth)
    library = Library(folder)
    assert same(library.by_hash(truth), adapter(1))
    assert same(library.by_hash(truth[:8]), adapter(1))
    assert library.entries["a/liar"].hashes.data == hashes(folder / "halftone.safetensors").data_hash
    restated(
        folder / "neon.safetensors", folder / "nothing.safetensors", sshs_model_hash="e3b0c442" + "9" * 56
    )
    library.refresh()
    assert library.entries["nothing"].hashes.stated != "e3b0c442" + "9" * 56


def test_the_hash_that_lycoris_states_is_shown_as_no_autov3(folder):
    """It begins with 0x, and is of the tensors in the order of the program."""
    lycoris, truth = "0x" + "ab" * 32, hashes(folder / "neon.safetensors").data_hash
    restated(folder / "neon.safetensors", folder / "lyco.safetensors", sshs_model_hash=lycoris)
    spec = {"sshs_model_hash": lycoris, "modelspec.hash_sha256": "0x" + truth}
    restated(folder / "neon.safetensors", folder / "spec.safetensors", **spec)
    restated(folder / "neon.safetensors", folder / "both.safetensors", **spec | {"sshs_model_hash": truth})
    entries = Library(folder).entries
    shown = {name: entries[name].hashes.autov3 for name in ("lyco", "spec", "both")}
    assert shown == {"lyco": "", "spec": "", "both": truth[:12]}
    library = Library(folder)
    assert library.find(truth).name in ("both", "neon", "spec")
    library.hash_files()
    assert library.entries["lyco"].hashes.autov3 == truth[:12]
    assert set(library.duplicates) == {("both", "lyco", "neon", "spec")}


def test_duplicates(folder):
    restated(folder / "neon.safetensors", folder / "b" / "copy.safetensors", ss_comment="another header")
    assert Library(folder).duplicates == (("b/copy", "neon"),)
    truth = hashes(folder / "neon.safetensors").data_hash
    restated(folder / "halftone.safetensors", folder / "liar.safetensors", sshs_model_hash=truth)
    library = Library(folder)
    library.hash_files()
    assert library.duplicates == (("b/copy", "neon"), ("halftone", "liar"))


def test_peft_folders_are_adapters(folder):
    write(adapter(20), folder / "c" / "peft", format="peft")
    library = Library(folder)
    assert library.broken == {}
    assert library.entries["c/peft"].facts.format == "peft"
    assert same(library.get("peft"), adapter(20))
    library.hash_files()
    assert same(library.by_hash(library.entries["c/peft"].hashes.data), adapter(20))
    assert library.note("peft", text="a folder").sidecars == (folder / "c" / "peft.json",)


def test_an_adapter_that_was_replaced_is_read_anew_though_the_old_one_is_in_use(folder):
    library = Library(folder)
    old = library.get("neon")
    assert library.get("neon") is old
    write(adapter(8), folder / "neon.safetensors")
    os.utime(folder / "neon.safetensors", ns=(1, 1))
    assert same(library.get("neon"), adapter(8)) and same(old, adapter(1))


def test_an_adapter_that_is_gone_is_not_found(folder):
    library = Library(folder)
    (folder / "neon.safetensors").unlink()
    with pytest.raises(LibraryError, match=r"no adapter.*'neon'"):
        library.get("neon")
    assert "neon" not in library.names


def test_entries_stay_the_same_objects_until_their_file_or_notes_change(folder):
    library = Library(folder)
    before = library.entries
    library.refresh()
    assert all(library.entries[name] is entry for name, entry in before.items())
    library.note("neon", text="bright")
    write(adapter(8), folder / "halftone.safetensors")
    os.utime(folder / "halftone.safetensors", ns=(5, 5))
    library.refresh()
    after = library.entries
    assert {name for name in before if after[name] is not before[name]} == {"neon", "halftone"}
    assert after["neon"].notes.text == "bright" and after["halftone"].modified_ns == 5


def test_a_library_is_not_listed_anew_while_another_thread_looks_at_it(folder, tmp_path, monkeypatch):
    library, others = Library(folder, index=tmp_path / "index"), []

    def slowly(path):
        if not others:
            (folder / "neon.safetensors").unlink()
            others.append(threading.Thread(target=library.refresh))
            others[0].start()
            others[0].join(0.5)
            assert others[0].is_alive()
        return inspect(path)

    monkeypatch.setattr(entry_module, "inspect", slowly)
    assert len(library.entries) == 4
    others[0].join()
    assert "neon" not in library.names and not library.broken
