"""Adapters for Flux.1 and Stable Diffusion 3: every spelling of one file reads to the same ΔW, and back."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from difflora.adapter import Adapter, AdapterMeta, same
from difflora.errors import AdapterFileError
from difflora.formats import inspect, read, write
from difflora.kinds import Kind, LoRA

RANK, COLUMNS, SCALE, H = 4, 8, 0.5, 6
BLOCK, SINGLE = "transformer.transformer_blocks.0", "transformer.single_transformer_blocks.0"
TEXT, T5 = "text_model.encoder.layers.0.mlp.fc1", "encoder.block.0.layer.0.SelfAttention.q"
Rows = list[tuple[int, int]]

# A module as kohya names it -> the paths that it stands for, with their rows in it; None: all of them.
FLUX: dict[str, dict[str, Rows | None]] = {
    "lora_unet_double_blocks_0_img_attn_qkv": {
        f"{BLOCK}.attn.to_{letter}": [(i * H, i * H + H)] for i, letter in enumerate("qkv")
    },
    "lora_unet_double_blocks_0_txt_attn_qkv": {
        f"{BLOCK}.attn.add_{letter}_proj": [(i * H, i * H + H)] for i, letter in enumerate("qkv")
    },
    "lora_unet_single_blocks_0_linear1": {
        **{f"{SINGLE}.attn.to_{letter}": [(i * H, i * H + H)] for i, letter in enumerate("qkv")},
        f"{SINGLE}.proj_mlp": [(3 * H, 7 * H)],
    },
    "lora_unet_final_layer_adaLN_modulation_1": {"transformer.norm_out.linear": [(H, 2 * H), (0, H)]},
    "lora_unet_double_blocks_0_img_mlp_0": {f"{BLOCK}.ff.net.0.proj": None},
    "lora_unet_single_blocks_0_linear2": {f"{SINGLE}.proj_out": None},
    f"lora_te1_{TEXT.replace('.', '_')}": {f"text_encoder.{TEXT}": None},
    f"lora_te3_{T5.replace('.', '_')}": {f"text_encoder_2.{T5}": None},
}
SD3: dict[str, dict[str, Rows | None]] = {
    "lora_unet_joint_blocks_0_x_block_attn_qkv": {
        f"{BLOCK}.attn.to_{letter}": [(i * H, i * H + H)] for i, letter in enumerate("qkv")
    },
    "lora_unet_joint_blocks_0_context_block_attn_qkv": {
        f"{BLOCK}.attn.add_{letter}_proj": [(i * H, i * H + H)] for i, letter in enumerate("qkv")
    },
    "lora_unet_joint_blocks_0_x_block_attn2_qkv": {
        f"{BLOCK}.attn2.to_{letter}": [(i * H, i * H + H)] for i, letter in enumerate("qkv")
    },
    "lora_unet_joint_blocks_0_context_block_adaLN_modulation_1": {f"{BLOCK}.norm1_context.linear": None},
    # The last block of the medium models, in its true width.
    "lora_unet_joint_blocks_23_context_block_adaLN_modulation_1": {
        "transformer.transformer_blocks.23.norm1_context.linear": [(1536, 3072), (0, 1536)]
    },
    "lora_unet_final_layer_adaLN_modulation_1": {"transformer.norm_out.linear": [(H, 2 * H), (0, H)]},
    f"lora_te2_{TEXT.replace('.', '_')}": {f"text_encoder_2.{TEXT}": None},
    f"lora_te3_{T5.replace('.', '_')}": {f"text_encoder_3.{T5}": None},
}
FAMILIES = {"flux": FLUX, "sd3": SD3}


def height(parts: Mapping[str, Rows | None]) -> int:
    return max(stop for rows in parts.values() for _, stop in rows or [(0, H)])


def factors(name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """down and up of each module of a kohya file for that family."""
    generator = torch.Generator().manual_seed(7)
    return {
        module: (
            torch.randn(RANK, COLUMNS, generator=generator),
            torch.randn(height(parts), RANK, generator=generator),
        )
        for module, parts in FAMILIES[name].items()
    }


def kohya(name: str) -> dict[str, Tensor]:
    """A kohya file."""
    return {
        f"{module}.{leaf}": tensor
        for module, (down, up) in factors(name).items()
        for leaf, tensor in (
            ("lora_down.weight", down),
            ("lora_up.weight", up),
            ("alpha", torch.tensor(SCALE * RANK)),
        )
    }


def twin(name: str) -> dict[str, Tensor]:
    """The same adapter as diffusers writes it; the scale is in up, and exact since it is a power of two."""
    tensors = {}
    for module, (down, up) in factors(name).items():
        for path, rows in FAMILIES[name][module].items():
            own = up if rows is None else torch.cat([up[start:stop] for start, stop in rows])
            tensors |= {f"{path}.lora_A.weight": down.clone(), f"{path}.lora_B.weight": own * SCALE}
    return tensors


def omi(name: str) -> dict[str, Tensor]:
    """Its transformer as OneTrainer writes it under OMI's names: the parts of a fused module by number."""
    tensors = {}
    for module, parts in FAMILIES[name].items():
        down, up = factors(name)[module]
        if not module.startswith("lora_unet_"):
            continue
        flat = module.removeprefix("lora_unet_")
        for number, rows in enumerate(parts.values()):
            one = f"transformer.{flat}.{number}" if len(parts) > 1 else f"transformer.{flat}"
            own = (
                up if rows is None or len(parts) == 1 else torch.cat([up[start:stop] for start, stop in rows])
            )
            tensors |= {f"{one}.lora_down.weight": down.clone(), f"{one}.lora_up.weight": own.clone()}
            tensors[f"{one}.alpha"] = torch.tensor(SCALE * RANK)
    return tensors


