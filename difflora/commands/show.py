"""`difflora show`: what a base model, an adapter file or an image is."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from difflora.commands.console import make_console
from difflora.commands.flags import parse
from difflora.commands.results import print_json
from difflora.errors import BaseModelError

ABOUT = """Says what something is.

A base model (folder, checkpoint or Hub id), without loading its weights: its family, and which layers each
training target has.
An adapter file or folder: what it changes, how strongly, its trigger and hashes; with --base-model, which is
then loaded, whether it fits that base.
An image drawn by difflora or A1111: how it was made."""

IMAGES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Flags:
    """What is shown."""

    target: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TARGET")]
    """A base model (folder, .safetensors, Hub id), an adapter file or folder, or an image."""
    targets: str | None = None
    """Of a base: list the layers that these targets select (attn, attn+ff, all-linear, all, or patterns)."""
    rank: int = 16
    """Of a base: the rank for which trainable parameters are counted."""
    base_model: str | None = None
    """Of an adapter: the base that it should fit."""
    json: bool = False
    """Print one JSON document."""
    metadata: bool = False
    """Of an adapter: list everything the file says about itself."""
    debug: bool = False
    """Show the traceback of an error."""


def run(words: Sequence[str]) -> int:
    """Prints what the target is; returns the exit code: 1 for an adapter file that cannot be used."""
    flags = parse(Flags, words, verb="show", about=ABOUT)
    path = Path(flags.target).expanduser()
    if path.suffix.lower() in IMAGES:
        from difflora.commands.show_image import image_document, image_lines

        return print_json(image_document(path)) if flags.json else _print(image_lines(path))
    from difflora.formats.sources import is_there

    if is_there(path) and (path.is_dir() or path.suffix.lower() == ".safetensors"):
        return _file(flags, path)
    return _model(flags)


def _model(flags: Flags) -> int:
    from difflora.commands.show_model import model_document
    from difflora.families.outlines import outline

    return print_json(model_document(outline(flags.target))) if flags.json else _print(_model_lines(flags))


def _file(flags: Flags, path: Path) -> int:
    from difflora.commands.show_adapter import adapter_document, adapter_lines, fit_lines, profile_lines
    from difflora.formats import inspect, read

    report = inspect(path)
    if not report.format:
        try:
            return _model(flags)
        except BaseModelError:
            return _print([report.problem], code=1)
    if flags.json:
        print_json(adapter_document(report, base=flags.base_model))
        return 0 if report.ok else 1
    _print(adapter_lines(report, with_metadata=flags.metadata))
    if not report.ok:
        return 1
    adapter = read(path)
    _print(profile_lines(adapter, flags.base_model))
    return 0 if flags.base_model is None else _print(fit_lines(adapter, flags.base_model))


def _model_lines(flags: Flags) -> list[str]:
    from difflora.commands.show_model import layer_lines, model_lines
    from difflora.families.outlines import outline

    model = outline(flags.target)
    if flags.targets is not None:
        return layer_lines(model, targets=flags.targets, rank=flags.rank)
    return model_lines(model, rank=flags.rank)


def _print(lines: Sequence[str], *, code: int = 0) -> int:
    console = make_console()
    for line in lines:
        console.print(harmless(line))
    return code


def harmless(text: str) -> str:
    """Text out of files without characters that a terminal would obey; line breaks and tabs stay."""
    return "".join(
        "\ufffd" if unicodedata.category(letter) == "Cc" and letter not in "\n\t" else letter
        for letter in text
    )
