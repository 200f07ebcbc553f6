"""A composed subject: a small robot of the same parts and colours, in a new place and pose each time."""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from train_scripts.shapes.world import COLOURS, RGB, SUPERSAMPLING

OUTLINE: RGB = (38, 40, 52)
SHELL: RGB = (178, 190, 204)
FACE: RGB = (52, 60, 84)
EYE: RGB = (120, 240, 235)
LIMB: RGB = (112, 124, 142)
CHEST: RGB = (232, 92, 60)
BULB: RGB = (250, 205, 60)
TRIGGER = "sks robot"


@dataclass(frozen=True, slots=True)
class RobotScene:
    """The robot on a plain background. `x`, `y`, `height` are fractions of the image; `wave` lifts an arm."""

    background: str
    x: float
    y: float
    height: float
    wave: bool

    @property
    def caption(self) -> str:
        return f"a photo of {TRIGGER} on a {self.background} background"

    def render(self, size: int) -> Image.Image:
        """The scene as an RGB image of (size, size), smoothed by supersampling."""
        edge = size * SUPERSAMPLING
        image = Image.new("RGB", (edge, edge), COLOURS[self.background])
        _Robot(ImageDraw.Draw(image), self.x * edge, self.y * edge, self.height * edge).draw(wave=self.wave)
        return image.resize((size, size), Image.Resampling.BOX)


def random_robot(rng: random.Random, background: str) -> RobotScene:
    """The robot near the middle of `background`, filling about three quarters of the height."""
    x, y = 0.5 + rng.uniform(-0.08, 0.08), 0.5 + rng.uniform(-0.04, 0.04)
    return RobotScene(background, x, y, rng.uniform(0.7, 0.84), rng.random() < 0.5)


@dataclass(frozen=True, slots=True)
class _Robot:
    """Draws in units of the robot's height: (0, 0) is its middle, y from -0.5 (antenna) to 0.5 (feet)."""

    canvas: ImageDraw.ImageDraw
    x: float
    y: float
    height: float

    def draw(self, *, wave: bool) -> None:
        self._box(-0.02, -0.42, 0.02, -0.28, LIMB)
        self._disc(0.0, -0.44, 0.06, BULB)
        hand = -0.16 if wave else 0.24
        self._box(-0.36, min(0.0, hand), -0.25, max(0.12, hand), LIMB)
        self._box(0.25, 0.0, 0.36, 0.24, LIMB)
        self._box(-0.18, 0.28, -0.05, 0.5, LIMB)
        self._box(0.05, 0.28, 0.18, 0.5, LIMB)
        self._box(-0.25, -0.01, 0.25, 0.33, SHELL)
        self._disc(0.0, 0.16, 0.1, CHEST)
        self._box(-0.3, -0.34, 0.3, -0.02, SHELL)
        self._box(-0.22, -0.28, 0.22, -0.08, FACE)
        self._disc(-0.11, -0.18, 0.07, EYE)
        self._disc(0.11, -0.18, 0.07, EYE)

    def _box(self, left: float, top: float, right: float, bottom: float, colour: RGB) -> None:
        corners = self._place(left, top) + self._place(right, bottom)
        self.canvas.rounded_rectangle(corners, 0.04 * self.height, colour, OUTLINE, self._stroke)

    def _disc(self, x: float, y: float, radius: float, colour: RGB) -> None:
        corners = self._place(x - radius, y - radius) + self._place(x + radius, y + radius)
        self.canvas.ellipse(corners, colour, OUTLINE, self._stroke)

    def _place(self, x: float, y: float) -> tuple[float, float]:
        return self.x + x * self.height, self.y + y * self.height

    @property
    def _stroke(self) -> int:
        return round(0.018 * self.height)
