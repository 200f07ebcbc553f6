"""Diffusers folders: what loads, what a loaded model answers, and errors that name all that is wrong."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from difflora.errors import BaseModelError, ConfigError
from difflora.families import Model, identify, load
from difflora.families.weights import component_weights, file_sha256
from tests.tiny_sdxl import save_tiny_sdxl

UNET = Path("unet") / "diffusion_pytorch_model.safetensors"
TEXT = Path("text_encoder") / "model.safetensors"
VAE = Path("vae") / "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(shapes_folder: Path, tmp_path: Path) -> Path:
    """A copy of the embedded base that a test may change."""
    return Path(shutil.copytree(shapes_folder, tmp_path / "base"))


def change(path: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrites a file of tensors."""
    tensors = edit({name: value.clone() for name, value in load_file(path).items()})
    save_file(tensors, path)


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def test_a_loaded_model_answers_by_path(shapes_model: Model) -> None:
    model = shapes_model
    q = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    shapes = model.shapes()
    assert shapes is model.shapes()
    assert shapes[q] == (128, 128)
    assert model.module(q).weight.shape == (128, 128)
    assert model.module("unet.conv_in") is model.pipeline.unet.conv_in
    assert model.component("unet") is model.pipeline.unet
    assert all(tuple(model.module(path).weight.shape) == shape for path, shape in shapes.items())
    for wrong in ("unet.nothing", "vae.encoder.conv_in", "text_encoder.encoder.layers.0.self_attn.q_proj"):
        with pytest.raises(KeyError):
            model.module(wrong)
    with pytest.raises(KeyError):
        model.component("vae")


def test_nothing_learns_and_nothing_is_empty(shapes_model: Model) -> None:
    for part in (shapes_model.pipeline.unet, shapes_model.pipeline.vae, shapes_model.pipeline.text_encoder):
        assert not part.training
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in part.parameters())
    assert shapes_model.pipeline.safety_checker is None


def test_the_noise_schedule_ends_without_signal(shapes_model: Model) -> None:
    schedule = shapes_model.noise_schedule()
    assert schedule.alphas_cumprod.shape == (schedule.num_train_timesteps,) == (1000,)
    assert schedule.alphas_cumprod.dtype == torch.float32
    assert schedule.alphas_cumprod[-1] == 0.0
    assert bool((schedule.alphas_cumprod.diff() < 0).all())
    assert schedule.prediction_type == "v_prediction"


def test_a_checksum_sees_one_bit(shapes_folder: Path) -> None:
    model = load(shapes_folder, device="cpu")
    before = model.checksum()
    weight = model.module("unet.conv_in").weight
    kept = weight[0, 0, 0, 0].clone()
    weight[0, 0, 0, 0] = torch.nextafter(kept, torch.tensor(9.0))
    assert model.checksum() != before
    weight[0, 0, 0, 0] = kept
    assert model.checksum() == before


def test_latents_have_the_scale_of_the_unet(shapes_model: Model) -> None:
    vae = shapes_model.pipeline.vae
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    mean, std = shapes_model.encode_images(pixels)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        assert torch.allclose(mean, posterior.mean * vae.config.scaling_factor)
        assert torch.allclose(std, posterior.std * vae.config.scaling_factor)
        assert torch.allclose(shapes_model.decode_latents(mean), vae.decode(posterior.mean).sample, atol=1e-4)


def test_images_that_overflow_in_float16_are_decoded_in_float32(folder: Path) -> None:
    model = load(folder, device="cpu")
    latents = torch.randn(2, 4, 4, 4)
    wanted = model.decode_latents(latents)
    vae = model.pipeline.vae
    conv = vae.decoder.mid_block.resnets[0].conv1  # the norm after it takes back any scale that can be held
    scale = 6e4 / float(conv.weight.abs().max())
    for parameter in conv.parameters():
        parameter.data *= scale
    assert torch.allclose(model.decode_latents(latents), wanted, atol=1e-3)
    vae.to(torch.float16)
    assert not vae.decode(latents[:1].half()).sample.isfinite().all()
    assert torch.allclose(model.decode_latents(latents), wanted, atol=2e-2)
    assert vae.dtype == torch.float16


