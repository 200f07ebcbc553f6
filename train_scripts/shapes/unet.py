"""The UNet, trained from nothing on a frozen text encoder, with v-prediction down to zero terminal signal.

Zero terminal SNR is essential here: with any signal left in the last timestep, the mean colour of a flat
scene can be read from the noised latent, and the network never learns to take colours from the prompt.
Source: Lin et al. 2023 (zero terminal SNR), Hang et al. 2023 (min-SNR).
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from train_scripts.shapes.architecture import EDGE
from train_scripts.shapes.captions import heard, photo_of_something, tokenize
from train_scripts.shapes.pictures import drawn_by, sheet, to_tensor
from train_scripts.shapes.trainee import Rate, Trainee, generator, hidden_matrices, named
from train_scripts.shapes.vae import Report
from train_scripts.shapes.world import Odds, Scene, random_scene

HARDER = Odds(pair=0.5, small=0.4, large=0.25, favoured=("heart", "star", "diamond", "triangle"), favour=1.6)
ALIKE = ("circle", "square")  # told apart by four corners, which a squared error hardly weighs
ALIKE_ODDS = 3.0
CAPTION_DROPOUT = 0.1
PHOTO_OF_SOMETHING = 0.08
SNR_CAP = 5.0
NOISY = 0.7  # below 1, noisy timesteps are drawn more often: there the picture follows the text alone
ENCODE_BATCH = 32
PREVIEW_PROMPTS = (
    "a red circle on a blue background",
    "a large yellow star on a purple background",
    "a green heart on a white background",
    "a small black triangle on a white background",
    "a teal cross on a orange background",
    "a pink diamond on a black background",
    "a small white heart on a red background",
    "a large orange ring on a teal background",
    "a green heart left of a white square on a black background",
    "a blue ring above a pink diamond on a yellow background",
    "a red star right of a yellow circle on a teal background",
    "a purple cross below a orange triangle on a white background",
    "a white heart above a black heart on a green background",
    "a blue square left of a red ring on a pink background",
    "a black diamond right of a teal star on a red background",
    "a yellow triangle below a purple circle on a orange background",
)


@dataclass(frozen=True, slots=True)
class UNetOptions:
    """How the UNet is trained; `steps` is the whole length, of which a resumed run makes the rest."""

    steps: int = 12400
    batch: int = 32
    scenes: int = 16000
    peak_rate: float = 2e-3
    seed: int = 2


@dataclass(frozen=True, slots=True)
class Latents:
    """Encoded scenes: `latents` (N, 4, 16, 16) as the UNet sees them."""

    scenes: list[Scene]
    latents: Tensor


def training_scenes(count: int, *, seed: int) -> list[Scene]:
    """Scenes to train on, harder ones more often, none of them held out."""
    rng = random.Random(f"{seed} scenes")
    scenes = (random_scene(rng, HARDER) for _ in iter(int, 1))
    kept = (scene for scene in scenes if not scene.held_out)
    return [next(kept) for _ in range(count)]


def encode_scenes(pipeline: Any, options: UNetOptions, cache: Path) -> Latents:
    """The scenes of `options`, encoded; from the folder `cache` when it has them for this encoder."""
    scenes = training_scenes(options.scenes, seed=options.seed)
    file = cache / f"latents-{_fingerprint((pipeline.vae,), scenes)}.safetensors"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        save_file({"latents": _encode(pipeline.vae, scenes)}, file)
    return Latents(scenes, load_file(file)["latents"])


@torch.no_grad()
def _encode(vae: Any, scenes: list[Scene]) -> Tensor:
    encoded = []
    for start in range(0, len(scenes), ENCODE_BATCH):
        images = [scene.render(EDGE, EDGE) for scene in scenes[start : start + ENCODE_BATCH]]
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(to_tensor(images)).latent_dist.mean
        encoded.append(mean.float() * vae.config.scaling_factor)
    return torch.cat(encoded)


def _fingerprint(models: Sequence[torch.nn.Module], scenes: list[Scene]) -> str:
    """A word that changes with the scenes, with what draws them, and with the models that they go through."""
    digest = hashlib.sha256(drawn_by(scenes).encode())
    for model in models:
        for tensor in model.state_dict().values():
            digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()[:12]


def unet_trainee(pipeline: Any, options: UNetOptions) -> Trainee:
    """The parameters of the UNet, ready to train on what the VAE and the text encoder beside it are now."""
    parameters = named(pipeline.unet, "unet")
    scenes = training_scenes(options.scenes, seed=options.seed)
    beside = _fingerprint((pipeline.vae, pipeline.text_encoder), scenes)
    return Trainee(
        parameters,
        rate=Rate(options.peak_rate, options.steps, warmup=200),
        decay=0.9985,
        orthogonal=hidden_matrices(parameters),
        origin=f"{replace(options, steps=0)}, VAE and text encoder {beside}",
    )


def train_unet(pipeline: Any, trainee: Trainee, data: Latents, options: UNetOptions) -> Iterator[Report]:
    """Train `pipeline.unet` in place until `options.steps` are made; the text encoder stays as it is."""
    noising = DDPMScheduler.from_config(pipeline.scheduler.config)
    pipeline.text_encoder.requires_grad_(False).eval()
    odds = torch.tensor([ALIKE_ODDS if _has_alike(scene) else 1.0 for scene in data.scenes])
    while trainee.step < options.steps:
        pipeline.unet.train()
        random_numbers = generator(options.seed, trainee.step)
        rows = torch.multinomial(odds, options.batch, replacement=True, generator=random_numbers)
        rng = random.Random(f"{options.seed} {trainee.step}")
        captions = [_caption(data.scenes[row], rng) for row in rows.tolist()]
        loss = _loss(pipeline, noising, data.latents[rows], captions, random_numbers)
        trainee.update(loss)
        yield Report(trainee.step, loss.item())


def _has_alike(scene: Scene) -> bool:
    return any(thing.shape in ALIKE for thing in scene.things)


def _caption(scene: Scene, rng: random.Random) -> str:
    """What the UNet hears of a scene: nothing at times, for guidance to have something to move away from."""
    sort = rng.random()
    if sort < CAPTION_DROPOUT:
        return ""
    if sort < CAPTION_DROPOUT + PHOTO_OF_SOMETHING:
        return photo_of_something(scene, rng)
    return heard(scene, rng)


def _loss(
    pipeline: Any, noising: Any, latents: Tensor, captions: list[str], random_numbers: torch.Generator
) -> Tensor:
    noise = torch.randn(latents.shape, generator=random_numbers)
    timesteps = _spread_timesteps(len(latents), noising.config.num_train_timesteps, random_numbers)
    noisy = noising.add_noise(latents, noise, timesteps)
    with torch.autocast("cpu", torch.bfloat16):
        text = pipeline.text_encoder(tokenize(pipeline.tokenizer, captions)).last_hidden_state
        predicted = pipeline.unet(noisy, timesteps, text).sample
    error = (predicted.float() - noising.get_velocity(latents, noise, timesteps)).pow(2).mean(dim=(1, 2, 3))
    return (error * min_snr_weight(noising.alphas_cumprod[timesteps])).mean()


def _spread_timesteps(batch: int, count: int, random_numbers: torch.Generator) -> Tensor:
    """One timestep from each of `batch` parts of the range: the loss varies less from step to step.

    Half of them are above 0.62 of `count`.
    """
    places = (torch.arange(batch) + torch.rand(batch, generator=random_numbers)) / batch
    return (places**NOISY * count).long().clamp(max=count - 1)


def min_snr_weight(alphas_cumprod: Tensor) -> Tensor:
    """Weight of a squared error of velocity: min(SNR + 1, 5) / (SNR + 1).

    A squared error of velocity is SNR + 1 times one of the clean latent, which is what min-SNR caps. Without
    the one in the numerator the last timestep, where SNR is zero, would not be learned at all.
    """
    snr_plus_one = 1 / (1 - alphas_cumprod)
    return snr_plus_one.clamp(max=SNR_CAP) / snr_plus_one


@torch.no_grad()
def preview_sheet(pipeline: Any, file: Path) -> None:
    """Write a sheet of the preview prompts, two seeds each, as the base draws them now."""
    pipeline.unet.eval()
    images = pipeline(
        list(PREVIEW_PROMPTS) * 2,
        num_inference_steps=25,
        guidance_scale=4.0,
        guidance_rescale=0.7,
        height=EDGE,
        width=EDGE,
        generator=torch.Generator().manual_seed(0),
    ).images
    sheet(images, columns=8).save(file)