def saved(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file(tensors, path)
    return path


def names_of(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return {name.split(".", 1)[0] for name in file.keys()}  # noqa: SIM118


def assert_same_deltas(found: Adapter, expected: Adapter) -> None:
    assert set(found.modules) == set(expected.modules)
    for path in expected.modules:
        torch.testing.assert_close(found.delta(path), expected.delta(path), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_kohya_file_and_its_diffusers_twin_are_the_same_adapter(tmp_path: Path, name: str) -> None:
    ours = read(saved(kohya(name), tmp_path / "kohya.safetensors"))
    other = read(saved(twin(name), tmp_path / "diffusers.safetensors"))
    assert ours.meta.family == other.meta.family == name
    assert set(ours.modules) == {path for parts in FAMILIES[name].values() for path in parts}
    for path in other.modules:
        assert torch.equal(ours.delta(path), other.delta(path)), path


@pytest.mark.parametrize("name", FAMILIES)
def test_writing_gives_back_the_names_and_the_factors(tmp_path: Path, name: str) -> None:
    adapter = read(saved(kohya(name), tmp_path / "kohya.safetensors"))
    back = tmp_path / "back.safetensors"
    write(adapter, back)
    assert names_of(back) == set(FAMILIES[name])
    assert same(read(back), adapter)
    write(adapter, tmp_path / "peer.safetensors", format="diffusers")
    assert_same_deltas(read(tmp_path / "peer.safetensors"), adapter)


@pytest.mark.parametrize("name", FAMILIES)
def test_separate_factors_come_through_a_fused_file_as_they_were(tmp_path: Path, name: str) -> None:
    tensors = {key: tensor + 0.01 * index for index, (key, tensor) in enumerate(twin(name).items())}
    adapter = read(saved(tensors, tmp_path / "diffusers.safetensors"))
    write(adapter, tmp_path / "kohya.safetensors")
    assert names_of(tmp_path / "kohya.safetensors") == set(FAMILIES[name])
    assert same(read(tmp_path / "kohya.safetensors"), adapter)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("case", ["scales", "ranks", "zero-up", "zero-up-and-ranks"])
def test_what_is_written_as_kohya_reads_back_the_same(tmp_path: Path, name: str, case: str) -> None:
    """Fused modules whose parts differ in their own ways."""
    generator = torch.Generator().manual_seed(1)
    modules: dict[str, tuple[Kind, ...]] = {}
    for index, letter in enumerate("qkv"):
        rank = RANK + index if "ranks" in case else RANK
        down, up = torch.randn(rank, COLUMNS, generator=generator), torch.randn(H, rank, generator=generator)
        if "zero" in case and letter == "k":
            up = torch.zeros_like(up)
        scale = 0.3 * (index + 1) if case == "scales" else SCALE
        modules[f"{BLOCK}.attn.to_{letter}"] = (LoRA(down, up, scale),)
    adapter = Adapter(modules, meta=AdapterMeta(family=name))
    write(adapter, tmp_path / "kohya.safetensors", format="kohya")
    assert same(read(tmp_path / "kohya.safetensors"), adapter)
    is_fused = not any("lora_transformer_" in module for module in names_of(tmp_path / "kohya.safetensors"))
    assert is_fused == (case in {"ranks", "zero-up"})


def test_a_lokr_of_two_whole_sides_is_read_from_a_fused_module(tmp_path: Path) -> None:
    """Its blocks of 9 rows end inside the parts of 6."""
    generator = torch.Generator().manual_seed(1)
    module = "lora_unet_double_blocks_0_img_attn_qkv"
    w1, w2 = torch.randn(2, 2, generator=generator), torch.randn(9, 4, generator=generator)
    path = saved({f"{module}.lokr_w1": w1, f"{module}.lokr_w2": w2}, tmp_path / "lokr.safetensors")
    assert inspect(path).ok
    adapter = read(path)
    total = torch.kron(w1, w2)
    assert set(adapter.modules) == set(FLUX[module])
    for index, letter in enumerate("qkv"):
        found = adapter.delta(f"{BLOCK}.attn.to_{letter}")
        torch.testing.assert_close(found, total[index * H : index * H + H], rtol=0, atol=0)
    write(adapter, tmp_path / "back.safetensors", format="kohya")
    assert same(read(tmp_path / "back.safetensors"), adapter)


@pytest.mark.parametrize("name", FAMILIES)
def test_other_spellings_of_the_same_file(tmp_path: Path, name: str) -> None:
    adapter = read(saved(kohya(name), tmp_path / "kohya.safetensors"))
    twins = twin(name).items()
    main = {key: tensor for key, tensor in twins if key.startswith("transformer.")}
    onetrainer = {
        "lora_" + module.replace(".", "_") + leaf: tensor
        for key, tensor in main.items()
        for module, leaf in [key.split(".lora_")]
        for leaf in [".lora_down.weight" if leaf.startswith("A") else ".lora_up.weight"]
    }
    bare = {key.removeprefix("transformer."): tensor for key, tensor in main.items()}
    for spelling, tensors in {"onetrainer": onetrainer, "bare": bare, "omi": omi(name)}.items():
        found = read(saved(tensors, tmp_path / f"{spelling}.safetensors"))
        assert found.meta.family == name
        expected = {path: kinds for path, kinds in adapter.modules.items() if path.startswith("transformer.")}
        assert_same_deltas(found, Adapter(expected))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_header_alone_tells_every_path(tmp_path: Path, name: str) -> None:
    report = inspect(saved(kohya(name), tmp_path / "kohya.safetensors"))
    assert report.ok, report
    assert (report.family, report.format, report.ranks) == (name, "kohya", (RANK,))
    assert set(report.matched) == {path for parts in FAMILIES[name].values() for path in parts}


def test_diffusers_converts_a_flux_file_to_the_same_changes(tmp_path: Path) -> None:
    """Its converter knows true heights only, and drops what is outside of blocks."""
    generator = torch.Generator().manual_seed(3)
    heights = {
        "double_blocks_4_img_attn_qkv": 9216,
        "double_blocks_4_txt_attn_proj": 3072,
        "single_blocks_9_linear1": 21504,
        "single_blocks_9_modulation_lin": 9216,
    }
    tensors = {}
    for module, rows in heights.items():
        tensors[f"lora_unet_{module}.lora_down.weight"] = torch.randn(3, 2, generator=generator)
        tensors[f"lora_unet_{module}.lora_up.weight"] = torch.randn(rows, 3, generator=generator)
        tensors[f"lora_unet_{module}.alpha"] = torch.tensor(1.5)
    adapter = read(saved(tensors, tmp_path / "kohya.safetensors"))
    converted = _convert_kohya_flux_lora_to_diffusers(dict(tensors))
    converted = {key: tensor.clone() for key, tensor in converted.items()}
    assert_same_deltas(read(saved(converted, tmp_path / "diffusers.safetensors")), adapter)


def test_xlabs_names_leave_the_feed_forward_part_alone(tmp_path: Path) -> None:
    tensors = {
        "double_blocks.0.processor.qkv_lora1.down.weight": torch.randn(RANK, COLUMNS),
        "double_blocks.0.processor.qkv_lora1.up.weight": torch.randn(3 * H, RANK),
        "double_blocks.0.processor.proj_lora2.down.weight": torch.randn(RANK, COLUMNS),
        "double_blocks.0.processor.proj_lora2.up.weight": torch.randn(H, RANK),
        "single_blocks.0.processor.qkv_lora.down.weight": torch.randn(RANK, COLUMNS),
        "single_blocks.0.processor.qkv_lora.up.weight": torch.randn(3 * H, RANK),
    }
    adapter = read(saved(tensors, tmp_path / "xlabs.safetensors"))
    up, down = (tensors[f"single_blocks.0.processor.qkv_lora.{leaf}.weight"] for leaf in ("up", "down"))
    assert f"{SINGLE}.proj_mlp" not in adapter.modules
    torch.testing.assert_close(adapter.delta(f"{SINGLE}.attn.to_k"), (up @ down)[H : 2 * H])
    assert f"{BLOCK}.attn.to_add_out" in adapter.modules
    write(adapter, tmp_path / "kohya.safetensors")
    assert_same_deltas(read(tmp_path / "kohya.safetensors"), adapter)


def test_both_spellings_of_one_module_in_a_file_are_refused(tmp_path: Path) -> None:
    tensors = {**kohya("flux"), **{key: tensor for key, tensor in twin("flux").items() if "to_q" in key}}
    with pytest.raises(AdapterFileError):
        read(saved(tensors, tmp_path / "both.safetensors"))
