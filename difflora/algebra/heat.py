"""A picture of one number a module: blocks of the model downwards, sorts of layers across."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean

from PIL import Image, ImageDraw, ImageFont

from difflora.algebra.blocks import block_of
from difflora.sheet import FAINT, INK, PAPER

_CELL = (58, 24)
_MARGIN = 14
_HOT, _COLD, _MIDDLE = (178, 52, 38), (38, 84, 168), (244, 242, 236)

# The first that is found in a path, in the order of the columns.
_SORTS = (
    ("attn1.q", r"attn1\.to_q|self_attn\.q_proj|\.attn\.to_q"),
    ("attn1.k", r"attn1\.to_k|self_attn\.k_proj|\.attn\.to_k"),
    ("attn1.v", r"attn1\.to_v|self_attn\.v_proj|\.attn\.to_v"),
    ("attn1.o", r"attn1\.to_out|self_attn\.out_proj|\.attn\.to_out"),
    ("attn2.q", r"attn2\.to_q|attn\.add_q_proj"),
    ("attn2.k", r"attn2\.to_k|attn\.add_k_proj"),
    ("attn2.v", r"attn2\.to_v|attn\.add_v_proj"),
    ("attn2.o", r"attn2\.to_out|attn\.to_add_out"),
    ("ff in", r"ff\w*\.net\.0|mlp\.fc1|proj_mlp"),
    ("ff out", r"ff\w*\.net\.2|mlp\.fc2"),
    ("proj", r"proj_in|proj_out"),
    ("conv", r"conv"),
    ("norm", r"norm"),
    ("other", r""),
)
_ORDER = ("TE", "IN", "MID", "OUT", "BLOCK", "SINGLE", "OTHER")


def heat_map(values: Mapping[str, float], *, title: str = "", limit: float | None = None) -> Image.Image:
    """The mean of `values` (path -> number) in every block and sort of layer, as an RGB image with numbers.

    Red is above 0 and blue below, full colour at `limit` or at the largest magnitude there is. Save it as a
    PNG with `.save(path)`.
    """
    cells = _cells(values)
    rows = sorted({row for row, _ in cells}, key=_row_key)
    columns = [name for name, _ in _SORTS if any(column == name for _, column in cells)]
    top = limit or max((abs(value) for value in cells.values()), default=1.0) or 1.0
    left, head = _MARGIN + 72, _MARGIN + 44
    size = (left + len(columns) * _CELL[0] + _MARGIN, head + len(rows) * _CELL[1] + _MARGIN)
    image = Image.new("RGB", (max(size[0], 240), size[1]), PAPER)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    pen.text((_MARGIN, _MARGIN - 4), title, INK, font)
    for x, name in enumerate(columns):
        pen.text((left + (x + 0.5) * _CELL[0], head - 6), name, FAINT, font, anchor="mb")
    for y, name in enumerate(rows):
        pen.text((left - 8, head + (y + 0.5) * _CELL[1]), name, FAINT, font, anchor="rm")
    for (row, column), value in cells.items():
        x, y = left + columns.index(column) * _CELL[0], head + rows.index(row) * _CELL[1]
        share = max(-1.0, min(1.0, value / top))
        pen.rectangle((x, y, x + _CELL[0] - 2, y + _CELL[1] - 2), fill=_colour(share))
        middle = (x + _CELL[0] / 2 - 1, y + _CELL[1] / 2 - 1)
        pen.text(middle, f"{value:.2g}", PAPER if abs(share) > 0.6 else INK, font, anchor="mm")
    return image


def _cells(values: Mapping[str, float]) -> dict[tuple[str, str], float]:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for path, value in values.items():
        sort = next(name for name, pattern in _SORTS if re.search(pattern, path))
        found[block_of(path), sort].append(value)
    return {cell: fmean(members) for cell, members in found.items()}


def _row_key(block: str) -> tuple[int, str]:
    return next(index for index, start in enumerate(_ORDER) if block.startswith(start)), block


def _colour(share: float) -> tuple[int, int, int]:
    end = _HOT if share >= 0 else _COLD
    red, green, blue = (round(m + (e - m) * abs(share)) for m, e in zip(_MIDDLE, end, strict=True))
    return red, green, blue
