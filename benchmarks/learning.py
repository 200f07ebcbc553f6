"""What the demonstration's trainings teach, on held-out prompts, as the judge sees it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.drawing import Drawing, judged_sheet
from benchmarks.exam import PLAIN, Seen, held_out_scenes, said
from benchmarks.judge import Judge
from benchmarks.painter import Drawn, Painter
from benchmarks.report import Section, share, with_goal
from benchmarks.subject import subject_section
from difflora.adapter import Adapter
from difflora.demo import GUIDANCE, LESSONS, Lesson
from difflora.errors import AlreadyTrained
from difflora.families.model import Model
from difflora.formats import read
from difflora.training.config import configure
from difflora.training.loop import train
from train_scripts.shapes.sample_data import styled_caption
from train_scripts.shapes.world import Scene

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHAPE_HEADS = ("layout", "first shape", "second shape")
COLOUR_HEADS = ("first colour", "second colour")
SHEET_PROMPTS = 6


@dataclass(frozen=True, slots=True)
class Learning:
    """How much is trained and drawn. `steps` of each training; None for the presets' own."""

    drawing: Drawing
    prompts: int = 60
    steps: int | None = None

    @classmethod
    def as_shown(cls) -> "Learning":
        """As the demonstration draws."""
        return cls(Drawing(GUIDANCE, seed=3000))

    def quick(self) -> "Learning":
        """A few of each, to see that everything runs."""
        return replace(self, prompts=6, steps=40)


@dataclass(frozen=True, slots=True)
class StyleFigures:
    """A style's pictures at every weight, and those of the same scenes without its words in the prompt."""

    style: str
    wanted: list[Seen]
    by_weight: Mapping[float, Drawn]
    base_unasked: Drawn
    unasked: Drawn


def lessons(folder: Path) -> tuple[Lesson, ...]:
    """The demonstration's own, and the styles of the sample data that it leaves out, taught alike."""
    known = {lesson.name for lesson in LESSONS}
    more = (
        Lesson(style, "style", f"styles/{style}", (), "")
        for style in sorted(path.name for path in (folder / "styles").iterdir() if path.is_dir())
        if style not in known
    )
    return (*LESSONS, *more)


def learned(lesson: Lesson, data: Path, output: Path, *, steps: int | None) -> Adapter:
    """The lesson's adapter from `output`, trained there first unless it is finished."""
    config = configure(lesson.options(data, output, steps=steps))
    try:
        for _ in train(config):
            pass
    except AlreadyTrained:
        print(f"{lesson.name}: trained before, reused", flush=True)
    return read(output / f"{lesson.name}.safetensors")


def style_scenes(count: int, taught: Collection[str]) -> list[Scene]:
    """Held-out scenes of one object, none of whose captions is among those `taught`."""
    scenes = held_out_scenes(count + len(taught), pairs=False, seed="styles")
    return [scene for scene in scenes if scene.caption not in taught][:count]


def taught_captions(folder: Path, style: str) -> set[str]:
    """The captions of a style's folder without the words that name the style."""
    ending = styled_caption("", style)
    return {file.read_text(encoding="utf-8").strip().removesuffix(ending) for file in folder.glob("*.txt")}


def learning_sections(
    model: Model, judge: Judge, options: Learning, *, data: Path, output: Path
) -> list[Section]:
    """Trains (or reuses what is in `output`), draws and judges; writes a sheet for each adapter there."""
    paint = Painter(model, judge, options.drawing)
    styles, robots = [], []
    for lesson in lessons(data):
        adapter = learned(lesson, data, output, steps=options.steps)
        if lesson.preset == "subject":
            robots.append(subject_section(paint, adapter, options.prompts, output))
        else:
            figures = style_figures(paint, adapter, lesson.name, data / lesson.folder, options.prompts)
            _write_sheet(figures, output)
            styles.append(figures)
        print(f"{lesson.name}: judged", flush=True)
    about = (
        f"Drawn with {options.drawing}, {options.prompts} prompts each, none trained on by base or adapter."
    )
    return [
        Section("Styles learned from 24 images", about, STYLE_COLUMNS, tuple(map(style_row, styles))),
        Section("Blending by weight", _ABOUT_BLEND, BLEND_COLUMNS, tuple(map(blend_row, styles))),
        Section("Without the trigger", _ABOUT_UNASKED, UNASKED_COLUMNS, tuple(map(unasked_row, styles))),
        *robots,
    ]


