"""Single-file checkpoints of every layout load without a network, bit for bit, or say all that is wrong."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn

from difflora.errors import BaseModelError
from difflora.families import family, load
from tests.families import tiny_bases
from tests.families.tiny_bases import Tensors

LAYOUTS = ("sd15", "sd2", "sd2-v", "sdxl")
Save = Callable[[Tensors], Path]


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tiny_bases.shrink_assets(tmp_path / "assets", monkeypatch)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    return lambda tensors: tiny_bases.save_half(tensors, tmp_path / "tiny.safetensors")


def make(assets: Path, layout: str) -> tuple[dict[str, nn.Module], Tensors]:
    """Random components, and the same as the tensors of a checkpoint."""
    components = tiny_bases.random_components(assets / layout)
    member = family("sdxl" if layout == "sdxl" else "sd1")
    return components, tiny_bases.original_tensors(components, member, open_clip=layout.startswith("sd2"))


def same(loaded: nn.Module, made: nn.Module, dtype: torch.dtype = torch.float32) -> bool:
    """Whether two modules hold the same numbers, the first one read from float16."""
    state, expected = loaded.state_dict(), made.state_dict()
    exact = all(torch.equal(state[name], value.half().to(dtype)) for name, value in expected.items())
    return exact and set(state) == set(expected)


def prediction(layout: str) -> str:
    return "v_prediction" if layout == "sd2-v" else "epsilon"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_tensor_arrives_bit_for_bit(assets: Path, save: Save, layout: str) -> None:
    components, tensors = make(assets, layout)
    path = save(tensors)
    model = load(path, device="cpu", prediction_type=prediction(layout))
    assert all(same(getattr(model.pipeline, name), made) for name, made in components.items())
    assert (model.facts.variant, model.facts.name) == (layout.removesuffix("-v"), "tiny")
    assert len(model.facts.sha256) == 64
    assert set(model.shapes()) <= model.family.paths
    assert model.pipeline.scheduler.config["prediction_type"] == prediction(layout)
    assert getattr(model.pipeline, "safety_checker", None) is None


@pytest.mark.parametrize("layout", ["sd15", "sdxl"])
def test_the_pipeline_of_a_checkpoint_draws(assets: Path, save: Save, layout: str) -> None:
    model = load(save(make(assets, layout)[1]), device="cpu")
    pixels = model.pipeline("a cat", num_inference_steps=1, height=64, width=64, output_type="pt").images
    assert pixels.shape == (1, 3, 64, 64)
    assert bool(pixels.isfinite().all())


@pytest.mark.parametrize(
    ("layout", "dtype", "vae_dtype"),
    [
        ("sd15", torch.float16, torch.float16),
        ("sd15", torch.bfloat16, torch.float32),
        ("sdxl", torch.float16, torch.float32),
        ("sdxl", torch.bfloat16, torch.float32),
    ],
)
def test_number_formats(
    assets: Path, save: Save, layout: str, dtype: torch.dtype, vae_dtype: torch.dtype
) -> None:
    components, tensors = make(assets, layout)
    model = load(save(tensors), device="cpu", dtype=dtype)
    assert model.dtype == dtype
    assert model.pipeline.vae.dtype == vae_dtype
    for name, made in components.items():
        assert same(getattr(model.pipeline, name), made, vae_dtype if name == "vae" else dtype)
    latents = torch.randn(1, 4, 8, 8)
    mean, std = model.encode_images(model.decode_latents(latents))
    assert mean.shape == std.shape == latents.shape
    assert mean.dtype == torch.float32


def test_v_prediction_and_zero_snr_reach_the_scheduler(assets: Path, save: Save) -> None:
    tensors = make(assets, "sdxl")[1] | {"v_pred": torch.tensor(0.0), "ztsnr": torch.tensor(0.0)}
    model = load(save(tensors), device="cpu")
    config = model.pipeline.scheduler.config
    assert config["prediction_type"] == "v_prediction"
    assert config["rescale_betas_zero_snr"]
    assert config["timestep_spacing"] == "trailing"
    assert model.noise_schedule().alphas_cumprod[-1] == 0.0
    ordinary = load(save(tensors), device="cpu", prediction_type="epsilon", zero_terminal_snr=False)
    assert ordinary.noise_schedule().alphas_cumprod[-1] > 0.004


def test_known_leftovers_of_training_are_no_error(assets: Path, save: Save) -> None:
    _, tensors = make(assets, "sd15")
    leftovers = (
        "cond_stage_model.transformer.text_model.embeddings.position_ids",
        "cond_stage_model.logit_scale",
        "cond_stage_model.transformer.text_projection.weight",
        "model_ema.diffusion_modelinput_blocks00weight",
        "alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "first_stage_model.loss.logvar",
        "betas",
    )
    assert load(save(tensors | {name: torch.zeros(1) for name in leftovers}), device="cpu")


def test_everything_wrong_is_one_error_before_anything_is_read(assets: Path, save: Save) -> None:
    _, tensors = make(assets, "sdxl")
    del tensors["model.diffusion_model.middle_block.1.norm.weight"]
    del tensors["conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_bias"]
    del tensors["first_stage_model.decoder.up.3.block.0.norm1.bias"]
    tensors["model.diffusion_model.middle_block.1.new.weight"] = torch.zeros(3)
    tensors["conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"] = torch.zeros(17)
    with pytest.raises(BaseModelError) as caught:
        load(save(tensors), device="cpu")
    message = str(caught.value)
    assert "5 tensors" in message
    assert "missing: model.diffusion_model.middle_block.1.norm.weight (16,)" in message
    assert "missing: conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_bias (72,)" in message
    assert "missing: first_stage_model.decoder.up.3.block.0.norm1.bias (8,)" in message
    assert "not known: model.diffusion_model.middle_block.1.new.weight (3,)" in message
    assert "text_model.final_layer_norm.bias is (17,), expected (16,)" in message


@pytest.mark.parametrize("prefix", ["model.diffusion_model.out.", "cond_stage_model.", "first_stage_model."])
def test_a_missing_component_is_an_error(assets: Path, save: Save, prefix: str) -> None:
    _, tensors = make(assets, "sd15")
    kept = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
    with pytest.raises(BaseModelError, match=f"missing: {prefix if 'model.diff' in prefix else ''}"):
        load(save(kept), device="cpu")


def test_a_tensor_left_without_data_is_an_error(
    assets: Path, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers leaves what it does not find on the meta device, without a word."""
    _, tensors = make(assets, "sd15")
    del tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"]
    monkeypatch.setattr("difflora.families.single_file.checkpoint_problems", lambda *_, **__: [])
    with pytest.raises(BaseModelError, match=r"text_encoder\.final_layer_norm\.bias"):
        load(save(tensors), device="cpu")


