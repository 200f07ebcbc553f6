"""`difflora demo`: trains on the sample data, draws sheets, and says what to look at."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image
from rich.console import Console

from difflora.adapter import Adapter
from difflora.commands.console import follow, make_console, meter
from difflora.commands.flags import parse
from difflora.demo import LESSONS, Lesson, Progress, base_of, draw_blend, draw_sheet, find_sample_data
from difflora.errors import AlreadyTrained
from difflora.formats import read
from difflora.training.config import configure

ABOUT = """Trains two styles and one subject on the small base that comes along, then draws with them: a sheet
before and after for each, and a blend of the two styles by weight. Takes minutes on two CPU cores.
Run again, it reuses what is there; after an interruption it continues."""


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
    adapters = {lesson.name: _learn(lesson, flags, data, console) for lesson in LESSONS}

    from difflora.families import load

    model = load(base_of(data))
    sheets = {}
    for lesson in LESSONS:
        draw = partial(draw_sheet, model, adapters[lesson.name], lesson, data=data, steps=flags.draw_steps)
        sheets[_draw(draw, flags.output / f"{lesson.name}_before_after.png", console)] = lesson.look_at
    blend = partial(draw_blend, model, adapters["halftone"], adapters["neon"], steps=flags.draw_steps)
    sheets[_draw(blend, flags.output / "blend_halftone_neon.png", console)] = (
        "the base in the top left corner; more dots to the right, more glow downwards, both in the middle"
    )
    console.print(f"\ndone in {(time.monotonic() - started) / 60:.1f} minutes. Look at:")
    for path, words_ in sheets.items():
        console.print(f"  {path}\n      {words_}")
    _next_steps(console, flags.output, base_of(data))
    return 0


def _learn(lesson: Lesson, flags: Flags, data: Path, console: Console) -> Adapter:
    """The adapter of a lesson: trained now, or read if it is there."""
    from difflora.training.loop import train

    config = configure(lesson.options(data, flags.output, steps=flags.steps))
    try:
        follow(train(config), console, label=lesson.name)
    except AlreadyTrained:
        console.print(f"{lesson.name}: trained before, reused (remove it to train again)")
    path = flags.output / f"{lesson.name}.safetensors"
    console.print(f"{lesson.name}: {path}")
    return read(path)


def _draw(draw: Callable[..., Image.Image], path: Path, console: Console) -> Path:
    with meter(console, path.stem) as shown:
        progress: Progress = partial(shown.show, words="steps")
        image = draw(progress=progress)
    image.save(path)
    return path


def _next_steps(console: Console, output: Path, base: Path) -> None:
    console.print(
        "The adapters are ordinary files, usable in A1111, ComfyUI and diffusers as well. Try your own mix:"
    )
    console.print(
        f'  difflora generate --base-model "{base}" --adapters "{output}" --output "{output / "mine"}" '
        '--prompt "a large pink star on a teal background <lora:halftone:0.6> <lora:neon:0.5>"'
    )
