"""Latents and text embeddings, computed once.

Entries are known by content: the hash of the image file, the caption itself, and who encoded them. So an
edited image of the same name and size, another VAE or another resolution never meets an old entry.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import PIL
import torch
from torch import Tensor

from difflora.data.buckets import Bucket
from difflora.data.dataset import Item
from difflora.data.pixels import load_pixels
from difflora.data.store import Counts, TensorStore
from difflora.encode import TextConditioning
from difflora.errors import TrainingError

# Raised whenever the way from a file to its pixels, or from a caption to its embedding, changes.
_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Mean and standard deviation of latents: float32 (channels, height / 8, width / 8), or a batch."""

    mean: Tensor
    std: Tensor


class LatentCache:
    """The latents of images.

    Images are encoded one at a time: the bits of an entry then depend on its key alone, and not on which
    others were still missing.
    """

    def __init__(
        self, encode: Callable[[Tensor], Moments], *, encoder: str, folder: Path | None = None
    ) -> None:
        """`encode` takes pixels (1, 3, height, width) in -1 .. 1 and gives moments (1, channels, ...).

        `encoder` names everything its result depends on: checksum of the VAE, dtype, device, tiling.
        """
        self._encode = encode
        self._encoder = encoder
        self._store = TensorStore(None if folder is None else folder / "latents")

    @property
    def counts(self) -> Counts:
        """Where the entries asked for so far came from."""
        return self._store.counts

    def get(self, item: Item, bucket: Bucket, *, flip: bool = False) -> Moments:
        """The moments of one image (channels, height / 8, width / 8), on the CPU; not to be changed.

        Raises DataError if the file changed since it was scanned, TrainingError if the VAE gives NaN or
        infinity.
        """
        found = self._store.get(
            self.key(item, bucket, flip=flip), lambda: self._named(item, bucket, flip=flip)
        )
        return Moments(found["mean"], found["std"])

    def fresh(self, item: Item, bucket: Bucket, *, flip: bool = False) -> Moments:
        """What `get` gives, with the same bits and errors, but computed anew and kept nowhere."""
        batch = self._encode(load_pixels(item, bucket, flip=flip).unsqueeze(0))
        moments = Moments(*(part[0].float().cpu().contiguous() for part in (batch.mean, batch.std)))
        if not (moments.mean.isfinite().all() and moments.std.isfinite().all()):
            raise TrainingError(
                f"{item.path}: the VAE turns this image into NaN or infinity; "
                "SDXL's own VAE does so in float16: use it in float32, or another with --vae."
            )
        return moments

    def _named(self, item: Item, bucket: Bucket, *, flip: bool) -> dict[str, Tensor]:
        moments = self.fresh(item, bucket, flip=flip)
        return {"mean": moments.mean, "std": moments.std}

    def key(self, item: Item, bucket: Bucket, *, flip: bool) -> str:
        """What an entry is known by."""
        size = f"{bucket[0]}x{bucket[1]}"
        side = "mirrored" if flip else "plain"
        return f"latents {_VERSION} {item.sha256} {size} {side} pillow-{PIL.__version__} {self._encoder}"


class TextCache:
    """The text embeddings of captions, each encoded by itself."""

    def __init__(
        self, encode: Callable[[str], TextConditioning], *, encoder: str, folder: Path | None = None
    ) -> None:
        """`encode` gives one row for one caption.

        `encoder` names everything its result depends on: checksum of the text encoders, clip skip, chunks,
        dtype, device.
        """
        self._encode = encode
        self._encoder = encoder
        self._store = TensorStore(None if folder is None else folder / "text")

    @property
    def counts(self) -> Counts:
        """Where the entries asked for so far came from."""
        return self._store.counts

    def get(self, caption: str) -> TextConditioning:
        """The conditioning of one caption (1 row), on the CPU; not to be changed.

        Raises TrainingError if the text encoders give NaN or infinity.
        """
        key = f"text {_VERSION} {self._encoder} {caption}"
        found = self._store.get(key, lambda: self._compute(caption))
        return TextConditioning(found["hidden"], found.get("pooled"))

    def _compute(self, caption: str) -> dict[str, Tensor]:
        condition = self._encode(caption)
        tensors = {"hidden": condition.hidden}
        if condition.pooled is not None:
            tensors["pooled"] = condition.pooled
        if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
            raise TrainingError(f"the text encoders turn the caption {caption!r} into NaN or infinity")
        return tensors