def old_attention(name: str) -> str:
    """The name that diffusers gave a VAE tensor until 2023."""
    for new, old in (
        (".to_q.", ".query."),
        (".to_k.", ".key."),
        (".to_v.", ".value."),
        (".to_out.0.", ".proj_attn."),
    ):
        name = name.replace(new, old)
    return name


VAE_SPELLINGS: dict[str, Callable[[nn.Module], Tensors]] = {
    "original": tiny_bases.original_vae,
    "in a checkpoint": lambda vae: {
        f"first_stage_model.{name}": value for name, value in tiny_bases.original_vae(vae).items()
    },
    "with training's": lambda vae: tiny_bases.original_vae(vae) | {"loss.logvar": torch.zeros(1)},
    "diffusers": lambda vae: vae.state_dict(),
    "old diffusers": lambda vae: {old_attention(name): value for name, value in vae.state_dict().items()},
    "matrices": lambda vae: {
        name: value.squeeze() if ".attn_1." in name else value
        for name, value in tiny_bases.original_vae(vae).items()
    },
}


@pytest.mark.parametrize("spelling", VAE_SPELLINGS)
def test_another_vae_from_a_file(assets: Path, save: Save, tmp_path: Path, spelling: str) -> None:
    components, tensors = make(assets, "sd15")
    torch.manual_seed(1)
    other = AutoencoderKL.from_config(dict(components["vae"].config))
    path = tiny_bases.save_half(VAE_SPELLINGS[spelling](other), tmp_path / "vae.safetensors")
    without = {name: value for name, value in tensors.items() if not name.startswith("first_stage_model.")}
    model = load(save(without), device="cpu", vae=path)
    assert same(model.pipeline.vae, other)
    assert same(model.pipeline.unet, components["unet"])


def test_another_vae_in_the_place_of_the_files_own(assets: Path, save: Save, tmp_path: Path) -> None:
    components, tensors = make(assets, "sd15")
    torch.manual_seed(1)
    other = AutoencoderKL.from_config(dict(components["vae"].config))
    path = tiny_bases.save_half(tiny_bases.original_vae(other), tmp_path / "vae.safetensors")
    assert same(load(save(tensors), device="cpu", vae=path).pipeline.vae, other)


def test_another_vae_from_a_folder(assets: Path, save: Save, tmp_path: Path) -> None:
    components, tensors = make(assets, "sdxl")
    torch.manual_seed(1)
    other = AutoencoderKL.from_config(dict(components["vae"].config) | {"force_upcast": False})
    other.save_pretrained(tmp_path / "whole" / "vae")
    for folder in (tmp_path / "whole", tmp_path / "whole" / "vae"):
        model = load(save(tensors), device="cpu", vae=folder, dtype="float16")
        assert same(model.pipeline.vae, other, torch.float16), "its own config says that it fits float16"


def test_a_vae_that_is_none(assets: Path, save: Save, tmp_path: Path) -> None:
    components, tensors = make(assets, "sd15")
    base = save(tensors)
    broken = tiny_bases.original_vae(components["vae"])
    del broken["decoder.conv_out.bias"]
    path = tmp_path / "vae.safetensors"
    save_file(broken, path)
    with pytest.raises(BaseModelError, match=r"missing: decoder\.conv_out\.bias"):
        load(base, device="cpu", vae=path)
    with pytest.raises(BaseModelError, match="vae="):
        load(base, device="cpu", vae=tmp_path / "vae.pt")
    with pytest.raises(BaseModelError, match="weights"):
        load(base, device="cpu", vae=assets)


def test_a_family_forced_on_a_file_of_another_is_an_error(assets: Path, save: Save) -> None:
    with pytest.raises(BaseModelError, match="no model of Stable Diffusion XL"):
        load(save(make(assets, "sd15")[1]), device="cpu", family="sdxl")


def test_the_file_is_read_as_it_was_written(assets: Path, save: Save) -> None:
    path = save(make(assets, "sd15")[1])
    before = load_file(path)
    load(path, device="cpu", dtype="float16").pipeline.unet.conv_in.weight.zero_()
    after = load_file(path)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_loading_is_quiet(assets: Path, save: Save, shapes_folder: Path) -> None:
    path = save(make(assets, "sdxl")[1])
    code = f"""
import sys
import difflora.families.family
from pathlib import Path
from difflora.families import load
sys.modules["difflora.families.family"].ASSETS = Path({str(assets)!r})
load({str(shapes_folder)!r}, device="cpu", dtype="float16")
load({str(path)!r}, device="cpu", dtype="float16")
load({str(path)!r}, device="cpu")
"""
    result = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
