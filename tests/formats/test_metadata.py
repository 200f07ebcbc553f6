"""What other programs read in our files, and what nobody may."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from difflora.adapter import Adapter, AdapterMeta
from difflora.formats import FORMATS, described, read, write
from difflora.formats.safe import read_header
from difflora.kinds import LoRA
from tests.kinds.samples import sample

TO_K = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "unet.mid_block.resnets.0.conv1"


def linear(rank: int = 4, *, width: int = 768, alpha: float = 2.0) -> LoRA:
    return LoRA(torch.ones(rank, width), torch.ones(8, rank), scale=alpha / rank)


def conv(rank: int = 2, *, alpha: float = 1.0) -> LoRA:
    return LoRA(torch.ones(rank, 8, 3, 3), torch.ones(8, rank, 1, 1), scale=alpha / rank)


def written(tmp_path: Path, adapter: Adapter, *, layout: str = "kohya") -> dict[str, str]:
    path = tmp_path / "a.safetensors"
    write(adapter, path, format=layout)
    return dict(read_header(path / "adapter_model.safetensors" if path.is_dir() else path).metadata)


@pytest.mark.parametrize("layout", [layout.name for layout in FORMATS if layout.is_written])
def test_what_other_programs_sort_adapters_by(tmp_path: Path, layout: str) -> None:
    meta = AdapterMeta("halftone", "sd1", base="shapes-sd", trigger="in halftone style")
    modules = {TO_K: (linear(),), TO_K.replace("to_k", "to_v"): (linear(),), CONV: (conv(),)}
    found = written(tmp_path, Adapter(modules, meta), layout=layout)
    expected = {
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_network_args": '{"conv_dim": "2", "conv_alpha": "1.0"}',
        "ss_output_name": "halftone",
        "ss_sd_model_name": "shapes-sd",
        "ss_tag_frequency": '{"halftone": {"in halftone style": 1}}',
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "halftone",
        "modelspec.resolution": "512x512",
        "modelspec.trigger_phrase": "in halftone style",
    }
    assert expected.items() <= found.items()
    assert found["modelspec.hash_sha256"] == "0x" + found["sshs_model_hash"]
    assert len(found["sshs_legacy_hash"]) == 8


@pytest.mark.parametrize(
    ("family", "width", "training", "version", "architecture", "v2"),
    [
        ("sd1", 768, {}, "sd_v1", "stable-diffusion-v1", "False"),
        ("sd1", 768, {"modelspec.prediction_type": "v"}, "sd_v1_v", "stable-diffusion-v1", "False"),
        ("sd1", 1024, {}, "sd_v2", "stable-diffusion-v2-512", "True"),
        ("sd1", 1024, {"ss_base_model_version": "sd_v2_v"}, "sd_v2_v", "stable-diffusion-v2-768-v", "True"),
        ("sdxl", 2048, {}, "sdxl_base_v1-0", "stable-diffusion-xl-v1-base", "False"),
    ],
)
def test_the_base_model_is_named_as_kohya_and_stability_do(
    tmp_path: Path,
    family: str,
    width: int,
    training: dict[str, str],
    version: str,
    architecture: str,
    v2: str,
) -> None:
    adapter = Adapter({TO_K: (linear(width=width),)}, AdapterMeta("n", family, training=training))
    found = written(tmp_path, adapter)
    assert found["ss_base_model_version"] == version
    assert found["modelspec.architecture"] == f"{architecture}/lora"
    assert found["ss_v2"] == v2
    assert found.get("modelspec.prediction_type") == ("v" if version.endswith("_v") else None)
    assert read(tmp_path / "a.safetensors").meta.family == family


def test_mixed_ranks_are_stated_as_dynamic(tmp_path: Path) -> None:
    other = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    modules = {TO_K: (linear(4, alpha=2.0),), other: (linear(8, alpha=2.0),)}
    found = written(tmp_path, Adapter(modules, AdapterMeta("n", "sd1")))
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("Dynamic", "2.0")


def test_facts_of_training_stay_and_those_of_the_machine_do_not(tmp_path: Path) -> None:
    training = {
        "ss_learning_rate": "0.0001",
        "ss_sd_model_hash": "cc6cb271",
        "ss_tag_frequency": '{"10_cat": {"cat": 3}}',
        "modelspec.author": "someone",
        "ss_sd_model_name": "/home/someone/models/base.safetensors",
        "ss_vae_name": "C:\\Users\\someone\\vae.pt",
        "ss_datasets": '[{"subsets": [{"image_dir": "/home/someone/cats"}]}]',
        "ss_training_started_at": "1700000000.5",
        "ss_training_finished_at": "1700000001.5",
        "ss_session_id": "12345",
        "ss_dataset_dirs": '{"10_cat": {"n_repeats": 10}}',
        "modelspec.date": "2024-01-01T00:00:00",
        "modelspec.hash_sha256": "0xstale",
        "sshs_model_hash": "stale",
        "training_info": '{"step": 3}',
        "format": "pt",
    }
    meta = AdapterMeta("/home/someone/out/cat", "sd1", trigger="cat", training=training)
    found = written(tmp_path, Adapter({TO_K: (linear(),)}, meta))
    text = json.dumps(found)
    for private in ("someone/", "someone\\", "home", "Users", "1700000", "12345", "2024-01", "stale", "step"):
        assert private not in text
    assert found["ss_learning_rate"] == "0.0001"
    assert found["ss_tag_frequency"] == '{"10_cat": {"cat": 3}}'
    assert found["modelspec.author"] == "someone"
    assert found["ss_sd_model_name"] == "base.safetensors"
    assert found["ss_vae_name"] == "vae.pt"
    assert found["modelspec.title"] == "cat"


TAGS = ("\\m/", ":\\ face", "\\\\ face", "/o/", "/\\/\\/\\", "\\\\o//", "d:/", "D:\\", "c:\\ face", "~/~",
        "miku \\(vocaloid\\)", "fate/grand order", "24/7, and/or", "https://example.org/a/b")  # fmt: skip


@pytest.mark.parametrize("tag", TAGS)
def test_tags_that_look_like_paths_stay(tmp_path: Path, tag: str) -> None:
    frequency = json.dumps({"10_cat": {tag: 3, f"a cat, {tag}": 1}})
    meta = AdapterMeta("n", "sd1", training={"ss_tag_frequency": frequency, "ss_training_comment": tag})
    found = written(tmp_path, Adapter({TO_K: (linear(),)}, meta))
    assert (found["ss_tag_frequency"], found["ss_training_comment"]) == (frequency, tag)


@pytest.mark.parametrize(
    "path",
    [
        "/home/me",
        "/mnt/my disk/cats",
        "C:\\Users\\me",
        "d:/cats",
        "\\\\server\\me",
        "~/cats",
        "in /home/me/cats",
    ],
)
@pytest.mark.parametrize(
    "value",
    [
        '{{"10_cat": {{{0}: 3}}}}',
        '{{{0}: {{"cat": 1}}}}',
        '[[{0}], "cat"]',
        '{{"a": {0}, "a": 1}}',
        "{{'a': {0}",
    ],
    ids=["tag", "folder", "list", "hidden-by-a-second", "no-json"],
)
def test_paths_inside_a_value_keep_it_out(tmp_path: Path, path: str, value: str) -> None:
    meta = AdapterMeta("n", "sd1", training={"ss_tag_frequency": value.format(json.dumps(path))})
    assert "ss_tag_frequency" not in written(tmp_path, Adapter({TO_K: (linear(),)}, meta))


def test_values_that_are_not_what_they_look_like_are_no_crash(tmp_path: Path) -> None:
    training = {
        "ss_deep": "[" * 100_000,
        "ss_escaped": '["\\/home\\/me"]',
        "ss_number": "9" * 5000,
        "ss_a": "[1]",
    }
    found = written(tmp_path, Adapter({TO_K: (linear(),)}, AdapterMeta("n", "sd1", training=training)))
    assert found.keys() & training.keys() == {"ss_deep", "ss_number", "ss_a"}


def test_reading_keeps_all_the_file_says(fixtures: Path) -> None:
    path = fixtures / "adapters" / "kohya_sd15_lora.safetensors"
    meta = read(path).meta
    assert dict(meta.training) == dict(read_header(path).metadata)
    assert meta.name == "kohya_sd15_lora"


def test_title_and_alias_stay_apart_until_the_adapter_is_renamed(tmp_path: Path) -> None:
    training = {"modelspec.title": "Cool Style, 2nd edition", "ss_output_name": "cool_v2"}
    adapter = Adapter({TO_K: (linear(),)}, AdapterMeta("Cool Style, 2nd edition", "sd1", training=training))
    assert training.items() <= written(tmp_path, adapter).items()
    renamed = replace(adapter, meta=replace(adapter.meta, name="warm"))
    assert written(tmp_path, renamed).items() >= {"modelspec.title": "warm", "ss_output_name": "warm"}.items()


def test_writing_what_was_read_changes_nothing(tmp_path: Path, adapter: Adapter) -> None:
    write(adapter, tmp_path / "a.safetensors")
    write(read(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_the_header_begins_as_a1111_demands(tmp_path: Path, adapter: Adapter) -> None:
    write(adapter, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes()[8:10] == b'{"'


def test_only_diffusers_files_carry_its_configuration(tmp_path: Path, adapter: Adapter) -> None:
    """diffusers refuses a file with both alpha tensors and a configuration."""
    source = written(tmp_path, adapter, layout="diffusers")
    assert "lora_adapter_metadata" in source
    assert "lora_adapter_metadata" not in written(tmp_path, read(tmp_path / "a.safetensors"))


def picture(width: int = 640, height: int = 320) -> Image.Image:
    """A small picture with something on it, larger than a thumbnail may be."""
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def test_descriptions_tags_and_a_thumbnail_are_in_the_file(tmp_path: Path) -> None:
    meta = described(
        AdapterMeta("halftone", "sd1"), description="Dots.", tags=("dots", "print"), thumbnail=picture()
    )
    found = written(tmp_path, Adapter({TO_K: (linear(),)}, meta))
    assert (found["modelspec.description"], found["modelspec.tags"]) == ("Dots.", "dots, print")
    start, _, encoded = found["modelspec.thumbnail"].partition(",")
    assert start == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (256, 128)
    assert written(tmp_path, read(tmp_path / "a.safetensors")) == found, "and they stay there"


@pytest.mark.parametrize(
    "value", ["https://example.org/a.png", "data:text/html;base64,PGI+", "data:image/png;base64,A"]
)
def test_what_is_no_picture_does_not_stay_as_a_thumbnail(tmp_path: Path, value: str) -> None:
    meta = AdapterMeta("n", "sd1", training={"modelspec.thumbnail": value})
    assert "modelspec.thumbnail" not in written(tmp_path, Adapter({TO_K: (linear(),)}, meta))


@pytest.mark.parametrize(
    ("name", "module", "algorithm"),
    [
        ("lora_tucker", "lycoris.kohya", {"algo": "locon"}),
        ("loha", "lycoris.kohya", {"algo": "loha"}),
        ("dora_out", "lycoris.kohya", {"algo": "locon", "dora_wd": "True"}),
        ("oft", "lycoris.kohya", {"algo": "diag-oft"}),
        ("lora", "networks.lora", {}),
    ],
)
def test_the_algorithm_is_named_as_lycoris_does(
    tmp_path: Path, name: str, module: str, algorithm: dict[str, str]
) -> None:
    found = written(tmp_path, Adapter({CONV: (sample(name, (8, 6, 3, 3)),)}, AdapterMeta("n", "sd1")))
    assert found["ss_network_module"] == module
    assert json.loads(found["ss_network_args"]) == algorithm
