"""Training the base: what resumes, what is frozen, what the losses ask for."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTextModel

from difflora.errors import CheckpointError
from train_scripts.make_sample_data import SAMPLE_DATA
from train_scripts.shapes.architecture import assemble, load_tokenizer, new_clip, new_unet, new_vae
from train_scripts.shapes.base import BaseOptions, _average_into, run_stages
from train_scripts.shapes.captions import heard, photo_of_something, tokenize
from train_scripts.shapes.clip import (
    CLIPOptions,
    clip_trainee,
    image_features,
    text_features,
    train_clip,
    twin,
    twins,
    twins_told_apart,
)
from train_scripts.shapes.folder import load_pipeline
from train_scripts.shapes.pictures import to_tensor
from train_scripts.shapes.trainee import Rate, Trainee, named
from train_scripts.shapes.unet import (
    Latents,
    UNetOptions,
    encode_scenes,
    min_snr_weight,
    train_unet,
    training_scenes,
    unet_trainee,
)
from train_scripts.shapes.vae import (
    VAEOptions,
    crisp_loss,
    random_pictures,
    settle,
    train_vae,
    training_pictures,
    vae_trainee,
)
from train_scripts.shapes.world import EVEN, Odds, random_scene

SHAPES = SAMPLE_DATA / "shapes-sd"
OPTIONS = UNetOptions(steps=4, batch=2, scenes=6)
SHORT_CLIP = CLIPOptions(steps=4, batch=4, scenes=8)
SHORT_VAE = VAEOptions(steps=4, batch=1, pictures=4)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """An untrained base."""
    tokenizer = load_tokenizer(SHAPES)
    text_encoder = CLIPTextModel(new_clip(tokenizer, 0).config.text_config)
    return assemble(vae=new_vae(0), text_encoder=text_encoder, tokenizer=tokenizer, unet=new_unet(0))


@pytest.fixture(scope="module")
def data(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Latents:
    return encode_scenes(pipeline, OPTIONS, tmp_path_factory.mktemp("latents"))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def test_a_resumed_unet_training_is_bit_identical_and_leaves_the_text_encoder_alone(
    pipeline: Any, data: Latents, tmp_path: Path
) -> None:
    start, text = state_of(pipeline.unet), state_of(pipeline.text_encoder)
    whole = unet_trainee(pipeline, OPTIONS)
    steps = train_unet(pipeline, whole, data, OPTIONS)
    losses = [next(steps).loss for _ in range(2)]
    whole.save(tmp_path / "unet.safetensors")
    losses += [report.loss for report in steps]
    expected = state_of(pipeline.unet)
    assert any(not torch.equal(start[name], expected[name]) for name in start)

    pipeline.unet.load_state_dict(start)  # a new process begins from the seed
    resumed = unet_trainee(pipeline, OPTIONS)
    resumed.load(tmp_path / "unet.safetensors")
    reports = list(train_unet(pipeline, resumed, data, OPTIONS))
    assert [r.step for r in reports] == [3, 4] and [r.loss for r in reports] == losses[2:]
    for name, value in state_of(pipeline.unet).items():
        assert torch.equal(value, expected[name]), name
    for name, average in whole.average.items():
        assert torch.equal(resumed.average[name], average), name
    for name, value in state_of(pipeline.text_encoder).items():
        assert torch.equal(value, text[name]), name
    pipeline.unet.load_state_dict(start)


def test_latents_are_read_back_from_the_cache(pipeline: Any, data: Latents, tmp_path: Path) -> None:
    first = encode_scenes(pipeline, OPTIONS, tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = encode_scenes(pipeline, OPTIONS, tmp_path)
    assert file.stat().st_mtime_ns == written
    assert torch.equal(first.latents, again.latents) and torch.equal(first.latents, data.latents)
    assert again.latents.shape == (6, 4, 16, 16) and len(again.scenes) == 6


def test_training_scenes_are_never_held_out_and_harder_than_even() -> None:
    scenes = training_scenes(300, seed=0)
    assert not any(scene.held_out for scene in scenes)
    assert 0.35 < sum(len(scene.things) == 2 for scene in scenes) / 300 < 0.55
    assert training_scenes(10, seed=0) == scenes[:10]


def test_captions_are_heard_with_unknown_words_beside_them_but_never_instead_of_the_colours() -> None:
    scenes = training_scenes(300, seed=1)
    captions = [heard(scene, random.Random(number)) for number, scene in enumerate(scenes)]
    assert captions == [heard(scene, random.Random(number)) for number, scene in enumerate(scenes)]
    plain = [caption == scene.caption for caption, scene in zip(captions, scenes, strict=True)]
    assert 0.5 < sum(plain) / 300 < 0.8
    assert all(caption.startswith(s.caption) for caption, s in zip(captions, scenes, strict=True))
    photo = photo_of_something(scenes[0], random.Random(0))
    assert photo.startswith("a photo of ") and photo.endswith(f" on a {scenes[0].background} background")
    assert scenes[0].things[0].shape not in photo


def test_a_twin_says_and_shows_something_else() -> None:
    rng = random.Random(4)
    for odds in (EVEN, Odds(pair=1.0)):
        for _ in range(100):
            scene = random_scene(rng, odds)
            other = twin(scene, rng)
            assert other.caption != scene.caption
            assert other.relation == scene.relation and len(other.things) == len(scene.things)
            assert all(thing.colour != other.background for thing in other.things)
            assert other.render(32, 32).tobytes() != scene.render(32, 32).tobytes()


def test_the_clip_learns_and_a_resumed_training_is_bit_identical(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(SHAPES)
    data = twins(SHORT_CLIP, tmp_path)
    assert not any(scene.held_out for scene in data.scenes)
    assert data.pictures.shape == (16, 3, 64, 64) and data.pictures.dtype == torch.uint8
    whole = new_clip(tokenizer, 0)
    trainee = clip_trainee(whole, SHORT_CLIP)
    steps = train_clip(whole, tokenizer, trainee, data, SHORT_CLIP)
    next(steps)
    trainee.save(tmp_path / "clip.safetensors")
    list(steps)

    resumed = new_clip(tokenizer, 0)
    again = clip_trainee(resumed, SHORT_CLIP)
    again.load(tmp_path / "clip.safetensors")
    assert [report.step for report in train_clip(resumed, tokenizer, again, data, SHORT_CLIP)] == [2, 3, 4]
    for name, value in state_of(resumed).items():
        assert torch.equal(value, state_of(whole)[name]), name
    assert 0 <= twins_told_apart(whole.eval(), tokenizer, data) <= 1


def test_the_vae_resumes_bit_identically_and_settles_its_scale(tmp_path: Path) -> None:
    pictures = training_pictures(SHORT_VAE, tmp_path)
    assert torch.equal(pictures, training_pictures(SHORT_VAE, tmp_path))
    drawn = to_tensor(random_pictures(4, seed="1"))
    assert torch.allclose(pictures.float() / 127.5 - 1, drawn, atol=1e-6)
    whole = new_vae(0)
    trainee = vae_trainee(whole, SHORT_VAE)
    steps = train_vae(whole, trainee, pictures, SHORT_VAE)
    next(steps)  # a step on crops; the last ones are on whole pictures
    trainee.save(tmp_path / "vae.safetensors")
    list(steps)

    resumed = new_vae(0)
    again = vae_trainee(resumed, SHORT_VAE)
    again.load(tmp_path / "vae.safetensors")
    list(train_vae(resumed, again, pictures, SHORT_VAE))
    for name, value in state_of(resumed).items():
        assert torch.equal(value, state_of(whole)[name]), name
    for name, average in trainee.average.items():
        assert torch.equal(again.average[name], average), name
        assert again.average[name].stride() == average.stride(), name

    settle(whole, seed=1)
    with torch.no_grad():
        posterior = whole.encode(drawn).latent_dist
    assert torch.allclose(posterior.logvar, torch.tensor(-10.0))
    assert 0.3 < (posterior.mean * whole.config.scaling_factor).std() < 3


def test_one_command_makes_a_base_and_its_clip_from_the_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Looking at what was learned takes longer here than learning it.
    monkeypatch.setattr("train_scripts.shapes.base.preview_sheet", lambda pipeline, file: None)
    monkeypatch.setattr("train_scripts.shapes.base.psnr", lambda vae, images: 0.0)
    monkeypatch.setattr("train_scripts.shapes.base.reconstruction_sheet", lambda vae, file: None)
    monkeypatch.setattr("train_scripts.shapes.base.twins_told_apart", lambda clip, tokenizer, data: 0.0)
    monkeypatch.setattr("train_scripts.shapes.base.settle", lambda vae, seed: None)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "tokenizer").symlink_to(SHAPES / "tokenizer")
    options = BaseOptions(
        tmp_path / "base",
        tmp_path / "clip",
        tmp_path / "work",
        replace(SHORT_CLIP, steps=1),
        replace(SHORT_VAE, steps=1),
        replace(OPTIONS, steps=1),
    )
    with pytest.raises(CheckpointError, match=r"Run the stage 'clip' first"):
        run_stages(("install",), options)
    run_stages(("clip", "vae", "unet"), options)
    (tmp_path / "base" / "tokenizer").unlink()
    (tmp_path / "base" / "tokenizer").mkdir()
    for file in (SHAPES / "tokenizer").iterdir():
        (tmp_path / "base" / "tokenizer" / file.name).write_bytes(file.read_bytes())
    run_stages(("install",), options)
    made = load_pipeline(tmp_path / "base")
    clip = CLIPModel.from_pretrained(tmp_path / "clip").float().eval()
    tokens = tokenize(made.tokenizer, ["a red circle on a blue background"])
    with torch.no_grad():
        expected = clip.text_model(tokens).last_hidden_state
        assert torch.allclose(made.text_encoder(tokens).last_hidden_state, expected, atol=1e-5)
        assert text_features(clip, tokens).shape == (1, 128)
        pictures = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
        assert image_features(clip, pictures).norm().item() == pytest.approx(1)


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


def test_a_checkpoint_that_began_otherwise_is_refused(pipeline: Any, tmp_path: Path) -> None:
    """Another seed, other scenes, another VAE: the last step of such a run is not the last of this one."""
    begun = unet_trainee(pipeline, OPTIONS)
    begun.update(sum((p.sum() for p in begun.parameters.values()), start=torch.zeros(())))
    begun.save(tmp_path / "unet.safetensors")
    weight = pipeline.vae.encoder.conv_in.weight
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1
        other = unet_trainee(pipeline, OPTIONS)
        weight[0, 0, 0, 0] -= 1
    for trainee in (other, unet_trainee(pipeline, replace(OPTIONS, seed=5))):
        with pytest.raises(CheckpointError, match="began otherwise"):
            trainee.load(tmp_path / "unet.safetensors")
        assert trainee.step == 0


def test_a_training_that_is_not_at_its_end_is_not_used(tmp_path: Path) -> None:
    begun = Trainee(named(nn.Linear(2, 2), "one"), rate=Rate(1e-3, 10), decay=0.9)
    begun.update(sum((p.sum() for p in begun.parameters.values()), start=torch.zeros(())))
    begun.save(tmp_path / "unet.safetensors")
    with pytest.raises(CheckpointError, match=r"1 of 10 steps only. Run the stage 'unet' to its end"):
        _average_into(begun, tmp_path / "unet.safetensors")


def test_a_run_is_given_another_length_only_while_both_are_alike(tmp_path: Path) -> None:
    def trainee(total: int) -> Trainee:
        return Trainee(named(nn.Linear(2, 2), "one"), rate=Rate(1e-3, total), decay=0.9)

    begun = trainee(10)
    for step in range(1, 6):
        begun.update(sum((p.sum() for p in begun.parameters.values()), start=torch.zeros(())))
        begun.save(tmp_path / f"{step}.safetensors")
    trainee(20).load(tmp_path / "4.safetensors")
    trainee(10).load(tmp_path / "5.safetensors")
    with pytest.raises(CheckpointError, match="step 5 of a training of 10 steps is none of one of 20"):
        trainee(20).load(tmp_path / "5.safetensors")


def test_pictures_are_drawn_again_when_their_scenes_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = twins(SHORT_CLIP, tmp_path)
    monkeypatch.setattr("train_scripts.shapes.clip.twin", lambda scene, rng: scene)
    same = twins(SHORT_CLIP, tmp_path)
    assert torch.equal(same.pictures[0::2], same.pictures[1::2])
    assert not torch.equal(before.pictures, same.pictures)


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
