"""Train the embedded base: `python -m train_scripts.train_shapes_base`; run it again after a stop."""

from pathlib import Path
from typing import Annotated

import torch
import tyro

from train_scripts.shapes.base import BaseOptions, Stage, run_stages
from train_scripts.shapes.clip import CLIPOptions
from train_scripts.shapes.unet import UNetOptions
from train_scripts.shapes.vae import VAEOptions

ROOT = Path(__file__).parents[1]


def main(
    stages: Annotated[tuple[Stage, ...], tyro.conf.arg(help="what to do, in this order")] = (
        "clip",
        "vae",
        "unet",
        "install",
    ),
    data: Annotated[Path, tyro.conf.arg(help="the folder with shapes-sd and shapes-clip")] = ROOT
    / "sample_data",
    work: Annotated[Path, tyro.conf.arg(help="checkpoints, latents and preview sheets")] = ROOT / ".train",
    clip_steps: Annotated[int, tyro.conf.arg(help="whole length of the CLIP's training")] = 800,
    vae_steps: Annotated[int, tyro.conf.arg(help="whole length of the VAE's training")] = 1600,
    unet_steps: Annotated[int, tyro.conf.arg(help="whole length of the UNet's training")] = 12400,
    threads: Annotated[int, tyro.conf.arg(help="CPU threads; another count changes the last bits")] = 2,
) -> None:
    """Train CLIP, VAE and UNet from their seeds, then install; run it again after a stop."""
    torch.set_num_threads(threads)
    options = BaseOptions(
        data / "shapes-sd",
        data / "shapes-clip",
        work,
        CLIPOptions(steps=clip_steps),
        VAEOptions(steps=vae_steps),
        UNetOptions(steps=unet_steps),
    )
    run_stages(stages, options)


if __name__ == "__main__":
    tyro.cli(main)
