"""`difflora grid`: a contact sheet over two axes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from difflora.adapter import Stack
from difflora.commands.axes import HELP, parse_axis
from difflora.commands.console import make_console, meter
from difflora.commands.drawing import Mixed, mixed, reserve, save_numbered, write_picture
from difflora.commands.flags import grouped, option_group, parse, require, usage_error
from difflora.commands.options import AdapterOptions, BaseOptions, build
from difflora.grid import Axis, grid
from difflora.library import Library
from difflora.recipe import Request

ABOUT = """Draws a contact sheet: --x along the columns, --y along the rows, everything else from the request.

difflora grid --base-model BASE --adapters FOLDER --prompt "a red circle on a blue background"
--x "weight:halftone=0,0.25,0.5,0.75,1" --y "weight:neon=0:1:5" --batch 25"""


class SheetOptions(BaseModel):
    """The axes of the sheet, and where it goes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    x: str = Field(description=f"What changes along the columns. {HELP}")
    y: str | None = Field(None, description="What changes along the rows, in the same words.")
    output: Path = Field(Path("outputs"), description="Folder for the sheet; nothing in it is overwritten.")
    cells: bool = Field(False, description="Write every picture of the sheet as well, with its recipe.")
    debug: bool = Field(False, description="Show the traceback of an error.")


def run(words: Sequence[str]) -> int:
    """Draws the sheet; returns the exit code."""
    groups = {
        "sheet": option_group(SheetOptions),
        "request": option_group(Request),
        "adapters": option_group(AdapterOptions, skip=("mode",)),
        "base": option_group(BaseOptions),
    }
    flags: Any = parse(grouped(**groups), words, verb="grid", about=ABOUT)
    require(BaseOptions, flags.base, verb="grid")
    require(SheetOptions, flags.sheet, verb="grid")
    options = build(SheetOptions, flags.sheet)
    axes = [parse_axis(text) for text in (options.x, options.y) if text is not None]
    if "prompt" not in flags.request and not any(axis.name == "prompt" for axis in axes):
        raise usage_error("grid", "needed: --prompt TEXT, or an axis of prompts")
    adapters = build(AdapterOptions, flags.adapters)
    library = adapters.library()
    mix = _with_axes(mixed(adapters, library, flags.request.get("prompt", "")), axes, library)
    request = build(Request, flags.request | {"prompt": mix.prompt})
    console = make_console()
    model = build(BaseOptions, flags.base).load()
    with meter(console, "drawing") as shown:
        progress = partial(shown.show, words="steps")
        sheet = grid(model, request, stack=mix.stack, axes=axes, progress=progress)
    options.output.mkdir(parents=True, exist_ok=True)
    path = reserve(options.output, "grid.png")
    write_picture(sheet.image, path)
    console.print(str(path))
    if options.cells:
        for file in save_numbered([cell for row in sheet.cells for cell in row], options.output):
            console.print(str(file))
    return 0


def _with_axes(mix: Mixed, axes: Sequence[Axis], library: Library | None) -> Mixed:
    """The mix with every adapter of the folder that an axis names and the prompt does not, at weight 1."""
    if library is None:
        return mix
    known = {adapter.meta.name for adapter, _ in mix.stack}
    named = [axis.adapter for axis in axes if axis.adapter is not None]
    chosen = [value for axis in axes if axis.name == "adapter" for value in axis.values]
    named += [value for value in chosen if isinstance(value, str)]
    missing = [name for name in dict.fromkeys(named) if name not in known]
    return Mixed(mix.prompt, Stack([*mix.stack, *((library.get(name), 1.0) for name in missing)]))
