"""read(write(x)) = x, for every format, family, dtype and kind of layer."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from difflora.adapter import Adapter, AdapterMeta, same
from difflora.errors import AdapterFileError, ConfigError
from difflora.formats import FORMATS, hashes, inspect, read, write
from difflora.formats.container import read_tensors
from difflora.kinds import LoRA

NAMES = tuple(layout.name for layout in FORMATS if layout.is_written)
TO_K = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
TO_Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, adapter: Adapter, name: str) -> None:
    path = tmp_path / "a.safetensors"
    written = write(adapter, path, format=name)
    found = read(path)
    assert same(found, adapter)
    assert found.meta.family == adapter.meta.family
    assert (found.meta.name, found.meta.base, found.meta.trigger) == ("everything", "base", "zxc")
    assert found.meta.file_hash == written.data_hash
    in_tensors = name == "kohya"  # the scales; where they are not, they are part of what it is known by
    assert (found.data_hash == written.data_hash) == in_tensors == (not found.meta.scales)
    assert written.rounding == 0.0
    if path.is_file():
        own = hashes(path)
        assert (written.data_hash, written.autov3, written.autov2) == (own.data_hash, own.autov3, own.autov2)


@pytest.mark.parametrize("name", NAMES)
def test_all_formats_hold_the_same_adapter(tmp_path: Path, adapter: Adapter, name: str) -> None:
    write(adapter, tmp_path / "first.safetensors")
    write(read(tmp_path / "first.safetensors"), tmp_path / "second.safetensors", format=name)
    assert same(read(tmp_path / "second.safetensors"), adapter)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_dtype_of_factors_is_kept_or_chosen(
    tmp_path: Path, adapter: Adapter, name: str, dtype: torch.dtype
) -> None:
    write(adapter, tmp_path / "chosen.safetensors", format=name, dtype=dtype)
    found = read(tmp_path / "chosen.safetensors")
    for path, (lora,) in adapter.modules.items():
        (kept,) = found.modules[path]
        assert isinstance(lora, LoRA) and isinstance(kept, LoRA)
        assert torch.equal(kept.down, lora.down.to(dtype)) and torch.equal(kept.up, lora.up.to(dtype))
        assert kept.scale == lora.scale
    write(found, tmp_path / "kept.safetensors", format=name)
    assert same(read(tmp_path / "kept.safetensors"), found)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rank=st.integers(1, 33),
    alpha=st.floats(-1e6, 1e6, width=32),
    name=st.sampled_from(NAMES),
)
def test_every_alpha_is_kept(
    tmp_path_factory: pytest.TempPathFactory, rank: int, alpha: float, name: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"alpha-{name}"
    lora = LoRA(torch.ones(rank, 2), torch.ones(2, rank), scale=alpha / rank)
    adapter = Adapter({TO_Q: (lora,)}, AdapterMeta(family="sd1"))
    write(adapter, path, format=name)
    assert same(read(path), adapter)


def test_a_scale_without_a_float32_alpha_is_kept_to_one_part_in_ten_million(tmp_path: Path) -> None:
    lora = LoRA(torch.ones(3, 2), torch.ones(2, 3), scale=2**0.5)
    write(Adapter({TO_Q: (lora,)}, AdapterMeta(family="sd1")), tmp_path / "a.safetensors")
    (found,) = read(tmp_path / "a.safetensors").modules[TO_Q]
    assert isinstance(found, LoRA)
    assert found.scale == pytest.approx(lora.scale, rel=1e-7)


def test_alpha_is_a_float32_number_whatever_the_factors_are(tmp_path: Path, adapter: Adapter) -> None:
    write(adapter, tmp_path / "a.safetensors", dtype="float16")
    alphas = [
        tensor
        for name, tensor in read_tensors(tmp_path / "a.safetensors").tensors.items()
        if name.endswith(".alpha")
    ]
    assert len(alphas) == len(adapter.modules)
    assert all(alpha.dtype == torch.float32 and alpha.shape == () and alpha == 2.0 for alpha in alphas)


def test_convolutions_keep_four_dimensions(tmp_path: Path, adapter: Adapter) -> None:
    write(adapter, tmp_path / "a.safetensors")
    tensors = read_tensors(tmp_path / "a.safetensors").tensors
    small = [name for name in tensors if "proj_in.lora_up" in name]
    assert small
    for name in small:
        assert tensors[name].shape[2:] == (1, 1)
        assert tensors[name.replace("lora_up", "lora_down")].shape[2:] == (1, 1)


def test_sdxl_has_its_original_names_in_kohya_files(tmp_path: Path) -> None:
    path = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    lora = LoRA(torch.ones(1, 2), torch.ones(2, 1), scale=1.0)
    write(Adapter({path: (lora,)}, AdapterMeta(family="sdxl")), tmp_path / "a.safetensors")
    modules = {name.split(".")[0] for name in read_tensors(tmp_path / "a.safetensors").tensors}
    assert modules == {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"}


def test_the_family_is_found_from_paths_where_the_adapter_does_not_say(
    tmp_path: Path, adapter: Adapter
) -> None:
    nameless = replace(adapter, meta=AdapterMeta())
    write(nameless, tmp_path / "a.safetensors")
    assert read(tmp_path / "a.safetensors").meta.family == adapter.meta.family


WRITE = """
import sys, torch
from difflora.adapter import Adapter, AdapterMeta
from difflora.formats import write
from difflora.kinds import LoRA
blocks = {f"unet.down_blocks.{n}.attentions.0.transformer_blocks.0.attn1.to_q" for n in range(3)}
modules = {path: (LoRA(torch.ones(4, 8), torch.ones(8, 4), scale=0.5),) for path in blocks}
training = {key: "x" for key in {"ss_a", "ss_b", "ss_c", "modelspec.author"}}
write(Adapter(modules, AdapterMeta("n", "sd1", training=training)), sys.argv[1], format=sys.argv[2])
"""


@pytest.mark.parametrize("name", NAMES)
def test_other_processes_write_the_same_file(tmp_path: Path, name: str) -> None:
    contents = set()
    for seed in "1", "2":
        target = tmp_path / f"{seed}.safetensors"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", WRITE, str(target), name], env=environment, check=True)
        files = sorted(target.rglob("*.*")) if target.is_dir() else [target]
        contents.add(b"".join(file.read_bytes() for file in files))
    assert len(contents) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_look_at_the_header_agrees_with_reading(tmp_path: Path, adapter: Adapter, name: str) -> None:
    path = tmp_path / "a.safetensors"
    write(adapter, path, format=name)
    report = inspect(path)
    assert report.ok
    assert (report.format, report.family, report.name, report.trigger) == (
        name,
        adapter.meta.family,
        "everything",
        "zxc",
    )
    assert report.kinds == dict.fromkeys(adapter.modules, ("lora",))
    assert report.kind_counts == {"lora": len(adapter.modules)}
    assert report.matched == tuple(sorted(adapter.modules))
    assert report.ranks == (2, 3, 4)
    files = path.rglob("*.safetensors") if path.is_dir() else [path]
    assert report.size == sum(file.stat().st_size for file in files)


def test_unknown_formats_and_dtypes_are_refused_with_those_there_are(
    tmp_path: Path, adapter: Adapter
) -> None:
    with pytest.raises(ConfigError, match="'lycoris'; there are: kohya, peft, diffusers"):
        write(adapter, tmp_path / "a.safetensors", format="lycoris")
    with pytest.raises(ConfigError, match="int8, expected float32, float16, bfloat16"):
        write(adapter, tmp_path / "a.safetensors", dtype="int8")


def test_values_that_are_not_finite_never_reach_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    good = LoRA(torch.ones(1, 2), torch.full((2, 1), 1e6), scale=1.0)
    broken = replace(good, down=torch.tensor([[1.0, float("nan")]]))
    meta = AdapterMeta("n", "sd1")
    with pytest.raises(
        AdapterFileError, match=r"(?s)not finite .*attn1_to_q\.lora_down\.weight: 1 of 2 values"
    ):
        write(Adapter({TO_Q: (broken,)}, meta), path)
    with pytest.raises(AdapterFileError, match=r"(?s)not finite as torch\.float16 .*lora_up"):
        write(Adapter({TO_Q: (good,)}, meta), path, dtype="float16")
    with pytest.raises(AdapterFileError, match=r"(?s)attn1\.to_q: alpha is inf, expected"):
        write(Adapter({TO_Q: (replace(good, scale=float("inf")),)}, meta), path)
    assert not path.exists()


def test_what_a_format_cannot_hold_is_named_in_full(tmp_path: Path) -> None:
    lora = LoRA(torch.ones(1, 2), torch.ones(2, 1), scale=1.0)
    meta = AdapterMeta("n", "sd1")
    two = Adapter({TO_Q: (lora, lora), TO_K: ()}, meta, tokens={"cat": {"text_encoder": torch.ones(1, 4)}})
    expected = r"(?s)problems: 2.*to_k: holds nothing.*to_q: holds lora, lora"
    with pytest.raises(AdapterFileError, match=expected):
        write(two, tmp_path / "a.safetensors")
    with pytest.raises(
        AdapterFileError, match=r"(?s)problems: 3.*'cat'.*to_k: holds nothing.*to_q: holds lora, lora"
    ):
        write(two, tmp_path / "a.safetensors", format="diffusers")
    with pytest.raises(AdapterFileError, match="changes no module"):
        write(Adapter({}, meta), tmp_path / "a.safetensors")
    with pytest.raises(AdapterFileError, match=r"(?s)1 of 1 paths are no modules of sd1.*unet\.nowhere"):
        write(Adapter({"unet.nowhere": (lora,)}, meta), tmp_path / "a.safetensors")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, adapter: Adapter) -> None:
    target = tmp_path / "absent" / "a.safetensors"
    with pytest.raises(AdapterFileError, match=r"absent/a\.safetensors: cannot be written: No such file"):
        write(adapter, target)
