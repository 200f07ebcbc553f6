"""What the demonstration's trainings teach, on held-out prompts, as the judge sees it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import difflora
from benchmarks.drawing import Drawing, judged_sheet
from benchmarks.exam import COLOUR_HEADS, PLAIN, SHAPE_HEADS, Seen, held_out_scenes, said
from benchmarks.painter import Drawn, Painter
from benchmarks.report import Section, with_goal
from benchmarks.subject import subject_section
from benchmarks.unasked import Unasked, unasked, unasked_row, unasked_section
from difflora.adapter import Adapter
from difflora.data.folder import scan
from difflora.demo import GUIDANCE, LESSONS, Lesson
from difflora.errors import AlreadyTrained
from difflora.families.model import Model
from difflora.formats import read
from difflora.training.config import TrainConfig, configure
from difflora.training.loop import train
from train_scripts.shapes.sample_data import styled_caption
from train_scripts.shapes.world import SHAPES, Scene

KEPT: Mapping[str, Any] = {
    "preservation": 0.2,
    "train_text_encoder": True,
    "text_learning_rate": 5e-4,
    "caption_dropout": 0.0,
    "learning_rate": 1.5e-3,
    "batch_size": 8,
    "steps": 900,
}
"""A training that keeps what its words do not call; it sees three times as many samples."""
KEPT_GUIDANCE = 2.0
"""What is not called stays, so the unguided picture is the base's, and more guidance exaggerates."""
TRAINER = Path(difflora.__file__).parent
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHEET_PROMPTS = 6


@dataclass(frozen=True, slots=True)
class Learning:
    """How much is trained and drawn. `steps` of each training; None for the presets' own."""

    drawing: Drawing
    prompts: int = 50
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
    """A style's pictures at every weight, and those of the same scenes without its words."""

    style: str
    wanted: list[Seen]
    by_weight: Mapping[float, Drawn]
    unasked: Unasked


def lessons(folder: Path) -> tuple[Lesson, ...]:
    """The demonstration's own, and the styles of the sample data that it leaves out, taught alike."""
    known = {lesson.name for lesson in LESSONS}
    more = (
        Lesson(style, "style", f"styles/{style}", f"{style} style", (), "")
        for style in sorted(path.name for path in (folder / "styles").iterdir() if path.is_dir())
        if style not in known
    )
    return (*LESSONS, *more)


