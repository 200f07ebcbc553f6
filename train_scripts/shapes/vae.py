"""The VAE, trained from nothing on pictures of every look: small crops first, then whole pictures."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from train_scripts.shapes.architecture import EDGE
from train_scripts.shapes.characters import random_robot
from train_scripts.shapes.pictures import drawn_by, sheet, to_images, to_tensor
from train_scripts.shapes.styles import STYLES
from train_scripts.shapes.trainee import Rate, Trainee, generator, hidden_matrices, named
from train_scripts.shapes.world import COLOURS, random_scene

LOOKS = ("plain",) * 4 + (*STYLES, "sketch", "robot")  # hatching is what a latent holds worst
CROP = 64
CROPPED_SHARE = 0.4  # of all steps; four times as many crops as whole pictures cost the same
LATENT_NOISE = 0.1  # most noise, in standard deviations of a batch's latents
PULL_TO_ZERO = 1e-4


@dataclass(frozen=True, slots=True)
class VAEOptions:
    """How the VAE is trained; `steps` is the whole length, of which a resumed run makes the rest."""

    steps: int = 1600
    batch: int = 8
    pictures: int = 8000
    peak_rate: float = 3e-3
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Report:
    """One step made, and its loss."""

    step: int
    loss: float


def vae_trainee(vae: Any, options: VAEOptions) -> Trainee:
    """The parameters of encoder and decoder, in the memory layout that is faster for them."""
    vae.to(memory_format=torch.channels_last)
    parameters = named(vae, "vae")
    rate = Rate(options.peak_rate, options.steps)
    origin = f"{replace(options, steps=0)}, drawn by {drawn_by(LOOKS)}"
    return Trainee(parameters, rate=rate, decay=0.998, orthogonal=hidden_matrices(parameters), origin=origin)


def train_vae(vae: Any, trainee: Trainee, pictures: Tensor, options: VAEOptions) -> Iterator[Report]:
    """Train `vae` in place on uint8 `pictures` (N, 3, 128, 128) until `options.steps` are made."""
    vae.train()
    while trainee.step < options.steps:
        random_numbers = generator(options.seed, trainee.step)
        cropped = trainee.step < CROPPED_SHARE * options.steps
        pixels = (
            _crops(pictures, options.batch, random_numbers)
            if cropped
            else _whole(pictures, options.batch, random_numbers)
        )
        loss = _loss(vae, pixels.to(memory_format=torch.channels_last), random_numbers)
        trainee.update(loss)
        yield Report(trainee.step, loss.item())


def _whole(pictures: Tensor, batch: int, random_numbers: torch.Generator) -> Tensor:
    rows = torch.randint(len(pictures), (batch,), generator=random_numbers)
    return pictures[rows].float() / 127.5 - 1


def _crops(pictures: Tensor, batch: int, random_numbers: torch.Generator) -> Tensor:
    """Four crops in place of each picture, cut between latents: the looks lie on that grid too."""
    count = batch * (EDGE // CROP) ** 2
    rows = torch.randint(len(pictures), (count,), generator=random_numbers)
    places = 8 * torch.randint((EDGE - CROP) // 8 + 1, (count, 2), generator=random_numbers)
    cut = [
        pictures[row, :, y : y + CROP, x : x + CROP]
        for row, (y, x) in zip(rows.tolist(), places.tolist(), strict=True)
    ]
    return torch.stack(cut).float() / 127.5 - 1


def _loss(vae: Any, pixels: Tensor, random_numbers: torch.Generator) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(pixels).latent_dist.mean
        # A UNet's latents are never quite clean: half of the images are decoded from noisy ones.
        amount = (torch.rand(len(pixels), 1, 1, 1, generator=random_numbers) * 2 - 1).clamp(min=0)
        noise = torch.randn(latents.shape, generator=random_numbers) * latents.detach().float().std()
        decoded = vae.decode(latents + LATENT_NOISE * amount * noise).sample
    return crisp_loss(decoded.float(), pixels) + PULL_TO_ZERO * latents.float().pow(2).mean()


def crisp_loss(decoded: Tensor, wanted: Tensor) -> Tensor:
    """Absolute error of pixels, counted more at wanted edges, and of their differences to neighbours.

    Absolute rather than squared: of several places an edge could be, it picks one instead of blurring.
    """
    error = decoded - wanted
    loss = (error.abs() * (1 + 2 * _edges(wanted))).mean()
    for axis in (2, 3):
        loss = loss + 0.5 * error.diff(dim=axis).abs().mean()
    return loss


def _edges(pixels: Tensor) -> Tensor:
    """(N, 1, height, width): 1 on and beside an edge, 0 on flat ground."""
    highest = functional.max_pool2d(pixels, 3, stride=1, padding=1)
    lowest = -functional.max_pool2d(-pixels, 3, stride=1, padding=1)
    return (highest - lowest).amax(dim=1, keepdim=True).clamp(max=1)


def training_pictures(options: VAEOptions, cache: Path) -> Tensor:
    """The pictures of `options` as uint8 (N, 3, 128, 128), kept in the folder `cache` until what draws them
    changes."""
    file = cache / f"pictures-{options.seed}-{options.pictures}-{drawn_by(LOOKS)}.safetensors"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        drawn = random_pictures(options.pictures, seed=f"{options.seed}")
        pixels = ((to_tensor(drawn) + 1) * 127.5).round().to(torch.uint8)
        save_file({"pictures": pixels}, file)
    return load_file(file)["pictures"]


def random_pictures(count: int, *, seed: str) -> list[Image.Image]:
    """Pictures of every look that a decoder must draw: plain scenes, styled scenes, and the robot."""
    rng = random.Random(seed)
    return [_random_picture(rng) for _ in range(count)]


def _random_picture(rng: random.Random) -> Image.Image:
    look = rng.choice(LOOKS)
    if look == "robot":
        return random_robot(rng, rng.choice(list(COLOURS))).render(EDGE)
    image = random_scene(rng).render(EDGE, EDGE)
    return STYLES[look](image) if look in STYLES else image


@torch.no_grad()
def settle(vae: Any, *, seed: int) -> None:
    """Fix the scale of the trained latents: plain scenes have a standard deviation of 1 in the UNet's eyes.

    Every latent also gets a log-variance of −10. The VAE is trained on means, which leaves its variance head
    as it was drawn; trainers that sample the posterior, as Stable Diffusion's do, would learn from noise.
    """
    rng = random.Random(f"{seed} scale")
    scenes = [random_scene(rng).render(EDGE, EDGE) for _ in range(256)]
    spread = torch.cat(
        [vae.encode(to_tensor(scenes[i : i + 32])).latent_dist.mean for i in range(0, 256, 32)]
    )
    vae.register_to_config(scaling_factor=round(1 / spread.std().item(), 4))
    channels = vae.config["latent_channels"]
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = -10


@torch.no_grad()
def psnr(vae: Any, images: list[Image.Image]) -> float:
    """Mean over the images of the peak signal-to-noise ratio in decibels after encoding and decoding."""
    wanted = to_tensor(images)
    decoded = vae.decode(vae.encode(wanted).latent_dist.mean).sample.clamp(-1, 1)
    return (10 * torch.log10(4 / (decoded - wanted).pow(2).mean(dim=(1, 2, 3)))).mean().item()


@torch.no_grad()
def reconstruction_sheet(vae: Any, file: Path) -> None:
    """Write a sheet of unseen pictures, each row of originals above its reconstructions."""
    images = random_pictures(20, seed="sheet")
    decoded = to_images(vae.decode(vae.encode(to_tensor(images)).latent_dist.mean).sample)
    rows = [images[:10], decoded[:10], images[10:], decoded[10:]]
    sheet([image for row in rows for image in row], columns=10).save(file)
