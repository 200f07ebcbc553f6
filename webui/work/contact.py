"""A contact sheet over weights of a mix, or over other fields, drawn in as few batches as can be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from difflora import Axis, Request, grid
from webui.work.desk import FROZEN, Desk, Done, Mixed

SHEET = "sheet.png"
MAX_CELLS = 100


class SheetAxis(BaseModel):
    """An axis of the sheet: see difflora's Axis."""

    model_config = FROZEN

    name: Literal["weight", "adapter", "seed", "steps", "guidance", "prompt"] = "weight"
    values: tuple[float | int | str | None, ...] = Field(min_length=1, max_length=MAX_CELLS)
    adapter: str | None = None


class Contact(Mixed):
    """What to draw in every cell, and what changes along the edges. The prompt may hold `<lora:name:weight>`
    tags, whose adapters join the mix."""

    base: str
    request: Request
    axes: tuple[SheetAxis, ...] = Field(min_length=1, max_length=2)


def cell_name(row: int, column: int) -> str:
    """The file of one of the pictures."""
    return f"cell-{row:02}-{column:02}.png"


def contact(wanted: Contact, desk: Desk) -> Done:
    """Draws the sheet and each of its cells."""
    desk.say("loading the base and the adapters")
    model = desk.bases.get(wanted.base)
    stack, request = desk.mixed(wanted.mix, wanted.request)
    # An axis names a row of the mix, a stack's adapters have the shortest names that find them.
    names = {row.name: desk.library().get(row.name).meta.name for row in wanted.mix if row.on}
    desk.note = "drawing, step"
    sheet = grid(
        model,
        request,
        stack=stack,
        axes=[_axis(axis, names) for axis in wanted.axes],
        progress=desk.progress,
        watch=desk.watch(wanted.base),
    )
    sheet.image.save(desk.folder / SHEET)
    cells = [
        desk.keep(image, cell_name(row, column))
        for row, images in enumerate(sheet.cells)
        for column, image in enumerate(images)
    ]
    return Done((SHEET, *cells), json.dumps({"columns": len(sheet.cells[0]), "rows": len(sheet.cells)}))


def _axis(axis: SheetAxis, names: Mapping[Any, str]) -> Axis:
    known = names if axis.name == "adapter" else {}
    values = tuple(known.get(value, value) for value in axis.values)
    return Axis(axis.name, values, names.get(axis.adapter, axis.adapter))
