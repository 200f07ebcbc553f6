"""PEFT folders whose tensors are pickles: named with the command that converts them, which does."""

import shutil
from pathlib import Path

import pytest
import torch

from difflora.adapter import Adapter, AdapterMeta, same
from difflora.errors import AdapterFileError
from difflora.formats import read, write
from difflora.formats.container import read_tensors
from tests.commandline import Cli
from tests.kinds.samples import sample

UNET = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


def pickled(folder: Path) -> Path:
    """The tensors of a folder as an older PEFT saved them."""
    tensors = folder / "adapter_model.safetensors"
    torch.save(dict(read_tensors(tensors).tensors), folder / "adapter_model.bin")
    tensors.unlink()
    return folder


def test_a_folder_of_one_pickle_is_converted_by_either_name(cli: Cli, tmp_path: Path) -> None:
    """With the scale that its configuration gives it."""
    folder = tmp_path / "style.v1"
    adapter = Adapter({UNET: (sample("lora", (8, 6)),)}, AdapterMeta("n", "sd1"))
    write(adapter, folder, format="peft")
    pickled(folder)
    with pytest.raises(AdapterFileError, match=r'difflora convert ".*style\.v1.*adapter_model\.bin"'):
        read(folder)
    made = tmp_path / "style.v1.safetensors"
    for source in (folder, folder / "adapter_model.bin"):
        said = cli("convert", source)
        assert said.code == 0 and made.name in said.out, said
        assert same(read(made), adapter)
        made.unlink()
    said = cli("convert", folder, "--format", "peft", "--output", tmp_path / "again")
    assert said.code == 0 and same(read(tmp_path / "again"), adapter)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "style.v1"]
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.bin"]


def test_components_may_be_pickles_or_not(cli: Cli, tmp_path: Path) -> None:
    adapter = Adapter(
        {UNET: (sample("lora", (8, 6)),), TEXT: (sample("lora", (12, 6)),)}, AdapterMeta("n", "sd1")
    )
    write(adapter, tmp_path / "both", format="peft")
    pickled(tmp_path / "both" / "text_encoder")
    assert cli("convert", tmp_path / "both", "--output", tmp_path / "a.safetensors").code == 0
    assert same(read(tmp_path / "a.safetensors"), adapter)


def test_a_pickle_without_its_configuration_is_refused(cli: Cli, tmp_path: Path) -> None:
    write(Adapter({UNET: (sample("lora", (8, 6)),)}, AdapterMeta("n", "sd1")), tmp_path / "a", format="peft")
    alone = shutil.copy(pickled(tmp_path / "a") / "adapter_model.bin", tmp_path / "adapter_model.bin")
    said = cli("convert", alone, "--output", tmp_path / "b.safetensors")
    assert said.code == 1 and "adapter_config.json" in said.err and not (tmp_path / "b.safetensors").exists()
