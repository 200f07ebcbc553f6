"""The sheet of a blend: which weights stand in which cell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from difflora import Request
from difflora.errors import ConfigError
from webui.work.contact import Contact, SheetAxis
from webui.work.desk import LIMIT, MixRow

START = "0 - 1 [5]"
MAX_STEPS = 12
AT_ONCE = 25
_RANGE = re.compile(r"\s*(-?[\d.]+)\s*-\s*(-?[\d.]+)\s*\[\s*(\d+)\s*\]\s*")


@dataclass(frozen=True, slots=True)
class Sheet:
    """The sheet on show: the adapters of its axes, their values, and the mix that it was drawn with."""

    across: str
    columns: tuple[float, ...]
    down: str
    rows: tuple[float, ...]
    mix: tuple[MixRow, ...]

    def weights(self, cell: int) -> tuple[MixRow, ...]:
        """The mix of a cell, counted row by row."""
        row, column = divmod(cell, len(self.columns))
        dialled = {self.across: self.columns[column]}
        if self.down:
            dialled[self.down] = self.rows[row]
        return tuple(_dialled(one, dialled[one.name]) if one.name in dialled else one for one in self.mix)


def _dialled(row: MixRow, value: float) -> MixRow:
    """As `grid` does: on the text encoders in the proportion that it had."""
    text = value * row.text / row.unet if row.text is not None and row.unet else None
    return row.model_copy(update={"unet": value, "text": text})


def steps_of(text: str) -> tuple[float, ...]:
    """Weights from `0, 0.5, 1` or `0 - 1 [5]`. Raises ConfigError that says what is expected."""
    found = _RANGE.fullmatch(text)
    try:
        if found:
            first, last, count = float(found[1]), float(found[2]), int(found[3])
            values = [first + (last - first) * n / max(1, count - 1) for n in range(count)]
        else:
            values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not 1 <= len(values) <= MAX_STEPS or not all(abs(value) <= LIMIT for value in values):
        raise ConfigError(
            f"{text!r}: expected up to {MAX_STEPS} weights between -{LIMIT:g} and {LIMIT:g}, as in "
            "`0, 0.5, 1`, or a range with a number of steps, as in `0 - 1 [5]`."
        )
    return tuple(round(value, 4) for value in values)


def sheet_of(rows: Sequence[MixRow], across: str | None, columns: str, down: str | None, steps: str) -> Sheet:
    """The sheet that the form asks for. Raises ConfigError if its axes are not two adapters of the mix."""
    active = tuple(row for row in rows if row.on)
    names = [row.name for row in active]
    if not 1 <= len(active) <= 4:
        raise ConfigError(f"a blend has two to four adapters, the mix has {len(active)}: add or remove some.")
    across = across if across in names else names[0]
    down = down if down in names and down != across else next((n for n in names if n != across), "")
    return Sheet(across, steps_of(columns), down, steps_of(steps) if down else (0.0,), active)


def sheet_drawn(drawn: Contact) -> Sheet | None:
    """The sheet that a job draws; None if its axes are something else than weights of its mix."""
    names = {row.name for row in drawn.mix}
    if any(axis.name != "weight" or axis.adapter not in names for axis in drawn.axes):
        return None
    axes = [(str(axis.adapter), tuple(float(value or 0.0) for value in axis.values)) for axis in drawn.axes]
    (across, columns), (down, rows) = [*axes, ("", (0.0,))][:2]
    return Sheet(across, columns, down, rows, drawn.mix)


def request_of(prompt: str, *, seed: str, steps: int, guidance: str, **more: Any) -> Request:
    """What the form asks for of every cell. Raises ConfigError naming fields that cannot be used."""
    given: dict[str, Any] = {"seed": seed or 0, **({"guidance": guidance} if guidance else {}), **more}
    return Request(prompt=prompt, steps=steps, **given)


def contact_of(
    base: str, sheet: Sheet, prompt: str, *, seed: str, steps: int, guidance: str, at_once: int = AT_ONCE
) -> Contact:
    """The job that draws a sheet, `at_once` of its cells in a batch. Raises ConfigError naming fields that
    cannot be used."""
    cells = len(sheet.columns) * len(sheet.rows)
    request = request_of(prompt, seed=seed, steps=steps, guidance=guidance, batch=min(cells, at_once))
    axes = [SheetAxis(name="weight", values=sheet.columns, adapter=sheet.across)]
    if sheet.down:
        axes.append(SheetAxis(name="weight", values=sheet.rows, adapter=sheet.down))
    return Contact(base=base, request=request, mix=sheet.mix, axes=tuple(axes))
