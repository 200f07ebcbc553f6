"""Settings out of a picture: ours, exactly; A1111's and its kin's, as far as their text tells."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import ValidationError

from difflora import DiffloraError, Library, Request, read_parameters, read_recipe
from difflora.errors import LibraryError, RecipeError
from webui.work.desk import MixRow

MAX_BYTES, MAX_PIXELS = 64 << 20, 64_000_000


@dataclass(frozen=True, slots=True)
class Restored:
    """What a picture was made with; `base` is the short name of a base, "" if it is not known. `notes` say
    what could not be restored."""

    request: Request
    rows: tuple[MixRow, ...]
    base: str = ""
    notes: tuple[str, ...] = ()


def restored(picture: Path, library: Library) -> Restored:
    """The settings of a PNG; adapters by their hash, or by name where only that is known.

    Raises RecipeError if it has none, or is too large to be looked at.
    """
    size = picture.stat().st_size
    if size > MAX_BYTES:
        raise RecipeError(
            f"the picture has {size >> 20} MiB; settings are read from up to {MAX_BYTES >> 20}."
        )
    _require_small(picture)
    try:
        recipe = read_recipe(picture)
    except RecipeError:
        return _from_parameters(picture, library)
    rows: list[MixRow] = []
    notes: list[str] = []
    for one in recipe.adapters:
        try:
            name = library.by_hash(one.data_hash).meta.name
        except LibraryError:
            notes.append(f"the adapter {one.name!r} ({one.data_hash[:12]}) is not in the library")
            continue
        _add(rows, notes, name, unet=one.unet, text=one.text)
    request = recipe.request.model_copy(update={"seed": recipe.seed})
    return Restored(request, tuple(rows), recipe.base.name, tuple(notes))


def _from_parameters(picture: Path, library: Library) -> Restored:
    found = read_parameters(picture)
    rows: list[MixRow] = []
    notes: list[str] = []
    for tag in found.tags:
        try:
            name = library.find(found.lora_hashes.get(tag.name, tag.name)).name
        except DiffloraError:
            try:
                name = library.find(tag.name).name
            except DiffloraError:
                notes.append(f"the adapter {tag.name!r} is not in the library")
                continue
        _add(rows, notes, name, unet=tag.unet, text=tag.text)
    notes += [f"not used: {name} = {value}" for name, value in found.unused.items()]
    return Restored(found.request, tuple(rows), notes=tuple(notes))


def _add(rows: list[MixRow], notes: list[str], name: str, *, unet: float, text: float) -> None:
    """Adds a row, or a note if no mix can have such a weight."""
    try:
        rows.append(MixRow(name=name, unet=unet, text=None if text == unet else text))
    except ValidationError:
        notes.append(f"the weight of {name!r} is {unet:g}, more than a mix can have")


def _require_small(picture: Path) -> None:
    try:
        with Image.open(io.BytesIO(picture.read_bytes())) as image:
            pixels = image.width * image.height
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RecipeError(f"{picture.name} cannot be read as a picture: {error}") from error
    if pixels > MAX_PIXELS:
        raise RecipeError(f"{picture.name} has {pixels} pixels; settings are read from up to {MAX_PIXELS}.")
