"""A procedural world of captioned scenes: one or two plain shapes on a plain background.

Captions follow one grammar, so a prompt of the base is a caption of the world:
    a [small|large] COLOUR SHAPE on a COLOUR background
    a COLOUR SHAPE (left of|right of|above|below) a COLOUR SHAPE on a COLOUR background
"""

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image, ImageDraw

RGB: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]

COLOURS: Mapping[str, RGB] = {
    "red": (220, 50, 47),
    "green": (60, 160, 60),
    "blue": (50, 90, 210),
    "yellow": (240, 200, 40),
    "purple": (140, 70, 190),
    "orange": (240, 130, 40),
    "white": (245, 245, 240),
    "black": (30, 30, 34),
    "pink": (240, 140, 180),
    "teal": (40, 170, 170),
}
RELATIONS: Mapping[str, Point] = {  # where the first object lies, seen from the second; y grows downwards
    "left of": (-1.0, 0.0),
    "right of": (1.0, 0.0),
    "above": (0.0, -1.0),
    "below": (0.0, 1.0),
}
SUPERSAMPLING = 4
TINT = 10  # a named colour varies by up to this much in each channel
PAIR_RADIUS = 0.17
PAIR_DISTANCE = 0.23  # of each object of a pair from the centre
RING_HOLE = 0.55


def _circle(radius: float) -> tuple[Point, ...]:
    angles = [2 * math.pi * i / 96 for i in range(96)]
    return tuple((radius * math.cos(angle), radius * math.sin(angle)) for angle in angles)


def _spikes(radii: tuple[float, ...]) -> tuple[Point, ...]:
    """Corners at even angles, the first at the top, their distances from the centre given in turn."""
    angles = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    return tuple((r * math.sin(a), -r * math.cos(a)) for r, a in zip(radii, angles, strict=True))


def _heart() -> tuple[Point, ...]:
    angles = [2 * math.pi * i / 64 for i in range(64)]
    across = [16 * math.sin(a) ** 3 for a in angles]
    up = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in angles]
    return tuple((x / 17, -y / 17) for x, y in zip(across, up, strict=True))


def _cross(arm: float) -> tuple[Point, ...]:
    corner = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    turns = [(1, 0), (0, 1), (-1, 0), (0, -1)]  # (cos, sin) of a quarter turn each
    return tuple((x * c - y * s, x * s + y * c) for c, s in turns for x, y in corner)


OUTLINES: Mapping[str, tuple[Point, ...]] = {  # within the unit circle around (0, 0)
    "circle": _circle(1.0),
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": _spikes((1.0, 1.0, 1.0)),
    "star": _spikes((1.0, 0.42) * 5),
    "heart": _heart(),
    "diamond": ((0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)),
    "cross": _cross(0.35),
    "ring": _circle(1.0),
}
SHAPES = tuple(OUTLINES)