def test_the_hash_is_of_the_weights_not_of_where_they_lie(folder: Path, shapes_model: Model) -> None:
    moved = load(folder, device="cpu").facts
    assert moved == replace(shapes_model.facts, name="base")
    change(UNET_FILE := folder / UNET, lambda tensors: tensors | {"conv_in.bias": torch.zeros(64).half()})
    assert load(folder, device="cpu").facts.sha256 != moved.sha256
    assert file_sha256(UNET_FILE) == hashlib.sha256(UNET_FILE.read_bytes()).hexdigest()


@pytest.mark.parametrize("is_flat", [True, False])
def test_text_encoders_load_with_and_without_their_text_model_level(folder: Path, is_flat: bool) -> None:
    def spelled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        bare = {name.removeprefix("text_model."): value for name, value in tensors.items()}
        old = {"text_model.embeddings.position_ids": torch.arange(32).unsqueeze(0)}
        return bare if is_flat else {f"text_model.{name}": value for name, value in bare.items()} | old

    change(folder / TEXT, spelled)
    expected = load_file(folder / TEXT)
    prefix = "" if is_flat else "text_model."
    model = load(folder, device="cpu", dtype="float16")
    norm = model.module("text_encoder.text_model.final_layer_norm")
    assert torch.equal(norm.weight, expected[f"{prefix}final_layer_norm.weight"])


def test_everything_wrong_is_one_error(folder: Path) -> None:
    change(folder / UNET, without("conv_out.bias"))
    change(folder / TEXT, lambda tensors: tensors | {"text_model.more.weight": torch.zeros(2)})
    change(folder / VAE, lambda tensors: tensors | {"decoder.conv_in.bias": torch.zeros(3)})
    with pytest.raises(BaseModelError) as caught:
        load(folder, device="cpu")
    message = str(caught.value)
    assert "3 tensors" in message
    assert "unet: missing: conv_out.bias (4,)" in message
    assert "text_encoder: not known: text_model.more.weight (2,)" in message
    assert "vae: decoder.conv_in.bias is (3,), expected" in message