def learned(
    lesson: Lesson,
    data: Path,
    output: Path,
    *,
    steps: int | None,
    base: str,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> Adapter:
    """The lesson's adapter, trained to `output` unless the same training of the same images has finished
    there before; `more` are options beside the lesson's own."""
    options = {
        **lesson.options(data, output, steps=None),
        **more,
        **({} if steps is None else {"steps": steps}),
    }
    config = configure(options)
    folder = output / _key(config, base, scan(config).fingerprint)
    try:
        for _ in train(config.model_copy(update={"output": folder})):
            pass
    except AlreadyTrained:
        print(f"{lesson.name}: trained before, reused", flush=True)
    return read(folder / f"{lesson.name}.safetensors")


def _key(config: TrainConfig, base: str, images: str) -> str:
    """What a training depends on that may change between two runs: options, base, images and code."""
    told = config.model_dump_json(exclude={"output", "base_model", "data"})
    code = sha256(b"".join(file.read_bytes() for file in sorted(TRAINER.rglob("*.py")))).hexdigest()
    return sha256(f"{told} {base} {images} {code}".encode()).hexdigest()[:12]


def style_scenes(count: int, taught: Collection[str]) -> list[Scene]:
    """Held-out scenes of one object that none of the captions `taught` shows on the same background, neither
    alone nor beside another."""
    known = {triple for caption in taught for triple in triples(caption)}
    scenes = held_out_scenes(4 * count, pairs=False, seed="styles")
    return [scene for scene in scenes if not known & set(triples(scene.caption))][:count]


def triples(caption: str) -> list[tuple[str, str, str]]:
    """The (shape, colour, background) of each object that a caption of the world names."""
    words = caption.split()
    background = words[words.index("background") - 1]
    return [(word, words[place - 1], background) for place, word in enumerate(words) if word in SHAPES]


def taught_captions(folder: Path, style: str) -> set[str]:
    """The captions of a style's folder without the words that name the style."""
    ending = styled_caption("", style)
    return {file.read_text(encoding="utf-8").strip().removesuffix(ending) for file in folder.glob("*.txt")}


def learning_sections(
    paint: Painter, options: Learning, *, data: Path, output: Path, adapters: Path | None = None
) -> list[Section]:
    """Trains (or reuses what is in `output`), draws and judges; writes sheets to `output`.

    Those of the lessons whose adapters are in the folder `adapters`, if it is given; nothing is trained then.
    """
    output.mkdir(parents=True, exist_ok=True)
    styles, subjects, plain = [], [], []
    for lesson, adapter in _adapters(paint.model, options, data=data, output=output, finished=adapters):
        if lesson.preset == "subject":
            subjects.append(subject_section(paint, adapter, options.prompts, output))
            scenes = held_out_scenes(options.prompts, pairs=False, seed="styles")
            plain.append(unasked(paint, adapter, scenes))
        else:
            figures = style_figures(paint, adapter, lesson.name, data / lesson.folder, options.prompts)
            _write_sheet(figures, output)
            styles.append(figures)
            plain.append(figures.unasked)
        print(f"{lesson.name}: judged", flush=True)
    about = (
        f"Drawn with {paint.drawing}. {options.prompts} prompts each, learned by neither base nor adapter."
    )
    return [
        Section("Styles learned from 24 images", about, STYLE_COLUMNS, tuple(map(style_row, styles))),
        Section("Blending by weight", _ABOUT_BLEND, BLEND_COLUMNS, tuple(map(blend_row, styles))),
        *subjects,
        unasked_section(plain),
        *([] if adapters else [kept_section(paint, options, data=data, output=output)]),
    ]


def _adapters(
    model: Model, options: Learning, *, data: Path, output: Path, finished: Path | None
) -> Iterator[tuple[Lesson, Adapter]]:
    for lesson in lessons(data):
        if finished is None:
            base = model.facts.sha256
            yield lesson, learned(lesson, data, output, steps=options.steps, base=base)
        elif (file := finished / f"{lesson.name}.safetensors").exists():
            yield lesson, read(file)


KEPT_COLUMNS = (
    "style",
    "carries the style",
    "shape right",
    "colour right",
    "without its words: judged plain",
    "judged as the base's",
    "drift",
)
_ABOUT_KEPT = (
    "The demonstration's styles once more, on three times as many samples, a fifth of which keep the base as "
    "it is (`preservation`), and with the text encoder trained. Drawn at guidance "
    f"{KEPT_GUIDANCE:g}, with the words that call the style and without."
)


def kept_section(paint: Painter, options: Learning, *, data: Path, output: Path) -> Section:
    """The demonstration's styles, trained to keep to the words that call them."""
    paint = replace(paint, drawing=replace(paint.drawing, guidance=KEPT_GUIDANCE))
    rows = []
    for lesson in (lesson for lesson in LESSONS if lesson.preset == "style"):
        base = paint.model.facts.sha256
        adapter = learned(lesson, data, output, steps=options.steps, base=base, more=KEPT)
        scenes = style_scenes(options.prompts, taught_captions(data / lesson.folder, lesson.name))
        asked = paint([styled_caption(scene.caption, lesson.name) for scene in scenes], adapter)
        wanted = [said(scene, lesson.name) for scene in scenes]
        right = [with_goal(asked.right(wanted, heads), "≥ 0.8") for heads in (SHAPE_HEADS, COLOUR_HEADS)]
        _, plain, *_, same, drifted = unasked_row(unasked(paint, adapter, scenes))
        rows.append(
            (lesson.name, with_goal(asked.carrying(lesson.name), "≥ 0.9"), *right, plain, same, drifted)
        )
        print(f"{lesson.name}, kept to its words: judged", flush=True)
    return Section("Styles that keep to their words", _ABOUT_KEPT, KEPT_COLUMNS, tuple(rows))


STYLE_COLUMNS = (
    "style",
    "carries the style",
    "base alone",
    "shape right",
    "colour right",
    "both right",
    "base without the style's words: shape",
    "colour",
)
BLEND_COLUMNS = ("style", *(f"weight {weight:g}" for weight in WEIGHTS), "rises")
_ABOUT_BLEND = "Share of the same prompts and seeds that carries the style."


def style_figures(paint: Painter, adapter: Adapter, style: str, folder: Path, count: int) -> StyleFigures:
    """Everything that is drawn for a style."""
    scenes = style_scenes(count, taught_captions(folder, style))
    asked = [styled_caption(scene.caption, style) for scene in scenes]
    return StyleFigures(
        style,
        [said(scene, style) for scene in scenes],
        {weight: paint(asked, adapter, weight) for weight in WEIGHTS},
        unasked(paint, adapter, scenes),
    )


def style_row(figures: StyleFigures) -> tuple[str, ...]:
    """The style with the adapter and without, and whether objects are still right."""
    full, wanted = figures.by_weight[1.0], figures.wanted
    shares = (
        (full.carrying(figures.style), "≥ 0.9"),
        (figures.by_weight[0.0].carrying(figures.style), "≤ 0.05"),
        (full.right(wanted, SHAPE_HEADS), "≥ 0.8"),
        (full.right(wanted, COLOUR_HEADS), "≥ 0.8"),
        (full.right(wanted, SHAPE_HEADS + COLOUR_HEADS), "≥ 0.8"),
        (figures.unasked.base.right(figures.unasked.wanted, SHAPE_HEADS), ""),
        (figures.unasked.base.right(figures.unasked.wanted, COLOUR_HEADS), ""),
    )
    return (figures.style, *(with_goal(one, goal) for one, goal in shares))


def blend_row(figures: StyleFigures) -> tuple[str, ...]:
    """The style's share at each weight."""
    shares = [figures.by_weight[weight].carrying(figures.style) for weight in WEIGHTS]
    return (figures.style, *map(str, shares), "yes" if rises([one.value for one in shares]) else "no")


def rises(values: Sequence[float]) -> bool:
    """Whether no value is below the one before it, and the last is above the first."""
    return all(before <= after for before, after in pairwise(values)) and values[-1] > values[0]


def _write_sheet(figures: StyleFigures, output: Path) -> None:
    """Rows of weights from 0 to 1, then of prompts without the style's words, first without the adapter."""
    drawn = [*figures.by_weight.values(), figures.unasked.base, figures.unasked.drawn]
    shown = [image for each in drawn for image in each.images[:SHEET_PROMPTS]]
    looks = [figures.style] * len(WEIGHTS) + [PLAIN] * 2
    good = [
        one.look == look for each, look in zip(drawn, looks, strict=True) for one in each.seen[:SHEET_PROMPTS]
    ]
    columns = min(SHEET_PROMPTS, len(figures.wanted))
    judged_sheet(shown, good, columns=columns).save(output / f"judged_{figures.style}.png")
