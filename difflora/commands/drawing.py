"""What `generate`, `grid` and `demo` share: mixes from flags and tags, and images into numbered files."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from difflora.adapter import Stack
from difflora.commands.options import AdapterOptions
from difflora.errors import ConfigError
from difflora.files import atomic_write
from difflora.library import Library, resolve
from difflora.prompts import parse_tags
from difflora.recipe import Recipe, save_png

_NUMBERED = re.compile(r"(\d+)-.*\.png")


@dataclass(frozen=True, slots=True)
class Mixed:
    """A prompt without its tags, and the adapters of tags and flags together."""

    prompt: str
    stack: Stack


def mixed(options: AdapterOptions, library: Library | None, prompt: str) -> Mixed:
    """The adapters given by flags, then those of the prompt's tags.

    Raises ConfigError if there are tags but no folder to find them in, LibraryError on a name not in it.
    """
    entries = options.entries(library)
    if library is not None:
        found = resolve(prompt, library)
        return Mixed(found.prompt, Stack([*entries, *found.stack]))
    tagged = parse_tags(prompt)
    if tagged.tags:
        raise ConfigError(
            f"the prompt asks for {tagged.tags[0]}, and there is no folder to find it in: give --adapters"
        )
    return Mixed(tagged.text, Stack(entries))


def save_numbered(images: Sequence[Image.Image], folder: Path) -> list[Path]:
    """Writes images, each with its recipe, under the next free numbers: 00001-SEED.png; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for image in images:
        recipe = Recipe.from_json(image.info["difflora"])
        path = reserve(folder, f"{recipe.seed}.png")
        try:
            save_png(image, path, recipe)
        except BaseException:
            path.unlink(missing_ok=True)  # the number that was reserved
            raise
        files.append(path)
    return files


def write_picture(image: Image.Image, path: Path) -> None:
    """Writes a PNG without a recipe: all of it, or nothing."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    atomic_write(path, buffer.getvalue())


def reserve(folder: Path, ending: str) -> Path:
    """An empty new file NUMBER-ENDING in `folder`, so that two processes never take the same number."""
    numbers = [int(match[1]) for name in os.listdir(folder) if (match := _NUMBERED.fullmatch(name))]
    number = max(numbers, default=0) + 1
    while True:
        path = folder / f"{number:05}-{ending}"
        try:
            path.open("xb").close()
        except FileExistsError:
            number += 1
            continue
        return path