STYLE_COLUMNS = (
    "style",
    "carries the style",
    "base alone",
    "shape right",
    "colour right",
    "base without the style's words: shape",
    "colour",
)
BLEND_COLUMNS = ("style", *(f"weight {weight:g}" for weight in WEIGHTS), "rises")
UNASKED_COLUMNS = ("adapter", "judged plain", "base alone", "judged as the base's picture", "drift (RMS)")
_ABOUT_BLEND = "Share of the same prompts and seeds that carries the style."
_ABOUT_UNASKED = (
    "The adapter at weight 1 and prompts that do not name the style. Drift is the distance of the pixels "
    "from the base's picture of the same seed, of 255."
)


def style_figures(paint: Painter, adapter: Adapter, style: str, folder: Path, count: int) -> StyleFigures:
    """Everything that is drawn for a style."""
    scenes = style_scenes(count, taught_captions(folder, style))
    plain = [scene.caption for scene in scenes]
    asked = [styled_caption(caption, style) for caption in plain]
    return StyleFigures(
        style,
        [said(scene, style) for scene in scenes],
        {weight: paint(asked, adapter, weight) for weight in WEIGHTS},
        paint(plain, adapter, 0.0),
        paint(plain, adapter),
    )


def style_row(figures: StyleFigures) -> tuple[str, ...]:
    """The style with the adapter and without, and whether objects are still right."""
    full, wanted = figures.by_weight[1.0], figures.wanted
    plain = [replace(one, look=PLAIN) for one in wanted]
    shares = (
        (full.carrying(figures.style), "≥ 0.9"),
        (figures.by_weight[0.0].carrying(figures.style), "≤ 0.05"),
        (full.right(wanted, SHAPE_HEADS), "≥ 0.8"),
        (full.right(wanted, COLOUR_HEADS), "≥ 0.8" if figures.style != "neon" else ""),
        (figures.base_unasked.right(plain, SHAPE_HEADS), ""),
        (figures.base_unasked.right(plain, COLOUR_HEADS), ""),
    )
    return (figures.style, *(with_goal(one, goal) for one, goal in shares))


def blend_row(figures: StyleFigures) -> tuple[str, ...]:
    """The style's share at each weight."""
    shares = [figures.by_weight[weight].carrying(figures.style) for weight in WEIGHTS]
    return (figures.style, *map(str, shares), "yes" if rises([one.value for one in shares]) else "no")


def unasked_row(figures: StyleFigures) -> tuple[str, ...]:
    """How far the adapter changes pictures that nobody asked it to change."""
    base, other = figures.base_unasked, figures.unasked
    same = share([one == two for one, two in zip(base.seen, other.seen, strict=True)])
    distances = [drift(one, two) for one, two in zip(base.images, other.images, strict=True)]
    plain = (str(other.carrying(PLAIN)), str(base.carrying(PLAIN)))
    return (figures.style, *plain, str(same), f"{sum(distances) / len(distances):.1f}")


def rises(values: Sequence[float]) -> bool:
    """Whether no value is below the one before it, and the last is above the first."""
    return all(before <= after for before, after in pairwise(values)) and values[-1] > values[0]


def drift(one: Image.Image, other: Image.Image) -> float:
    """Root mean square difference of two RGB images of one size, in levels of 255."""
    first, second = (np.asarray(image, dtype=np.float64) for image in (one, other))
    return float(np.sqrt(((first - second) ** 2).mean()))


def _write_sheet(figures: StyleFigures, output: Path) -> None:
    """Rows of weights from 0 to 1, then of prompts without the style's words, first without the adapter."""
    drawn = [*figures.by_weight.values(), figures.base_unasked, figures.unasked]
    shown = [image for each in drawn for image in each.images[:SHEET_PROMPTS]]
    looks = [figures.style] * len(WEIGHTS) + [PLAIN] * 2
    good = [
        one.look == look for each, look in zip(drawn, looks, strict=True) for one in each.seen[:SHEET_PROMPTS]
    ]
    columns = min(SHEET_PROMPTS, len(figures.wanted))
    judged_sheet(shown, good, columns=columns).save(output / f"judged_{figures.style}.png")
