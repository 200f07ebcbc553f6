"""Adapters of the same tensors that act at different strengths are two adapters, whatever file says how."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from difflora.adapter import Adapter, AdapterMeta, Stack, same
from difflora.algebra import merge, scale
from difflora.errors import LibraryError
from difflora.formats import hashes, inspect, read, write
from difflora.formats.peft_config import METADATA_KEY
from difflora.kinds import LoRA
from difflora.library import Library
from difflora.library.shelf import Shelf
from tests.kinds.samples import sample

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
META = AdapterMeta("n", "sd1")
LAYOUTS = ["diffusers", "peft"]


def adapter(alpha: float = 3.0) -> Adapter:
    lora = sample("lora", (8, 6))
    assert isinstance(lora, LoRA)
    return Adapter({PATH: (replace(lora, scale=alpha / lora.rank),)}, META)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_at_half_its_strength_is_another_one(tmp_path: Path, layout: str) -> None:
    """Their tensors are the same bytes: the strength is in the metadata, or in the configuration."""
    write(adapter(), tmp_path / "a", format=layout)
    write(scale(adapter(), 0.5)[0], tmp_path / "half", format=layout)
    one, half = read(tmp_path / "a"), read(tmp_path / "half")
    assert one.meta.file_hash == half.meta.file_hash
    assert one.data_hash != half.data_hash
    base = torch.zeros(8, 6)
    wanted = 1.5 * adapter().delta(PATH)
    for stack in (Stack([(one, 1.0), (half, 1.0)]), Stack([(half, 1.0), (one, 1.0)])):
        assert len(stack.canonical()) == 2
        assert torch.allclose(stack.delta(PATH, base), wanted, rtol=1e-6)
        assert torch.allclose(merge(stack)[0].delta(PATH), wanted, rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_library_finds_the_one_that_is_meant(tmp_path: Path, layout: str) -> None:
    ending = "" if layout == "peft" else ".safetensors"
    root = tmp_path / "Lora"
    root.mkdir()
    for name, weight in (("a", 1.0), ("b", 0.25), ("c", 2.0)):
        write(scale(adapter(6.0), weight)[0], root / f"{name}{ending}", format=layout)
    library = Library(root, index=tmp_path / "index")
    adapters = {name: library.get(name) for name in "abc"}
    assert library.duplicates == ()
    for known in (library, Library(root, index=tmp_path / "index"), Library(root, index=tmp_path / "other")):
        for name, one in adapters.items():
            assert known.by_hash(one.data_hash).meta.name == name
            assert known.find(one.data_hash[:12]).name == name
            assert same(known.by_hash(one.data_hash), one)
    with pytest.raises(LibraryError, match="3 adapters") as caught:
        library.by_hash(adapters["a"].meta.file_hash)
    assert all(one.data_hash in str(caught.value) for one in adapters.values())


def test_the_hash_of_the_tensors_finds_a_file_that_alone_has_them(tmp_path: Path) -> None:
    """Recipes of before have it."""
    write(adapter(6.0), tmp_path / "a.safetensors", format="diffusers")
    library = Library(tmp_path)
    found = hashes(tmp_path / "a.safetensors")
    for digits in (found.data_hash, found.autov3, found.autov2):
        assert same(library.by_hash(digits), adapter(6.0)) and library.find(digits).name == "a"
    assert library.find("a").hashes.autov3 == found.autov3


def test_the_one_whose_own_hash_it_is_goes_first(tmp_path: Path) -> None:
    write(adapter(6.0), tmp_path / "a.safetensors", format="diffusers")
    tensors = load_file(tmp_path / "a.safetensors")
    save_file(tensors, tmp_path / "b.safetensors")  # states no hash, and no strength: its scale is 1
    library = Library(tmp_path)
    data_hash = hashes(tmp_path / "b.safetensors").data_hash
    assert data_hash == hashes(tmp_path / "a.safetensors").data_hash
    for digits in (data_hash, data_hash[:12]):
        assert library.by_hash(digits).meta.name == library.find(digits).name == "b"
    assert library.get("b").data_hash == data_hash


def test_ordinary_files_are_known_by_their_tensors_alone(tmp_path: Path) -> None:
    for layout in ("kohya", *LAYOUTS):
        alpha = 6.0 if layout == "kohya" else 3.0  # alpha = rank acts as without any
        write(adapter(alpha), tmp_path / layout, format=layout)
        found = read(tmp_path / layout)
        assert found.data_hash == found.meta.file_hash and inspect(tmp_path / layout).scales == ""


def test_a_look_at_the_header_knows_it_as_reading_does(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        write(adapter(6.0), tmp_path / layout, format=layout)
        found = read(tmp_path / layout)
        assert len(found.meta.scales) == 64 and inspect(tmp_path / layout).scales == found.meta.scales
    one, other = (read(tmp_path / layout) for layout in LAYOUTS)
    assert one.data_hash == other.data_hash, "the same adapter in a file and in a folder"


def test_folders_that_differ_in_an_unused_setting_are_one(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "adapters" / "peft_folder"
    config = json.loads((source / "adapter_config.json").read_text(encoding="utf-8"))
    known = {}
    for name, changes in (("a", {"lora_dropout": 0.3}), ("b", {"lora_alpha": 2 * config["lora_alpha"]})):
        shutil.copytree(source, tmp_path / name)
        text = json.dumps({**config, **changes})
        (tmp_path / name / "adapter_config.json").write_text(text, encoding="utf-8")
        known[name] = read(tmp_path / name).data_hash
    assert known["a"] == read(source).data_hash != known["b"]


def test_a_strength_that_changed_unseen_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    root = tmp_path / "Lora"
    root.mkdir()
    path = root / "a.safetensors"
    write(adapter(6.0), path, format="diffusers")
    first = Library(root, index=tmp_path / "index")
    first.hash_files()
    wanted = first.get("a").data_hash
    with safe_open(path, "pt") as file:
        kept = dict(file.metadata())
    kept[METADATA_KEY] = kept[METADATA_KEY].replace('"unet.lora_alpha": 6', '"unet.lora_alpha": 9')
    shelf = Shelf(root, tmp_path / "index")
    stamp = shelf.listing.files["a"].stamp
    save_file(load_file(path), path, metadata=kept)
    assert path.stat().st_size == stamp.size
    os.utime(path, ns=(stamp.modified_ns, stamp.modified_ns))
    with pytest.raises(LibraryError, match="no adapter"):
        Library(root, index=tmp_path / "index").by_hash(wanted)
