"""Hashes are those of other tools, bit for bit."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from difflora.formats.container import read_tensors, write_tensors
from difflora.formats.hashes import hashes, kohya_hashes

ADAPTERS = Path(__file__).parents[1] / "fixtures" / "adapters"


@pytest.mark.parametrize("name", ["kohya_sd15_lora", "kohya_sd15_locon", "kohya_sdxl_diffnames_lora"])
def test_the_hashes_kohya_wrote_into_its_own_files(name: str) -> None:
    file = read_tensors(ADAPTERS / f"{name}.safetensors")
    found = kohya_hashes(file.tensors, file.metadata)
    assert found["sshs_model_hash"] == file.metadata["sshs_model_hash"] == file.data_hash
    assert found["sshs_legacy_hash"] == file.metadata["sshs_legacy_hash"]


def test_legacy_hash_of_a_large_file_is_that_of_its_training_metadata_alone() -> None:
    tensors = {"a": torch.rand(700, 500), "b": torch.rand(10, 10)}
    metadata = {"ss_network_dim": "4", "ss_comment": "größe", "modelspec.title": "not part of it"}
    kept = {key: metadata[key] for key in ("ss_network_dim", "ss_comment")}
    window = save(tensors, kept)[0x100000:0x110000]
    assert kohya_hashes(tensors, metadata)["sshs_legacy_hash"] == hashlib.sha256(window).hexdigest()[:8]


def test_file_hashes_are_of_the_whole_file_and_of_its_data(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.rand(700, 500)}
    written = write_tensors(path, tensors, {"title": "one"})
    content = path.read_bytes()
    found = hashes(path)
    assert found.sha256 == written.file_hash == hashlib.sha256(content).hexdigest()
    assert found.autov2 == found.sha256[:10]
    assert found.data_hash == written.data_hash
    assert found.autov3 == hashlib.sha256(content[-tensors["a"].nbytes :]).hexdigest()[:12]
    assert found.autov1 == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]


def test_metadata_changes_the_file_hash_but_not_the_data_hash(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(4, 4)}
    one = write_tensors(tmp_path / "one.safetensors", tensors, {"title": "one"})
    two = write_tensors(tmp_path / "two.safetensors", tensors, {"title": "two"})
    assert one.data_hash == two.data_hash
    assert one.file_hash != two.file_hash
