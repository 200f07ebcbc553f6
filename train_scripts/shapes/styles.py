"""Four looks for a scene, each a function of the picture alone. Widths are in pixels and made for 128×128.

Objects are what differs from the colour of the top left pixel, so the background must be plain.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Array: TypeAlias = NDArray[np.float64]  # colours (height, width, 3) or masks (height, width), between 0 and 1
CELL = 8  # one dot or tile; also the pixels behind one latent of the VAE


def halftone(image: Image.Image) -> Image.Image:
    """Coloured dots on cream paper; the darker the picture, the larger the dot."""
    paper = np.array([0.99, 0.96, 0.88])
    cells = _cells(image)
    darkness = 1 - cells @ np.array([0.3, 0.59, 0.11])
    radius = CELL * (0.3 + 0.22 * darkness)
    dot = np.clip(radius - _distance_to_cell_centre(image) + 0.5, 0, 1)
    return _to_image(_blend(paper, cells * 0.94, dot))


def neon(image: Image.Image) -> Image.Image:
    """Glowing tubes along the outlines, in the colour of the object, in the dark."""
    night = np.array([0.03, 0.02, 0.09])
    colours = _to_array(image)
    glow_colour = np.clip(colours / colours.max(axis=2, keepdims=True), 0.12, 1)
    tube = _line(image, inset=2.0, width=3.0)
    light = glow_colour * tube[..., None]
    halo = _blurred(light, 2.0) * 0.7 + _blurred(light, 5.0) * 1.2
    lit = 1 - (1 - night) * (1 - np.clip(halo, 0, 1))
    return _to_image(_blend(lit, 0.55 * glow_colour + 0.45, tube))


def sketch(image: Image.Image) -> Image.Image:
    """A dark pencil outline on paper, the object hatched in its own colour."""
    paper, pencil = np.array([0.96, 0.94, 0.88]), np.array([0.2, 0.19, 0.23])
    rows, columns = np.mgrid[: image.height, : image.width]
    hatch = np.clip(1.5 - np.abs((rows + columns) % CELL - CELL / 2), 0, 1) * _inside(image)
    coloured = _blend(paper, _to_array(image) * 0.9, hatch * 0.9)
    return _to_image(_blend(coloured, pencil, _line(image, inset=0.0, width=2.4)))


def mosaic(image: Image.Image) -> Image.Image:
    """Square tiles with a light upper left edge, set in dark grout."""
    grout = np.array([0.16, 0.15, 0.17])
    tiles = _cells(image)
    rows, columns = np.mgrid[: image.height, : image.width]
    row, column = rows % CELL, columns % CELL
    lit = np.where((row == 1) | (column == 1), 0.35, 0.0)
    joint = ((row == 0) | (column == 0)).astype(np.float64)
    return _to_image(_blend(_blend(tiles, np.ones(3), lit), grout, joint))


STYLES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "halftone": halftone,
    "neon": neon,
    "sketch": sketch,
    "mosaic": mosaic,
}


def _to_array(image: Image.Image) -> Array:
    return np.asarray(image.convert("RGB"), dtype=np.float64) / 255


def _to_image(colours: Array) -> Image.Image:
    return Image.fromarray((np.clip(colours, 0, 1) * 255 + 0.5).astype(np.uint8))


def _blend(under: Array, over: Array, cover: Array) -> Array:
    return under + (over - under) * cover[..., None]


def _blurred(colours: Array, radius: float) -> Array:
    return _to_array(_to_image(colours).filter(ImageFilter.GaussianBlur(radius)))


def _cells(image: Image.Image) -> Array:
    """Each cell filled with its mean colour; cells cut off by the border count what is there."""
    rows = -(-image.height // CELL) * CELL
    columns = -(-image.width // CELL) * CELL
    room = ((0, rows - image.height), (0, columns - image.width), (0, 0))
    whole = np.pad(_to_array(image), room, mode="edge")
    means = whole.reshape(rows // CELL, CELL, columns // CELL, CELL, 3).mean(axis=(1, 3))
    return means.repeat(CELL, axis=0).repeat(CELL, axis=1)[: image.height, : image.width]


def _distance_to_cell_centre(image: Image.Image) -> Array:
    rows, columns = np.mgrid[: image.height, : image.width]
    return np.hypot(rows % CELL - (CELL - 1) / 2, columns % CELL - (CELL - 1) / 2)


def _inside(image: Image.Image) -> Array:
    """1 on objects, 0 on the background, in between across the smoothed edge."""
    colours = _to_array(image)
    difference = np.abs(colours - colours[0, 0]).max(axis=2)
    return np.clip((difference - 0.06) / 0.08, 0, 1)


def _line(image: Image.Image, *, inset: float, width: float) -> Array:
    """Cover (height, width) of a line along every outline, its middle `inset` pixels inside the object."""
    softness = 2.0
    soft = _blurred(_inside(image)[..., None].repeat(3, axis=2), softness)[..., 0]
    level = np.clip(soft, 1e-3, 1 - 1e-3)
    # A blurred edge is a Gaussian step, close to a logistic one: its logit measures the distance to the edge.
    depth = np.log(level / (1 - level)) * softness / 1.702
    return np.clip(width / 2 + 0.5 - np.abs(depth - inset), 0, 1)
