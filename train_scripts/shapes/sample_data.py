"""The folders to learn from: images with a caption in a text file of the same stem."""

import random
from pathlib import Path

from PIL import Image

from train_scripts.shapes.characters import random_robot
from train_scripts.shapes.styles import STYLES
from train_scripts.shapes.world import COLOURS, SHAPES, Scene, random_scene

EDGE = 128
STYLE_IMAGES = 24
ROBOT_BACKGROUNDS = ("blue", "green", "yellow", "white", "purple", "orange", "pink", "teal")
MIXED_STYLE = "neon"
MIXED_SIZES = (  # width × height in pixels
    (128, 128),
    (192, 128),
    (128, 192),
    (256, 128),
    (128, 256),
    (160, 160),
    (200, 120),
    (120, 200),
    (144, 112),
    (112, 144),
    (240, 160),
    (97, 131),
)


def write_sample_data(root: Path, *, seed: int) -> list[Path]:
    """Write every sample folder under `root`, return the images' paths; the same seed gives the same bytes.

    `styles/STYLE/` 24 images of 128×128 each, `subjects/robot/` 8 of 128×128, `mixed_sizes/` 12 others.
    """
    written = []
    for style in STYLES:
        written += _write_style(root / "styles" / style, style, [(EDGE, EDGE)] * STYLE_IMAGES, seed)
    written += _write_style(root / "mixed_sizes", MIXED_STYLE, list(MIXED_SIZES), seed + 1)
    return written + _write_robot(root / "subjects" / "robot", seed)


def styled_caption(caption: str, style: str) -> str:
    """How captions and prompts name a style."""
    return f"{caption}, {style} style"


def _write_style(folder: Path, style: str, sizes: list[tuple[int, int]], seed: int) -> list[Path]:
    rng = random.Random(f"{seed} {style}")
    written = []
    scenes = _with_every_shape(rng, len(sizes))
    for number, (scene, (width, height)) in enumerate(zip(scenes, sizes, strict=True)):
        image = STYLES[style](scene.render(width, height))
        written.append(_write(folder, f"{style}_{number:02d}", image, styled_caption(scene.caption, style)))
    return written


def _with_every_shape(rng: random.Random, count: int) -> list[Scene]:
    """Random scenes, each shape first in as many as any other, as near as `count` allows.

    A style that was never seen on a square is drawn on circles where squares are asked for.
    """
    scenes: list[Scene] = []
    while len(scenes) < count:
        shapes = rng.sample(SHAPES, len(SHAPES))
        for shape in shapes[: count - len(scenes)]:
            scene = random_scene(rng)
            while scene.things[0].shape != shape:
                scene = random_scene(rng)
            scenes.append(scene)
    return scenes


def _write_robot(folder: Path, seed: int) -> list[Path]:
    assert set(ROBOT_BACKGROUNDS) <= set(COLOURS)
    rng = random.Random(f"{seed} robot")
    scenes = [random_robot(rng, background) for background in ROBOT_BACKGROUNDS]
    return [
        _write(folder, f"robot_{number:02d}", scene.render(EDGE), scene.caption)
        for number, scene in enumerate(scenes)
    ]


def _write(folder: Path, stem: str, image: Image.Image, caption: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.txt").write_text(caption + "\n", encoding="utf-8", newline="\n")
    image.save(folder / f"{stem}.png", optimize=True)
    return folder / f"{stem}.png"
