"""`difflora demo`: trains on the sample data, draws sheets, and says what to look at."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from rich.console import Console

from difflora.commands.console import follow, make_console, meter
from difflora.commands.drawing import write_picture
from difflora.commands.flags import parse
from difflora.demo import (
    BLEND_LOOK_AT,
    LESSONS,
    Lesson,
    base_of,
    draw_blend,
    draw_cover,
    draw_sheet,
    find_sample_data,
)
from difflora.errors import AlreadyTrained
from difflora.families import Model
from difflora.formats import read
from difflora.training.config import TrainConfig, configure
from difflora.training.results import results_of

ABOUT = """Trains two styles and one subject on the small base that comes along, then draws with them: a sheet
before and after for each, and a blend of the two styles by weight. Takes minutes on two CPU cores.
Run again, it reuses what is there; after an interruption it continues."""

ABOUT_COURSE = (
    "{count} trainings, then pictures with what was learned, into {output}: about seven minutes on two idle "
    "CPU cores. Ctrl-C keeps what is done; the same command goes on."
)


@dataclass(frozen=True)
class Flags:
    """Where results go."""

    output: Path = Path("outputs/demo")
    """Folder for the adapters and the sheets."""
    steps: int | None = None
    """Steps of each training; the presets' own if not given. Few steps are quick and teach little."""
    draw_steps: int = 25
    """Denoising steps of every picture."""
    sample_data: Path | None = None
    """Folder with shapes-sd, styles and subjects, where it is not found by itself."""
    debug: bool = False
    """Show the traceback of an error."""


def run(words: Sequence[str]) -> int:
    """Runs the demonstration; returns the exit code."""
    flags = parse(Flags, words, verb="demo", about=ABOUT)
    console, started = make_console(), time.monotonic()
    data = find_sample_data(flags.sample_data)
    console.print(ABOUT_COURSE.format(count=len(LESSONS), output=flags.output))
    for number, lesson in enumerate(LESSONS, start=1):
        console.print(
            f"{number} of {len(LESSONS)}: the {lesson.preset} {lesson.name}, from {data / lesson.folder}"
        )
        _learn(lesson, flags, data, console)
    sheets = _sheets(flags, data)
    due = [sheet for sheet in (*sheets, *_covers(flags)) if sheet.is_due()]
    if due:
        from difflora.families import load

        model = load(base_of(data))
        for sheet in due:
            _draw(sheet, model, console)
    minutes = (time.monotonic() - started) / 60
    console.print(
        f"\ndone in {minutes:.1f} minutes. Look at:" if due else "\nall was there already. Look at:"
    )
    for sheet in sheets:
        console.print(f"  {sheet.path}\n      {sheet.look_at}")
    _next_steps(console, flags.output, base_of(data))
    return 0


@dataclass(frozen=True)
class Sheet:
    """A picture of the demonstration: its file, what to look at, and the adapters it is drawn with."""

    path: Path
    look_at: str
    adapters: tuple[Path, ...]
    draw: Callable[..., Image.Image]
    """Takes the model, the adapters in their order, and `progress`."""

    def is_due(self) -> bool:
        """Whether it is not there, or older than one of its adapters."""
        if not self.path.exists():
            return True
        return self.path.stat().st_mtime < max(adapter.stat().st_mtime for adapter in self.adapters)


def _sheets(flags: Flags, data: Path) -> list[Sheet]:
    files = {lesson.name: flags.output / f"{lesson.name}.safetensors" for lesson in LESSONS}
    sheets = [
        Sheet(
            flags.output / f"{lesson.name}_before_after.png",
            lesson.look_at,
            (files[lesson.name],),
            partial(draw_sheet, lesson=lesson, data=data, steps=flags.draw_steps),
        )
        for lesson in LESSONS
    ]
    blended = (files["halftone"], files["neon"])
    draw = partial(draw_blend, steps=flags.draw_steps)
    return [*sheets, Sheet(flags.output / "blend_halftone_neon.png", BLEND_LOOK_AT, blended, draw)]


def _covers(flags: Flags) -> list[Sheet]:
    """The pictures beside the adapters' files."""
    return [
        Sheet(
            flags.output / f"{lesson.name}.preview.png",
            "",
            (flags.output / f"{lesson.name}.safetensors",),
            partial(draw_cover, lesson=lesson, steps=flags.draw_steps),
        )
        for lesson in LESSONS
    ]


def _learn(lesson: Lesson, flags: Flags, data: Path, console: Console) -> None:
    """Trains the adapter of a lesson, unless it is there, learned from the same images on the same base in as
    many steps."""
    from difflora.training.loop import train

    config = configure(lesson.options(data, flags.output, steps=flags.steps))
    try:
        follow(train(config), console, label=lesson.name)
    except AlreadyTrained:
        if _is_current(config):
            console.print(f"{lesson.name}: trained before, reused (remove it to train again)")
        else:
            console.print(f"{lesson.name}: of other images, another base or other steps, trained anew")
            follow(train(config.model_copy(update={"overwrite": True})), console, label=lesson.name)
    console.print(f"{lesson.name}: {flags.output / lesson.name}.safetensors")


def _is_current(config: TrainConfig) -> bool:
    """Whether a finished training is of the images and the base that are there now, and of as many steps.

    One without its record is not known to be.
    """
    from difflora.data.folder import scan
    from difflora.families import load

    try:
        record = json.loads(results_of(config).record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    if record["config"]["steps"] != config.steps:
        return False
    images, base = scan(config).fingerprint, load(config.base_model).facts.sha256
    return record["data"]["fingerprint"] == images and record["base"]["sha256"] == base


def _draw(sheet: Sheet, model: Model, console: Console) -> None:
    adapters = [read(path) for path in sheet.adapters]
    with meter(console, sheet.path.stem) as shown:
        image = sheet.draw(model, *adapters, progress=partial(shown.show, words="steps"))
    write_picture(image, sheet.path)


def _next_steps(console: Console, output: Path, base: Path) -> None:
    console.print(
        "The adapters are ordinary files, usable in A1111, ComfyUI and diffusers as well. Try your own mix:"
    )
    console.print(
        f'  difflora generate --base-model "{base}" --adapters "{output}" --output "{output / "mine"}" '
        '--prompt "a large pink star on a teal background <lora:halftone:0.6> <lora:neon:0.5>"'
    )
