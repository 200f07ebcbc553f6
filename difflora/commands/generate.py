"""`difflora generate`: images with any mix of adapters, or the pixels of an image drawn before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops
from pydantic import BaseModel, ConfigDict, Field

from difflora.commands.console import Meter, make_console, meter
from difflora.commands.drawing import mixed, save_numbered
from difflora.commands.flags import Shown, grouped, option_group, parse, require, usage_error
from difflora.commands.options import AdapterOptions, BaseOptions, build
from difflora.generate import batches, replay
from difflora.library import Library
from difflora.recipe import Recipe, Request, read_recipe

ABOUT = """Draws images and writes them as PNG files that hold their own recipe.

difflora generate --base-model BASE --adapters FOLDER --prompt "a red circle <lora:halftone:0.8>"
difflora generate --base-model BASE --adapters FOLDER --from outputs/00001-7.png"""


class SourceOptions(BaseModel):
    """What to draw, where that is not said by the request below."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    from_image: Path | None = Field(
        None, description="An image drawn by difflora: draw it again from its recipe, pixel by pixel."
    )


class OutputOptions(BaseModel):
    """How many images, and where they go."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int = Field(1, ge=1, description="How many images; image i has seed + i.")
    output: Path = Field(Path("outputs"), description="Folder for the images; nothing in it is overwritten.")
    debug: bool = Field(False, description="Show the traceback of an error.")


def run(words: Sequence[str]) -> int:
    """Draws; returns the exit code."""
    groups = {
        "source": option_group(SourceOptions, shown=Shown(renamed={"from_image": "from"})),
        "request": option_group(Request),
        "adapters": option_group(AdapterOptions),
        "base": option_group(BaseOptions),
        "output": option_group(OutputOptions),
    }
    flags: Any = parse(grouped(**groups), words, verb="generate", about=ABOUT)
    require(BaseOptions, flags.base, verb="generate")
    output = build(OutputOptions, flags.output)
    adapters = build(AdapterOptions, flags.adapters)
    base = build(BaseOptions, flags.base)
    source = build(SourceOptions, flags.source).from_image
    if source is None and "prompt" not in flags.request:
        raise usage_error("generate", "needed: --prompt TEXT, or --from IMAGE")
    if source is None:
        return _draw(build(Request, flags.request), adapters, base=base, output=output)
    clashing = [
        *flags.request,
        *flags.output.keys() & {"count"},
        *flags.adapters.keys() & {"adapter", "mode"},
    ]
    if clashing:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in clashing)
        raise usage_error("generate", f"--from draws exactly what the image's recipe says; leave out {names}")
    return _draw_again(source, adapters, base=base, output=output)


def _draw(wanted: Request, adapters: AdapterOptions, *, base: BaseOptions, output: OutputOptions) -> int:
    mix = mixed(adapters, adapters.library(), wanted.prompt)
    request = wanted.model_copy(update={"prompt": mix.prompt})
    console = make_console()
    model = base.load()
    with meter(console, "drawing") as shown:
        drawn = batches(
            model,
            request,
            stack=mix.stack,
            mode=adapters.chosen_mode,
            count=output.count,
            progress=partial(_show, shown, -(-output.count // request.batch)),
        )
        for images in drawn:  # on the disk as soon as they are drawn
            for path in save_numbered(images, output.output):
                console.print(str(path))
    return 0


def _show(shown: Meter, batches: int, done: int, total: int) -> None:
    shown.show(done, total, f"steps, batch {(done - 1) * batches // total + 1} of {batches}")


def _draw_again(source: Path, adapters: AdapterOptions, *, base: BaseOptions, output: OutputOptions) -> int:
    recipe = read_recipe(source)
    # Looked through only for what the recipe names: the picture may lie in a folder of everything.
    library = Library(adapters.adapters or source.parent) if recipe.adapters else None
    console = make_console()
    # What is not given is as it was.
    model = base.model_copy(update=_as_it_was(recipe, base)).load()
    with meter(console, "drawing") as shown:
        (image,) = replay(recipe, library, model, progress=partial(_show, shown, 1))
    (path,) = save_numbered([image], output.output)
    console.print(str(path))
    console.print(_verdict(image, source))
    return 0


def _as_it_was(recipe: Recipe, base: BaseOptions) -> dict[str, Any]:
    """How the base was loaded, where the command line does not say it."""
    then = {
        "dtype": recipe.dtype,
        "prediction_type": recipe.base.prediction_type or None,
        "zero_terminal_snr": recipe.base.zero_terminal_snr,
    }
    return {name: value for name, value in then.items() if getattr(base, name) in ("auto", None)}


def _verdict(image: Image.Image, source: Path) -> str:
    """Whether the pixels are those of the source, by how much they are not, and what may be the cause."""
    with Image.open(source) as before:
        original = before.convert("RGB")
    drawn = image.convert("RGB")
    if original.size == drawn.size and original.tobytes() == drawn.tobytes():
        return f"bit-exact: every pixel is that of {source}"
    causes = image.info.get(
        "difflora_differences",
        "nothing that is recorded differs: the image may have been edited, or drawn with --offload or "
        "--attention otherwise",
    )
    if original.size != drawn.size:
        return f"not the size of {source}: {drawn.size} against {original.size}\n{causes}"
    largest = max(ImageChops.difference(original, drawn).tobytes())
    return f"not bit-exact: pixels differ from {source} by up to {largest} of 255\n{causes}"
