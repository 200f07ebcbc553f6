"""Sharper pictures through the VAE, whose latents stay close to what they were.

Training the decoder alone was tried: edges stayed soft and some colours wrong, for the latents had lost them.
So the encoder is trained too, held near its old latents: a UNet trained on those needs little to follow.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from train_scripts.shapes.characters import random_robot
from train_scripts.shapes.pictures import sheet, to_images, to_tensor
from train_scripts.shapes.styles import STYLES
from train_scripts.shapes.trainee import Rate, Trainee, generator, named
from train_scripts.shapes.world import COLOURS, random_scene

EDGE = 128
LOOKS = ("plain",) * 5 + (*STYLES, "robot")  # every look but the plain one is a tenth of the images
LATENT_NOISE = 0.1  # most noise, in standard deviations of a latent


@dataclass(frozen=True, slots=True)
class VAEOptions:
    """How the VAE is trained; `steps` is the whole length, of which a resumed run makes the rest.

    `anchor` weighs the squared distance to the old latents, in their own standard deviations.
    """

    steps: int = 2000
    batch: int = 8
    peak_rate: float = 1e-3
    anchor: float = 0.05
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Report:
    """One step made, and its loss."""

    step: int
    loss: float


def vae_trainee(vae: Any, options: VAEOptions) -> Trainee:
    """The parameters of encoder and decoder, ready to train."""
    return Trainee(named(vae, "vae"), rate=Rate(options.peak_rate, options.steps), decay=0.998)


def decoder_trainee(vae: Any, options: VAEOptions) -> Trainee:
    """The parameters of the decoder alone: what it can still gain once the latents are settled."""
    vae.requires_grad_(False)
    parameters = named(vae.decoder, "vae.decoder") | named(vae.post_quant_conv, "vae.post_quant_conv")
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return Trainee(parameters, rate=Rate(options.peak_rate, options.steps), decay=0.998)


def train_vae(vae: Any, trainee: Trainee, old: Any, options: VAEOptions) -> Iterator[Report]:
    """Train `vae` in place until `options.steps` are made, its latents held near those of the VAE `old`."""
    vae.train()
    while trainee.step < options.steps:
        pixels = to_tensor(random_pictures(options.batch, seed=f"{options.seed} {trainee.step}"))
        loss = _loss(vae, old, pixels, options.anchor, generator(options.seed, trainee.step))
        trainee.update(loss)
        yield Report(trainee.step, loss.item())


def _loss(vae: Any, old: Any, pixels: Tensor, anchor: float, random_numbers: torch.Generator) -> Tensor:
    scale = vae.config.scaling_factor
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            old_latents = old.encode(pixels).latent_dist.mean.float() * scale
        latents = vae.encode(pixels).latent_dist.mean.float() * scale
        # A UNet's latents are never quite clean: half of the images are decoded from noisy ones.
        amount = torch.rand(len(pixels), 1, 1, 1, generator=random_numbers) * 2 - 1
        noise = torch.randn(latents.shape, generator=random_numbers) * LATENT_NOISE * amount.clamp(min=0)
        decoded = vae.decode((latents + noise) / scale).sample
    return crisp_loss(decoded.float(), pixels) + anchor * (latents - old_latents).pow(2).mean()


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