@dataclass(frozen=True, slots=True)
class Thing:
    """One object of a scene. `x`, `y` are fractions of width and height, `radius` of the shorter side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    rgb: RGB  # the colour as drawn: the named one, slightly tinted
    size: str = ""  # "small", "large" or unsaid

    @property
    def words(self) -> str:
        return " ".join(word for word in (self.size, self.colour, self.shape) if word)

    def inner_point(self, width: int, height: int) -> Point:
        """A pixel position (x, y) surely covered by the object; its centre but for a ring."""
        aside = self.radius * (1 + RING_HOLE) / 2 if self.shape == "ring" else 0.0
        return self.x * width + aside * min(width, height), self.y * height

    def mask(self, width: int, height: int) -> Image.Image:
        """Mode "L", (width, height): 255 where the object is, without smoothing."""
        mask = Image.new("L", (width, height))
        draw = ImageDraw.Draw(mask)
        draw.polygon(self._corners(OUTLINES[self.shape], width, height), fill=255)
        if self.shape == "ring":
            draw.polygon(self._corners(_circle(RING_HOLE), width, height), fill=0)
        return mask

    def _corners(self, outline: tuple[Point, ...], width: int, height: int) -> list[Point]:
        r = self.radius * min(width, height)
        return [(self.x * width + r * x, self.y * height + r * y) for x, y in outline]


@dataclass(frozen=True, slots=True)
class Scene:
    """What is drawn and said. Of two things, `relation` says how the first lies to the second."""

    background: str
    background_rgb: RGB
    things: tuple[Thing, ...]
    relation: str = ""

    @property
    def caption(self) -> str:
        said = f" {self.relation} a ".join(thing.words for thing in self.things)
        return f"a {said} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether a (shape, colour, background) of the scene is one of the twelfth never trained on."""
        triples = (f"{thing.shape} {thing.colour} {self.background}" for thing in self.things)
        return any(hashlib.sha256(triple.encode()).digest()[0] % 12 == 0 for triple in triples)

    def render(self, width: int, height: int) -> Image.Image:
        """The scene as an RGB image of (width, height), smoothed by supersampling."""
        large = (width * SUPERSAMPLING, height * SUPERSAMPLING)
        image = Image.new("RGB", large, self.background_rgb)
        for thing in self.things:
            image.paste(thing.rgb, mask=thing.mask(*large))
        return image.resize((width, height), Image.Resampling.BOX)


@dataclass(frozen=True, slots=True)
class Odds:
    """How often a random scene is of each sort; shares between 0 and 1."""

    pair: float = 1 / 3
    small: float = 0.3
    large: float = 0.3
    favoured: tuple[str, ...] = ()  # shapes drawn `favour` times as often as the others
    favour: float = 1.0


EVEN = Odds()


def random_scene(rng: random.Random, odds: Odds = EVEN) -> Scene:
    """A scene drawn from the world; the same state of `rng` gives the same scene."""
    background = rng.choice(list(COLOURS))
    tinted = tint(rng, background)
    if rng.random() < odds.pair:
        relation = rng.choice(list(RELATIONS))
        return Scene(background, tinted, _pair(rng, odds, background, relation), relation)
    return Scene(background, tinted, (_single(rng, odds, background),))


def _single(rng: random.Random, odds: Odds, background: str) -> Thing:
    shape, colour = _shape_and_colour(rng, odds, background)
    sort = rng.random()
    if sort < odds.small:
        size, low, high = "small", 0.18, 0.24
    elif sort < odds.small + odds.large:
        size, low, high = "large", 0.32, 0.38
    else:
        size, low, high = "", 0.24, 0.32
    x, y = 0.5 + rng.uniform(-0.1, 0.1), 0.5 + rng.uniform(-0.1, 0.1)
    return Thing(shape, colour, x, y, rng.uniform(low, high), tint(rng, colour), size)


def _pair(rng: random.Random, odds: Odds, background: str, relation: str) -> tuple[Thing, Thing]:
    across, down = RELATIONS[relation]
    return (
        _one_of_pair(rng, odds, background, (across, down)),
        _one_of_pair(rng, odds, background, (-across, -down)),
    )


def _one_of_pair(rng: random.Random, odds: Odds, background: str, side: Point) -> Thing:
    shape, colour = _shape_and_colour(rng, odds, background)
    drift = rng.uniform(-0.08, 0.08)
    x = 0.5 + PAIR_DISTANCE * side[0] + (0.0 if side[0] else drift)
    y = 0.5 + PAIR_DISTANCE * side[1] + (0.0 if side[1] else drift)
    return Thing(shape, colour, x, y, PAIR_RADIUS, tint(rng, colour))


def _shape_and_colour(rng: random.Random, odds: Odds, background: str) -> tuple[str, str]:
    weights = [odds.favour if shape in odds.favoured else 1.0 for shape in SHAPES]
    shape = rng.choices(SHAPES, weights)[0]
    return shape, rng.choice([colour for colour in COLOURS if colour != background])


def tint(rng: random.Random, colour: str) -> RGB:
    red, green, blue = (min(255, max(0, value + rng.randint(-TINT, TINT))) for value in COLOURS[colour])
    return red, green, blue
