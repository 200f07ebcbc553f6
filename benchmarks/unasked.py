"""What an adapter does to pictures that nobody asked it to change: prompts without its trigger."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.exam import COLOUR_HEADS, PLAIN, SHAPE_HEADS, Seen, said
from benchmarks.painter import Drawn, Painter
from benchmarks.report import Section, share, with_goal
from difflora.adapter import Adapter
from train_scripts.shapes.world import Scene

COLUMNS = (
    "adapter",
    "judged plain",
    "base alone",
    "shape and colour right",
    "base alone",
    "judged as the base's",
    "drift",
)
KEEPS_LOOK = "≥ 0.9"


@dataclass(frozen=True, slots=True)
class Unasked:
    """Pictures of plain prompts, by the base alone and with an adapter at weight 1, from the same seeds."""

    name: str
    wanted: list[Seen]
    base: Drawn
    drawn: Drawn


def unasked(paint: Painter, adapter: Adapter, scenes: Sequence[Scene]) -> Unasked:
    """Draws the scenes without the adapter and with it; `scenes` are named without its trigger."""
    prompts = [scene.caption for scene in scenes]
    wanted = [said(scene) for scene in scenes]
    return Unasked(adapter.meta.name, wanted, paint(prompts, adapter, 0.0), paint(prompts, adapter))


def unasked_section(figures: Sequence[Unasked]) -> Section:
    """One row an adapter."""
    about = (
        "Adapters at weight 1 and prompts that do not name what they learned. Drift: the distance of the "
        "pixels from the base's picture of the same seed, root mean square, of 255."
    )
    return Section("Without the trigger", about, COLUMNS, tuple(map(unasked_row, figures)))


def unasked_row(figures: Unasked) -> tuple[str, ...]:
    """The cells of `COLUMNS`."""
    both = (figures.drawn, figures.base)
    plain = [share([(one.look, one.subject) == (PLAIN, "none") for one in each.seen]) for each in both]
    right = [each.right(figures.wanted, SHAPE_HEADS + COLOUR_HEADS) for each in both]
    same = share([one == two for one, two in zip(figures.base.seen, figures.drawn.seen, strict=True)])
    distances = [drift(one, two) for one, two in zip(figures.base.images, figures.drawn.images, strict=True)]
    away = f"{sum(distances) / len(distances):.1f}"
    kept = with_goal(plain[0], KEEPS_LOOK)
    return (figures.name, kept, *map(str, (plain[1], *right, same)), away)


def drift(one: Image.Image, other: Image.Image) -> float:
    """Root mean square difference of two RGB images of one size, in levels of 255."""
    first, second = (np.asarray(image, dtype=np.float64) for image in (one, other))
    return float(np.sqrt(((first - second) ** 2).mean()))