def test_weights_as_pickles_or_not_at_all(folder: Path) -> None:
    (folder / VAE).rename(folder / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(BaseModelError, match="pickle"):
        load(folder, device="cpu")
    (folder / "vae" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(BaseModelError, match=r"no \.safetensors weights"):
        load(folder, device="cpu")


def test_a_half_precision_copy_is_taken_when_half_is_asked_for(folder: Path) -> None:
    half = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    shutil.copy(folder / UNET, half)
    change(folder / UNET, lambda tensors: {name: value.float() + 1 for name, value in tensors.items()})
    assert component_weights(folder / "unet", dtype=torch.float16).files == (half,)
    low, full = (load(folder, device="cpu", dtype=dtype) for dtype in ("float16", "float32"))
    difference = full.pipeline.unet.conv_in.weight - low.pipeline.unet.conv_in.weight.float()
    assert torch.allclose(difference, torch.ones_like(difference))
    (folder / UNET).unlink()
    assert load(folder, device="cpu").dtype == torch.float32


def test_the_vae_is_read_in_the_precision_it_computes_in(tmp_path: Path) -> None:
    folder = save_tiny_sdxl(tmp_path / "sdxl")
    exact = load_file(folder / VAE)
    coarse = {name: value.half() for name, value in exact.items()}
    save_file(coarse, folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    shutil.copy(folder / UNET, folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    model = load(folder, device="cpu", dtype="float16")
    assert torch.equal(model.pipeline.vae.decoder.conv_in.weight, exact["decoder.conv_in.weight"])


def test_a_folder_without_weights_of_a_vae_takes_another(folder: Path, shapes_folder: Path) -> None:
    (folder / VAE).unlink()
    with pytest.raises(BaseModelError, match=r"vae has no \.safetensors weights"):
        load(folder, device="cpu")
    for other in (shapes_folder, shapes_folder / "vae", shapes_folder / VAE):
        model = load(folder, device="cpu", dtype="float16", vae=other)
        expected = load_file(shapes_folder / VAE)
        assert torch.equal(model.pipeline.vae.decoder.conv_in.weight, expected["decoder.conv_in.weight"])


def test_a_model_in_shards(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    (folder / UNET).unlink()
    names = sorted(tensors)
    files = {
        name: f"diffusion_pytorch_model-0000{1 + index % 2}-of-00002.safetensors"
        for index, name in enumerate(names)
    }
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / "unet" / file)
    index = {"metadata": {"total_size": 1}, "weight_map": files}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    model = load(folder, device="cpu", dtype="float16")
    assert torch.equal(model.pipeline.unet.conv_in.weight, tensors["conv_in.weight"])


def test_sdxl_has_two_text_encoders_and_a_vae_in_float32(tmp_path: Path) -> None:
    model = load(save_tiny_sdxl(tmp_path / "sdxl"), device="cpu", dtype="float16")
    assert (model.facts.family, model.facts.variant, model.facts.resolution) == ("sdxl", "shapes", 64)
    assert model.dtype == model.pipeline.text_encoder_2.dtype == torch.float16
    assert model.pipeline.vae.dtype == torch.float32
    assert model.shapes()["text_encoder_2.text_projection"] == (32, 32)
    assert set(model.shapes()) <= model.family.paths


def test_the_schedule_of_another_sampler_keeps_the_facts_of_the_model(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    euler = {
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "use_karras_sigmas": True,
        "interpolation_type": "linear",
        "skip_prk_steps": True,
    }
    path.write_text(json.dumps(euler))
    model = load(folder, device="cpu")
    config = model.pipeline.scheduler.config
    assert (config["prediction_type"], config["rescale_betas_zero_snr"]) == ("epsilon", False)
    assert "use_karras_sigmas" not in config
    assert float(model.noise_schedule().alphas_cumprod[-1]) == pytest.approx(0.00466, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "quantum"}, "none that torch knows"),
        ({"device": "cpu", "dtype": "int8"}, "float32, bfloat16, float16"),
        ({"device": "cpu", "attention": "flash"}, "auto, sdpa, xformers"),
        ({"device": "cpu", "attention": "xformers"}, "attention='sdpa'"),
        ({"device": "cpu", "offload": True}, "device is cpu"),
        ({"family": "sd9"}, "sd1 "),
    ],
)
def test_options_that_cannot_be_used(shapes_folder: Path, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(shapes_folder, **options)


def test_xformers_without_an_operator_for_the_device(
    shapes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("difflora.families.hardware.find_spec", lambda _: object())
    with pytest.raises(ConfigError, match=r"no operator for the device cpu.*sdpa"):
        load(shapes_folder, device="cpu", attention="xformers")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(shapes_folder: Path) -> None:
    with pytest.raises(ConfigError, match="is not there"):
        load(shapes_folder, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offload", [False, True])
def test_on_a_gpu_with_and_without_offload(shapes_folder: Path, offload: bool) -> None:
    model = load(shapes_folder, device="cuda", offload=offload)
    assert model.dtype == torch.float16
    images = model.pipeline(
        "a red circle", num_inference_steps=2, height=128, width=128, output_type="pt"
    ).images
    assert bool(images.isfinite().all())
    assert model.pipeline.unet.conv_in.weight.device.type == ("cpu" if offload else "cuda")


def test_a_model_in_the_hubs_cache_needs_no_network(
    shapes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder = tmp_path / "models--somebody--shapes"
    commit = "a" * 40
    snapshot = Path(shutil.copytree(shapes_folder, model_folder / "snapshots" / commit))
    (model_folder / "refs").mkdir()
    (model_folder / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = load("somebody/shapes", device="cpu")
    assert (model.facts.name, model.source) == ("shapes", "somebody/shapes")
    assert identify("somebody/shapes") == replace(model.facts, sha256="")
    (snapshot / UNET).unlink()
    with pytest.raises(BaseModelError, match=r"no \.safetensors weights"):
        load("somebody/shapes", device="cpu")
