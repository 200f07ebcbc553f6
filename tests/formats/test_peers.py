"""Files that other projects wrote give the ΔW that those projects compute themselves."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from difflora.adapter import Adapter, AdapterMeta, same
from difflora.formats import FORMATS, read, write
from difflora.formats.container import read_tensors, write_tensors
from difflora.kinds import LoRA


def unet(fixtures: Path, name: str) -> UNet2DConditionModel:
    """A random UNet of the layout of SD 1.5 or SDXL, with small widths."""
    config = UNet2DConditionModel.load_config(fixtures / "base" / name)
    return UNet2DConditionModel.from_config(config)  # pyright: ignore[reportReturnType]


def text_encoder(fixtures: Path, name: str) -> CLIPTextModel | CLIPTextModelWithProjection:
    """A random CLIP text encoder of two layers."""
    config = CLIPTextConfig.from_pretrained(fixtures / "base" / name)
    return CLIPTextModelWithProjection(config) if name == "text_encoder_2" else CLIPTextModel(config)


def peft_deltas(component: str, model: nn.Module) -> dict[str, torch.Tensor]:
    """Path -> ΔW as PEFT computes it, of every module of `model` that it has put an adapter on."""
    deltas = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            level = "text_model." if component != "unet" else ""
            path = f"{component}.{level}{name.removeprefix('text_model.')}"
            deltas[path] = module.get_delta_weight("peer").detach()  # pyright: ignore[reportCallIssue]
    return deltas


def assert_equal_deltas(adapter: Adapter, deltas: dict[str, torch.Tensor]) -> None:
    assert deltas.keys() == adapter.modules.keys()
    for path, expected in deltas.items():
        assert (adapter.delta(path, torch.zeros_like(expected)) - expected).abs().max() <= 1e-6
        assert expected.abs().max() > 1e-4


def test_delta_of_a_diffusers_file(fixtures: Path) -> None:
    file = fixtures / "adapters" / "diff_sd15_peft" / "pytorch_lora_weights.safetensors"
    models = load_into_sd1(fixtures, file)
    assert_equal_deltas(read(file), models)


def load_into_sd1(fixtures: Path, file: Path) -> dict[str, torch.Tensor]:
    """What diffusers and PEFT make of an SD 1.5 file."""
    model, text = unet(fixtures, "unet_sd1"), text_encoder(fixtures, "text_encoder")
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        str(file), unet_config=model.config, return_lora_metadata=True
    )
    settings = {"adapter_name": "peer", "metadata": metadata}
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, model, **settings)
    StableDiffusionPipeline.load_lora_into_text_encoder(state, alphas, text, **settings)
    return peft_deltas("unet", model) | peft_deltas("text_encoder", text)


def load_into_sdxl(fixtures: Path, file: Path) -> dict[str, torch.Tensor]:
    """What diffusers and PEFT make of an SDXL file."""
    model = unet(fixtures, "unet_sdxl")
    state, alphas, metadata = StableDiffusionXLPipeline.lora_state_dict(
        str(file), unet_config=model.config, return_lora_metadata=True
    )
    settings = {"adapter_name": "peer", "metadata": metadata}
    StableDiffusionXLPipeline.load_lora_into_unet(state, alphas, model, **settings)
    deltas = peft_deltas("unet", model)
    for name in ("text_encoder", "text_encoder_2"):
        text = text_encoder(fixtures, name)
        StableDiffusionXLPipeline.load_lora_into_text_encoder(state, alphas, text, prefix=name, **settings)
        deltas |= peft_deltas(name, text)
    return deltas


@pytest.mark.parametrize(
    "layout", [layout.name for layout in FORMATS if layout.is_written and not layout.is_folder]
)
def test_diffusers_loads_what_we_write_for_sd15(fixtures: Path, tmp_path: Path, layout: str) -> None:
    adapter = read(fixtures / "adapters" / "kohya_sd15_locon.safetensors")
    plain = {
        # diffusers gives every module of a kohya file the alpha of the majority in attention.
        path: (replace(lora, scale=2.0 / lora.rank),)
        for path, (lora,) in adapter.modules.items()
        if isinstance(lora, LoRA)
    }
    write(Adapter(plain, adapter.meta), tmp_path / "a.safetensors", format=layout)
    assert_equal_deltas(Adapter(plain), load_into_sd1(fixtures, tmp_path / "a.safetensors"))


@pytest.mark.parametrize(
    "layout", [layout.name for layout in FORMATS if layout.is_written and not layout.is_folder]
)
def test_diffusers_loads_what_we_write_for_sdxl(fixtures: Path, tmp_path: Path, layout: str) -> None:
    adapter = read(fixtures / "adapters" / "kohya_sdxl_diffnames_lora.safetensors")
    write(adapter, tmp_path / "a.safetensors", format=layout)
    assert_equal_deltas(adapter, load_into_sdxl(fixtures, tmp_path / "a.safetensors"))


def test_diffusers_files_keep_a_rank_and_scale_for_each_module(fixtures: Path, tmp_path: Path) -> None:
    source = read(fixtures / "adapters" / "diff_sd15_peft" / "pytorch_lora_weights.safetensors")
    mixed: dict[str, tuple[LoRA]] = {}
    for number, (path, (lora,)) in enumerate(sorted(source.modules.items())):
        assert isinstance(lora, LoRA)
        rank = 2 + number % 3
        scale = (0.5, 0.7, -1.25, 1.0)[number % 4]
        mixed[path] = (LoRA(lora.down[:rank], lora.up[:, :rank], scale=scale),)
    write(Adapter(mixed, source.meta), tmp_path / "a.safetensors", format="diffusers")
    assert_equal_deltas(Adapter(mixed), load_into_sd1(fixtures, tmp_path / "a.safetensors"))
    assert same(read(tmp_path / "a.safetensors"), Adapter(mixed))


def test_pipelines_write_what_we_read(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "adapters" / "kohya_sd15_lora.safetensors"
    state, alphas, _ = StableDiffusionPipeline.lora_state_dict(str(source), return_lora_metadata=True)
    model = unet(fixtures, "unet_sd1")
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, model, adapter_name="peer")
    model.save_lora_adapter(str(tmp_path), adapter_name="peer", weight_name="a.safetensors")
    expected = {path: kinds for path, kinds in read(source).modules.items() if path.startswith("unet.")}
    assert same(read(tmp_path / "a.safetensors"), Adapter(expected))


def test_older_spellings_name_the_same_modules(tmp_path: Path) -> None:
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
    layer = "text_encoder.text_model.encoder.layers.0.self_attn"
    spellings = {
        f"unet.{attention}.processor.to_out_lora": f"unet.{attention}.to_out.0",
        f"unet.{attention}.processor.to_k_lora": f"unet.{attention}.to_k",
        f"unet.{attention}.to_q.lora": f"unet.{attention}.to_q",
        f"{layer}.q_proj.lora_linear_layer": f"{layer}.q_proj",
        f"{layer}.to_out_lora": f"{layer}.out_proj",
        f"{layer}.k_proj.lora".replace("text_model.", ""): f"{layer}.k_proj",
    }
    factors = {name: (torch.randn(3, 768), torch.randn(4, 3)) for name in spellings}
    tensors = {f"{name}.down.weight": down for name, (down, _) in factors.items()}
    tensors |= {f"{name}.up.weight": up for name, (_, up) in factors.items()}
    write_tensors(tmp_path / "a.safetensors", tensors)
    expected = {path: (LoRA(*factors[name], scale=1.0),) for name, path in spellings.items()}
    found = read(tmp_path / "a.safetensors")
    assert found.meta.family == "sd1"
    assert same(found, Adapter(expected))


def test_both_namings_of_sdxl_are_read(fixtures: Path, tmp_path: Path) -> None:
    source = fixtures / "adapters" / "kohya_sdxl_diffnames_lora.safetensors"
    write(read(source), tmp_path / "sgm.safetensors")
    names = read_tensors(tmp_path / "sgm.safetensors").tensors.keys()
    assert not names & {name for name in read_tensors(source).tensors if name.startswith("lora_unet_")}
    assert same(read(tmp_path / "sgm.safetensors"), read(source))


def test_a_file_without_alpha_has_scale_one(fixtures: Path, tmp_path: Path) -> None:
    source = read_tensors(fixtures / "adapters" / "kohya_sd15_lora.safetensors")
    kept = {name: tensor for name, tensor in source.tensors.items() if not name.endswith(".alpha")}
    write_tensors(tmp_path / "a.safetensors", kept)
    modules = read(tmp_path / "a.safetensors").modules
    assert len(modules) == len(kept) // 2
    assert all(isinstance(lora, LoRA) and lora.scale == 1.0 for (lora,) in modules.values())


@pytest.mark.parametrize(
    "alpha", [torch.tensor([2.0]), torch.tensor(2), torch.tensor(2.0, dtype=torch.bfloat16)]
)
def test_alpha_of_any_dtype_is_read(tmp_path: Path, alpha: torch.Tensor) -> None:
    module = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {"lora_down.weight": torch.ones(4, 8), "lora_up.weight": torch.ones(8, 4), "alpha": alpha}
    write_tensors(
        tmp_path / "a.safetensors", {f"{module}.{leaf}": tensor for leaf, tensor in tensors.items()}
    )
    ((lora,),) = read(tmp_path / "a.safetensors").modules.values()
    assert isinstance(lora, LoRA)
    assert lora.scale == 0.5


def test_a_flat_up_factor_of_a_convolution_is_read_as_one(tmp_path: Path) -> None:
    module = "lora_unet_mid_block_resnets_0_conv1"
    tensors = {"lora_down.weight": torch.randn(4, 8, 3, 3), "lora_up.weight": torch.randn(8, 4)}
    write_tensors(
        tmp_path / "a.safetensors", {f"{module}.{leaf}": tensor for leaf, tensor in tensors.items()}
    )
    ((lora,),) = read(tmp_path / "a.safetensors").modules.values()
    assert isinstance(lora, LoRA)
    assert lora.up.shape == (8, 4, 1, 1)
    assert torch.equal(lora.up.flatten(1), tensors["lora_up.weight"])


def test_a_name_made_for_display_cannot_move_a_cursor(tmp_path: Path) -> None:
    lora = LoRA(torch.ones(1, 8), torch.ones(8, 1), scale=1.0)
    meta = AdapterMeta(name="red\x1b[31m\nalert", family="sd1")
    write(Adapter({"unet.mid_block.attentions.0.proj_in": (lora,)}, meta), tmp_path / "a.safetensors")
    assert read(tmp_path / "a.safetensors").meta.name == "red\ufffd[31m alert"
