"""Aspect-ratio buckets: sizes of about the same area, to one of which every image is scaled and cropped."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from difflora.data.options import DataOptions
from difflora.errors import ConfigError

Bucket = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True)
class Buckets:
    """The bucket of each image, and what it costs; index i belongs to size i as given to `assign`.

    `crop[i]`: share of the image's area that is cut away, 0 .. 1. `scale[i]`: its enlargement, above 1 if
    blown up.
    """

    sizes: tuple[Bucket, ...]
    crop: tuple[float, ...]
    scale: tuple[float, ...]

    @cached_property
    def groups(self) -> Mapping[Bucket, tuple[int, ...]]:
        """Bucket -> indices of its images in rising order; buckets sorted, none empty."""
        groups: dict[Bucket, list[int]] = {bucket: [] for bucket in sorted(set(self.sizes))}
        for index, bucket in enumerate(self.sizes):
            groups[bucket].append(index)
        return {bucket: tuple(members) for bucket, members in groups.items()}


def assign(
    sizes: Sequence[tuple[int, int]],
    *,
    resolution: int,
    step: int,
    min_edge: int,
    max_edge: int,
    upscale: bool,
) -> Buckets:
    """The bucket of every image size (width, height) in pixels.

    Buckets are at most resolution² in area, their edges multiples of `step` between `min_edge` and
    `max_edge`. An image gets the one nearest in log aspect ratio, so a portrait and its landscape twin get
    twin buckets. Without `upscale`, an image smaller than that gets the largest multiples of `step` within
    itself (at least one `step`). One square bucket is the case min_edge = max_edge = resolution.

    Raises ConfigError unless step divides the resolution and min_edge <= resolution <= max_edge.
    """
    choices = grid(resolution=resolution, step=step, min_edge=min_edge, max_edge=max_edge)
    chosen: dict[tuple[int, int], Bucket] = {}
    for size in dict.fromkeys(sizes):
        bucket = min(
            choices, key=lambda choice: (_mismatch(size, choice), -choice[0] * choice[1], max(choice))
        )
        if not upscale and (bucket[0] > size[0] or bucket[1] > size[1]):
            bucket = _own_bucket(size, area=resolution**2, step=step, max_edge=max_edge)
        chosen[size] = bucket
    return Buckets(
        sizes=tuple(chosen[size] for size in sizes),
        crop=tuple(1.0 - 1.0 / _mismatch(size, chosen[size]) for size in sizes),
        scale=tuple(_cover(size, chosen[size]) for size in sizes),
    )


def assign_by(sizes: Sequence[tuple[int, int]], options: DataOptions, *, native: int) -> Buckets:
    """`assign` with a training configuration's options; `native` is the base's own resolution in pixels."""
    resolution = options.resolution or native
    step = options.bucket_step or (64 if resolution >= 256 else 8)
    if not options.buckets:
        return assign(
            sizes, resolution=resolution, step=8, min_edge=resolution, max_edge=resolution, upscale=True
        )
    return assign(
        sizes,
        resolution=resolution,
        step=step,
        min_edge=options.min_bucket_edge or max(step, resolution // 2 // step * step),
        max_edge=options.max_bucket_edge or 2 * resolution,
        upscale=options.upscale,
    )


def grid(*, resolution: int, step: int, min_edge: int, max_edge: int) -> tuple[Bucket, ...]:
    """Every bucket of a resolution, sorted; (h, w) beside each (w, h), and the square. See `assign`."""
    if step <= 0 or resolution % step:
        nearest = max(1, round(resolution / max(step, 1))) * max(step, 1)
        raise ConfigError(
            f"resolution {resolution} is no multiple of bucket_step {step}: "
            f"set resolution to {nearest}, or another step"
        )
    if not 0 < min_edge <= resolution <= max_edge:
        raise ConfigError(
            f"bucket edges must enclose the resolution: min_bucket_edge {min_edge}, resolution {resolution}, "
            f"max_bucket_edge {max_edge}"
        )
    buckets = set()
    for width in range(math.ceil(min_edge / step) * step, max_edge + 1, step):
        height = min(resolution**2 // width, max_edge) // step * step
        if height >= min_edge:
            buckets |= {(width, height), (height, width)}
    return tuple(sorted(buckets))


def fit_image(image: Image.Image, bucket: Bucket) -> Image.Image:
    """The image scaled to cover the bucket and cut to it around its centre, in one resampling (Lanczos)."""
    scale = _cover(image.size, bucket)
    width, height = bucket[0] / scale, bucket[1] / scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (max(left, 0.0), max(top, 0.0), min(left + width, image.width), min(top + height, image.height))
    return image.resize(bucket, Image.Resampling.LANCZOS, box=box)


def crop_origin(size: tuple[int, int], bucket: Bucket) -> tuple[int, int]:
    """(left, top) of what `fit_image` keeps, in pixels of the scaled image: SDXL is told of a crop."""
    scale = _cover(size, bucket)
    return round((size[0] * scale - bucket[0]) / 2), round((size[1] * scale - bucket[1]) / 2)


def _cover(size: tuple[int, int], bucket: Bucket) -> float:
    return max(bucket[0] / size[0], bucket[1] / size[1])


def _mismatch(size: tuple[int, int], bucket: Bucket) -> float:
    """Ratio of the two aspect ratios, >= 1: the exponential of their distance in logarithms.

    One correctly rounded division of whole numbers, so that mirrored cases compare alike.
    """
    one, other = size[0] * bucket[1], size[1] * bucket[0]
    return max(one, other) / min(one, other)


def _own_bucket(size: tuple[int, int], *, area: int, step: int, max_edge: int) -> Bucket:
    shrink = min(1.0, math.sqrt(area / (size[0] * size[1])), max_edge / max(size))
    width, height = (max(step, int(edge * shrink) // step * step) for edge in size)
    return width, height
