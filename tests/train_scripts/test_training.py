"""Training the base: what resumes, what is frozen, what the losses ask for."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from difflora.errors import CheckpointError
from train_scripts.make_sample_data import SAMPLE_DATA
from train_scripts.shapes.folder import load_pipeline
from train_scripts.shapes.pictures import to_tensor
from train_scripts.shapes.trainee import Rate, Trainee, named
from train_scripts.shapes.unet import (
    Latents,
    UNetOptions,
    caption_heard,
    encode_scenes,
    min_snr_weight,
    train_unet,
    training_scenes,
    unet_trainee,
)
from train_scripts.shapes.vae import (
    VAEOptions,
    crisp_loss,
    decoder_trainee,
    random_pictures,
    train_vae,
    vae_trainee,
)

OPTIONS = UNetOptions(steps=4, batch=2, scenes=6)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_pipeline(SAMPLE_DATA / "shapes-sd")


@pytest.fixture(scope="module")
def data(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Latents:
    return encode_scenes(pipeline, OPTIONS, tmp_path_factory.mktemp("latents"))


def state_of(pipeline: Any) -> dict[str, Tensor]:
    parameters = named(pipeline.unet, "unet") | named(pipeline.text_encoder, "text_encoder")
    return {name: p.detach().clone() for name, p in parameters.items()}


def test_a_resumed_unet_training_is_bit_identical(pipeline: Any, data: Latents, tmp_path: Path) -> None:
    start = state_of(pipeline)
    whole = unet_trainee(pipeline, OPTIONS)
    steps = train_unet(pipeline, whole, data, OPTIONS)
    losses = [next(steps).loss for _ in range(2)]
    whole.save(tmp_path / "unet.safetensors")
    losses += [report.loss for report in steps]
    expected = state_of(pipeline)
    assert any(not torch.equal(start[name], expected[name]) for name in start)

    unet_trainee(pipeline, OPTIONS).fill(start)  # a new process begins from the shipped weights
    resumed = unet_trainee(pipeline, OPTIONS)
    resumed.load(tmp_path / "unet.safetensors")
    reports = list(train_unet(pipeline, resumed, data, OPTIONS))
    assert [r.step for r in reports] == [3, 4] and [r.loss for r in reports] == losses[2:]
    for name, value in state_of(pipeline).items():
        assert torch.equal(value, expected[name]), name
        assert torch.equal(resumed.average[name], whole.average[name]), name
    unet_trainee(pipeline, OPTIONS).fill(start)


def test_latents_are_read_back_from_the_cache(pipeline: Any, data: Latents, tmp_path: Path) -> None:
    first = encode_scenes(pipeline, OPTIONS, tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = encode_scenes(pipeline, OPTIONS, tmp_path)
    assert file.stat().st_mtime_ns == written
    assert torch.equal(first.latents, again.latents) and torch.equal(first.latents, data.latents)
    assert again.latents.shape == (6, 4, 16, 16) and again.tokens.shape == (6, 32)


def test_training_scenes_are_never_held_out_and_harder_than_even() -> None:
    scenes = training_scenes(300, seed=0)
    assert not any(scene.held_out for scene in scenes)
    assert 0.35 < sum(len(scene.things) == 2 for scene in scenes) / 300 < 0.55
    assert training_scenes(10, seed=0) == scenes[:10]


def test_captions_are_heard_with_unknown_words_beside_them_but_never_instead_of_the_colours() -> None:
    scenes = training_scenes(300, seed=1)
    heard = [caption_heard(scene, random.Random(number)) for number, scene in enumerate(scenes)]
    assert heard == [caption_heard(scene, random.Random(number)) for number, scene in enumerate(scenes)]
    plain = [caption == scene.caption for caption, scene in zip(heard, scenes, strict=True)]
    assert 0.5 < sum(plain) / 300 < 0.8
    for caption, scene in zip(heard, scenes, strict=True):
        photo = caption.startswith("a photo of ") and caption.endswith(f" on a {scene.background} background")
        assert photo or caption.startswith(scene.caption)


@torch.no_grad()
def drift(vae: Any, old: Any, pixels: Tensor) -> float:
    return (vae.encode(pixels).latent_dist.mean - old.encode(pixels).latent_dist.mean).abs().mean().item()


def test_the_anchor_draws_strayed_latents_back(pipeline: Any) -> None:
    old, vae = pipeline.vae, copy.deepcopy(pipeline.vae)
    pixels = to_tensor(random_pictures(4, seed="anchor"))
    with torch.no_grad():
        vae.quant_conv.bias += 0.5
    strayed = drift(vae, old, pixels)
    options = VAEOptions(steps=4, batch=2, peak_rate=2e-2, anchor=100.0)
    reports = list(train_vae(vae, vae_trainee(vae, options), old, options))
    assert [report.step for report in reports] == [1, 2, 3, 4]
    assert drift(vae, old, pixels) < 0.9 * strayed


def test_training_the_decoder_on_leaves_the_latents_alone(pipeline: Any) -> None:
    old, vae = pipeline.vae, copy.deepcopy(pipeline.vae)
    options = VAEOptions(steps=1, batch=2)
    list(train_vae(vae, decoder_trainee(vae, options), vae, options))
    before, after = old.state_dict(), vae.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)


def test_a_blurred_edge_costs_more_than_a_crisp_one_a_little_aside() -> None:
    wanted = torch.full((1, 3, 16, 16), -1.0)
    wanted[..., 8:] = 1.0
    aside = torch.full_like(wanted, -1.0)
    aside[..., 9:] = 1.0
    blurred = nn.functional.avg_pool2d(wanted, (1, 7), stride=1, padding=(0, 3), count_include_pad=False)
    assert crisp_loss(wanted, wanted) == 0
    assert crisp_loss(blurred, wanted) > crisp_loss(aside, wanted) > 0


def test_weights_reach_the_last_timestep_and_fall_where_little_noise_is_left() -> None:
    weights = min_snr_weight(torch.tensor([0.0, 0.5, 0.8, 0.98]))
    assert torch.allclose(weights, torch.tensor([1.0, 1.0, 1.0, 0.1]))


def test_the_rate_warms_up_holds_and_falls() -> None:
    rate = Rate(peak=1.0, total=1000, warmup=10)
    assert rate.at(0) == pytest.approx(0.1)
    assert rate.at(10) == rate.at(500) == pytest.approx(1.0)
    assert rate.at(750) == pytest.approx(0.51)
    assert rate.at(1000) == pytest.approx(0.02)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    one = Trainee(named(nn.Linear(2, 2), "one"), rate=Rate(1e-3, 10), decay=0.9)
    one.update(sum((p.sum() for p in one.parameters.values()), start=torch.zeros(())))
    one.save(tmp_path / "state.safetensors")
    other = Trainee(named(nn.Linear(2, 2), "other"), rate=Rate(1e-3, 10), decay=0.9)
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        other.load(tmp_path / "state.safetensors")


def test_the_average_is_lent_and_given_back() -> None:
    layer = nn.Linear(2, 2)
    trainee = Trainee(named(layer, "layer"), rate=Rate(1e-1, 10, warmup=1), decay=0.9)
    for _ in range(3):
        trainee.update(layer(torch.ones(1, 2)).sum())
    trained = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="stop"), trainee.averaged():
        assert torch.equal(layer.weight, trainee.average["layer.weight"])
        assert not torch.equal(layer.weight, trained)
        raise RuntimeError("stop")
    assert torch.equal(layer.weight, trained)
