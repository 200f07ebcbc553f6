"""What lies beside adapter files: pictures, the notes of people, and what Civitai says."""

import json
import os
from dataclasses import replace

import pytest

from difflora.errors import LibraryError
from difflora.formats import hashes
from difflora.library import Library, read_notes, write_notes


def test_previews(folder):
    (folder / "neon.preview.png").write_bytes(b"x")
    (folder / "b" / "deep" / "mosaic v1.2.jpg").write_bytes(b"x")
    entries = Library(folder).entries
    assert entries["neon"].preview == folder / "neon.preview.png"
    assert entries["b/deep/mosaic v1.2"].preview == folder / "b" / "deep" / "mosaic v1.2.jpg"
    assert entries["halftone"].preview is None


def test_notes_are_kept_beside_the_file(folder):
    path, other = folder / "neon.safetensors", folder / "neon.json"
    before = path.read_bytes()
    other.write_text('{"sd version": "SD1", "notes": "old"}')
    library = Library(folder)
    assert library.entries["neon"].notes.text == "old"
    entry = library.note("neon", trigger="neon glow", weight=0.8, text="läuft\nsehr gut")
    assert (entry.trigger, entry.notes.weight, entry.notes.text) == ("neon glow", 0.8, "läuft\nsehr gut")
    assert json.loads(other.read_text(encoding="utf-8"))["sd version"] == "SD1"
    assert read_notes(path) == entry.notes
    assert Library(folder).entries["neon"].notes == entry.notes
    assert library.note("neon", weight=0, trigger="").notes == replace(entry.notes, weight=None, trigger="")
    assert path.read_bytes() == before
    assert not list(folder.glob(".*"))


def test_notes_that_cannot_be_kept_leave_everything_as_it_was(folder):
    path, beside = folder / "neon.safetensors", folder / "neon.json"
    for content in ("[1]", "{", "[" * 99999):
        beside.write_text(content)
        with pytest.raises(LibraryError, match="JSON object"):
            write_notes(path, text="x")
        assert beside.read_text() == content
        entry = Library(folder).entries["neon"]
        assert "JSON object" in entry.sidecar_problem
    beside.unlink()
    for wrong in ({"weight": float("nan")}, {"text": "x" * 99999}, {"trigger": "\ud800"}):
        with pytest.raises(LibraryError):
            write_notes(path, **wrong)
    with pytest.raises(LibraryError, match="does not exist"):
        write_notes(folder / "gone.safetensors", text="x")
    assert not beside.exists()


def test_what_civitai_says_beside_a_file(folder):
    path = folder / "neon.safetensors"
    other = [{"sizeKB": 1, "hashes": {"SHA256": "f" * 64}}]
    own = [{"sizeKB": path.stat().st_size / 1024, "hashes": {"AutoV2": hashes(path).autov2.upper()}}]
    info = {"trainedWords": ["neon glow, ", "tubes"], "files": other + own, "description": None}
    (folder / "neon.civitai.info").write_text(json.dumps(info))
    (folder / "halftone.json").write_text('{"preferred weight": "much"}')
    entries = Library(folder).entries
    assert entries["neon"].trigger == "neon glow, tubes"
    assert entries["neon"].sidecars == (folder / "neon.civitai.info",)
    assert entries["neon"].hashes.beside == (hashes(path).autov2,)
    assert Library(folder).find(hashes(path).autov2).name == "neon"
    assert "halftone.json" in entries["halftone"].sidecar_problem
    (folder / "neon.json").write_text('{"activation text": "mine", "preferred weight": 0}')
    notes = Library(folder).entries["neon"].notes
    assert (notes.trigger, notes.weight) == ("mine", None)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_beside_a_file_are_not_followed(folder):
    secret = folder.parent / "secret.json"
    secret.write_text('{"notes": "secret"}')
    (folder / "neon.json").symlink_to(secret)
    (folder / "neon.png").symlink_to(secret)
    entry = Library(folder).entries["neon"]
    assert (entry.notes.text, entry.preview) == ("", None)
    with pytest.raises(LibraryError, match="link"):
        write_notes(folder / "neon.safetensors", text="x")
    assert secret.read_text() == '{"notes": "secret"}'
