"""Images as tensors, and sheets of images for the eye."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

PAINTERS = ("world.py", "styles.py", "characters.py")


def drawn_by(scenes: object = None) -> str:
    """A word that changes with what draws pictures, and with what they are of: a cache is named after it."""
    digest = hashlib.sha256(repr(scenes).encode())
    for name in PAINTERS:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:12]


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """RGB images of one size as float32 (N, 3, height, width) between -1 and 1, as the VAE takes them."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    # Contiguous: convolutions in the channels-last layout took twice as long on the CPU.
    return pixels.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def to_images(pixels: Tensor) -> list[Image.Image]:
    """The inverse of `to_tensor`; values outside -1 to 1 are cut off."""
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(value) for value in values]


def sheet(images: Sequence[Image.Image], *, columns: int) -> Image.Image:
    """Images of one size side by side, row by row."""
    width, height = images[0].size
    whole = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for number, image in enumerate(images):
        whole.paste(image, (number % columns * width, number // columns * height))
    return whole
