"""Train the embedded base on: `python -m train_scripts.train_shapes_base`; run it again after a stop."""

from pathlib import Path
from typing import Annotated

import torch
import tyro

from train_scripts.shapes.base import BaseOptions, Stage, run_stages
from train_scripts.shapes.unet import UNetOptions
from train_scripts.shapes.vae import VAEOptions

ROOT = Path(__file__).parents[1]


def main(
    stages: Annotated[tuple[Stage, ...], tyro.conf.arg(help="what to do, in this order")] = (
        "vae",
        "unet",
        "decoder",
        "install",
    ),
    base: Annotated[Path, tyro.conf.arg(help="the folder to begin from and to install into")] = (
        ROOT / "sample_data" / "shapes-sd"
    ),
    work: Annotated[Path, tyro.conf.arg(help="checkpoints, latents and preview sheets")] = ROOT / ".train",
    vae_steps: Annotated[int, tyro.conf.arg(help="whole length of the VAE's training")] = 2000,
    unet_steps: Annotated[int, tyro.conf.arg(help="whole length of the UNet's training")] = 6000,
    scenes: Annotated[int, tyro.conf.arg(help="how many scenes the UNet learns from")] = 16000,
    threads: Annotated[int, tyro.conf.arg(help="CPU threads; another count changes the last bits")] = 2,
) -> None:
    """Train the VAE, UNet and text encoder, and the decoder on, then install; run it again after a stop."""
    torch.set_num_threads(threads)
    unet = UNetOptions(steps=unet_steps, scenes=scenes)
    run_stages(stages, BaseOptions(base, work, VAEOptions(steps=vae_steps), unet))


if __name__ == "__main__":
    tyro.cli(main)
