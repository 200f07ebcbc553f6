"""The demonstration: two styles and a subject learned from folders, and sheets that show what was learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from difflora.adapter import Adapter, Stack
from difflora.data.images import open_image
from difflora.errors import ConfigError
from difflora.families import Model
from difflora.generate import generate
from difflora.grid import Axis, grid
from difflora.recipe import Request
from difflora.sheet import Labels, contact_sheet

Progress = Callable[[int, int], None]

ENLARGED = 2
"""Pictures of the small base are shown at twice their size."""

SEED = 7
"""Of the trainings."""

DRAWN_SEED = 2
"""Of the pictures."""

GUIDANCE = 3.0
"""Below the base's own: a short training hardly moves the unguided picture; guidance widens the gap."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """One adapter of the demonstration: what it is learned from, and what is drawn with it afterwards.

    `trigger` are the words in the folder's captions that call what is learned. None of the prompts is a
    caption of the folder.
    """

    name: str
    preset: str
    folder: str
    trigger: str
    prompts: tuple[str, ...]
    look_at: str

    def options(self, data: Path, output: Path, *, steps: int | None) -> Mapping[str, Any]:
        """The training options: those of the preset, in every respect that is not a name or a length."""
        values: dict[str, Any] = {
            "preset": self.preset,
            "base_model": str(base_of(data)),
            "data": data / self.folder,
            "output": output,
            "name": self.name,
            "trigger": self.trigger,
            "seed": SEED,
            "save_every": 50,
        }
        return values if steps is None else values | {"steps": steps}


_SCENES = (
    "a red circle on a blue background",
    "a large green star on a yellow background",
    "a purple heart on a white background",
    "a orange square left of a teal ring on a pink background",
    "a small white diamond on a black background",
)
_PLACES = ("teal", "black", "pink", "green", "red")

LESSONS = (
    Lesson(
        "halftone",
        "style",
        "styles/halftone",
        "halftone style",
        tuple(f"{scene}, halftone style" for scene in _SCENES),
        "printed dots in place of flat colour, while shapes and colours follow the prompt as before",
    ),
    Lesson(
        "neon",
        "style",
        "styles/neon",
        "neon style",
        tuple(f"{scene}, neon style" for scene in _SCENES),
        "glowing outlines in the dark; most shapes and colours follow the prompt, after so few images",
    ),
    Lesson(
        "robot",
        "subject",
        "subjects/robot",
        "sks robot",
        tuple(f"a photo of sks robot on a {place} background" for place in _PLACES),
        "the robot of the eight training images, on black and red too, where it was never shown; its face "
        "suffers on red",
    ),
)
BLEND_PROMPT = "a large pink ring on a teal background, halftone style, neon style"
BLEND_LOOK_AT = (
    "the base in the top left corner; more dots to the right, more glow downwards, both below right"
)
BLEND_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def find_sample_data(folder: Path | None = None) -> Path:
    """The folder with the small base and the images: the one given, the checkout's, or ./sample_data.

    Raises ConfigError saying where it was looked for and how to get it.
    """
    places = (
        [folder] if folder is not None else [Path(__file__).parents[1] / "sample_data", Path("sample_data")]
    )
    for place in places:
        if base_of(place).is_dir():
            return place
    looked = ", ".join(str(place) for place in places)
    raise ConfigError(
        f"the sample data are not here (looked for shapes-sd in {looked}). They are part of the source, not "
        "of the installed package: run the demo in a clone of the repository, or give --sample-data FOLDER."
    )


def base_of(data: Path) -> Path:
    """The small base inside the sample data."""
    return data / "shapes-sd"


def draw_sheet(
    model: Model, adapter: Adapter, *, lesson: Lesson, data: Path, steps: int, progress: Progress
) -> Image.Image:
    """Before and after: a row of pictures of the base, a row with the adapter, a row of training images."""
    axes = [Axis("prompt", lesson.prompts), Axis("adapter", (None, adapter.meta.name))]
    request = Request(seed=DRAWN_SEED, steps=steps, guidance=GUIDANCE, batch=2 * len(lesson.prompts))
    drawn = grid(model, request, stack=Stack([(adapter, 1.0)]), axes=axes, progress=progress)
    taught = _training_images(data / lesson.folder, len(lesson.prompts), size=drawn.cells[0][0].size)
    return contact_sheet(
        [_enlarged(row) for row in (*drawn.cells, taught)],
        columns=Labels("prompts, the same seed in both rows", lesson.prompts),
        rows=Labels(
            "", ("the base alone", f"with the adapter {lesson.name}", "training images (other scenes)")
        ),
        heading=f"{lesson.name}: before and after learning it from a folder",
    )


def draw_cover(
    model: Model, adapter: Adapter, *, lesson: Lesson, steps: int, progress: Progress
) -> Image.Image:
    """The picture beside an adapter's file, by which libraries show it."""
    request = Request(prompt=lesson.prompts[1], seed=DRAWN_SEED, steps=steps, guidance=GUIDANCE)
    return generate(model, request, stack=Stack([(adapter, 1.0)]), progress=progress)[0]


def draw_blend(
    model: Model, halftone: Adapter, neon: Adapter, *, steps: int, progress: Progress
) -> Image.Image:
    """Every mix of two styles at five weights each, in one batch."""
    axes = [Axis("weight", BLEND_WEIGHTS, adapter.meta.name) for adapter in (halftone, neon)]
    request = Request(
        prompt=BLEND_PROMPT, seed=DRAWN_SEED, steps=steps, guidance=GUIDANCE, batch=len(BLEND_WEIGHTS) ** 2
    )
    stack = Stack([(halftone, 1.0), (neon, 1.0)])
    drawn = grid(model, request, stack=stack, axes=axes, progress=progress)
    columns, rows = (Labels(axis.title, tuple(map(axis.label, axis.values))) for axis in axes)
    heading = f"two styles by weight: {BLEND_PROMPT}"
    return contact_sheet([_enlarged(row) for row in drawn.cells], columns=columns, rows=rows, heading=heading)


def _training_images(folder: Path, count: int, *, size: tuple[int, int]) -> list[Image.Image]:
    files = sorted(folder.glob("*.png"))[:count]
    return [open_image(file).resize(size) for file in files]


def _enlarged(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    return [
        picture.resize((picture.width * ENLARGED, picture.height * ENLARGED), Image.Resampling.LANCZOS)
        for picture in pictures
    ]
