"""The pixels of one image as the VAE takes them."""

import hashlib

import torch
from torch import Tensor

from difflora.data import images
from difflora.data.buckets import Bucket, fit_image
from difflora.data.dataset import Item
from difflora.errors import DataError


def load_pixels(item: Item, bucket: Bucket, *, flip: bool) -> Tensor:
    """float32 (3, height, width) in -1 .. 1: scaled and cropped to the bucket, then mirrored if `flip`.

    Raises DataError if the file is not byte for byte the one that was scanned.
    """
    try:
        data = images.read_bytes(item.path)
        if hashlib.sha256(data).hexdigest() != item.sha256:
            raise DataError("the file has changed since the folder was scanned; start again")
        with images.pillow_warnings():
            image = images.decode(data)
    except DataError as error:
        raise DataError(f"{item.path}: {error}") from error
    pixels = images.to_tensor(fit_image(image, bucket))
    return torch.flip(pixels, dims=(2,)) if flip else pixels
