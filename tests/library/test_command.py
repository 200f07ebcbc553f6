"""`difflora library` as a user meets it: a table or JSON, one adapter found, notes written beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from difflora import Adapter, AdapterMeta, write
from difflora.kinds import LoRA
from tests.commandline import Cli

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "Lora"
    for rank, name in enumerate(("halftone", "styles/neon", "a/robot", "b/robot"), start=1):
        torch.manual_seed(rank)
        kind = LoRA(torch.randn(rank, 768), torch.randn(1280, rank), 1.0)
        meta = AdapterMeta(name="x", family="sd1", trigger=f"{name} words")
        path = root / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(Adapter({PATH: (kind,)}, meta), path)
    (root / "copy.safetensors").write_bytes((root / "styles" / "neon.safetensors").read_bytes())
    (root / "cut.safetensors").write_bytes(b"\x1b[2Jcut")
    (root / "halftone.preview.png").write_bytes(b"x")
    return root


def test_the_table_names_adapters_broken_files_and_copies(cli: Cli, folder: Path) -> None:
    said = cli("library", folder)
    assert said.code == 0, said
    for words in ("5 adapters", "halftone words", "sd1", "lora", "1 cannot be used", "copy = styles/neon"):
        assert words in said.out
    assert "not a safetensors file" in said.out or "not a whole safetensors file" in said.out
    assert "\x1b" not in said.out


def test_json_is_one_document(cli: Cli, folder: Path, tmp_path: Path) -> None:
    said = cli("library", folder, "--json", "--hash", "--index", tmp_path / "index")
    document = json.loads(said.out)
    assert [one["name"] for one in document["adapters"]] == [
        "a/robot",
        "b/robot",
        "copy",
        "halftone",
        "styles/neon",
    ]
    assert list(document["broken"]) == ["cut"]
    assert document["duplicates"] == [["copy", "styles/neon"]]
    shown = document["adapters"][3]
    assert (shown["ranks"], shown["kinds"], shown["preview"]) == (
        [1],
        {"lora": 1},
        str(folder / "halftone.preview.png"),
    )
    assert shown["hashes"]["data"] == shown["hashes"]["sshs_model_hash"]
    assert len(list((tmp_path / "index").iterdir())) == 1
    for digits in (shown["hashes"]["autov2"], shown["hashes"]["autov3"]):
        found = json.loads(cli("library", folder, "--find", digits, "--json").out)
        assert found["name"] == "halftone"
    assert json.loads(cli("library", folder, "--find", "neon", "--json").out)["copies"] == ["copy"]


def test_notes_are_written_beside_what_is_found(cli: Cli, folder: Path) -> None:
    before = (folder / "halftone.safetensors").read_bytes()
    said = cli(
        "library", folder, "--find", "halftone", "--note", "loud", "--trigger", "dots", "--weight", "0.6"
    )
    assert said.code == 0 and "loud" in said.out and "dots" in said.out and "0.6" in said.out, said
    assert (folder / "halftone.safetensors").read_bytes() == before
    again = cli("library", folder)
    assert "dots" in again.out and "0.6" in again.out
    assert cli("library", folder, "--note", "x").code == 2


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("robot", ("2 adapters", "a/robot", "b/robot")),
        ("halftoen", ("Near names", "halftone")),
        ("../halftone", ("no adapter",)),
        ("0123456789", ("no adapter", "AutoV3")),
        ("cut", ("not a",)),
    ],
)
def test_what_cannot_be_found_is_an_error_with_candidates(
    wanted: str, words: tuple[str, ...], cli: Cli, folder: Path
) -> None:
    said = cli("library", folder, "--find", wanted)
    assert said.code == 1 and not said.out, said
    assert all(word in said.err for word in words), said.err


def test_folders_are_needed_and_must_be_there(cli: Cli, folder: Path) -> None:
    gone = cli("library", folder, folder.parent / "gone")
    assert gone.code == 1 and "gone does not exist" in gone.err
    inside = cli("library", folder, folder / "a")
    assert inside.code == 1 and "lie in each other" in inside.err
    assert cli("library").code == 2
    assert "--find" in cli("library", "--help").out
