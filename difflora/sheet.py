"""A contact sheet: pictures in rows and columns, with labels along both edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT = (250, 250, 248), (24, 24, 27), (110, 110, 116)
GAP = 6
MARGIN = 14

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Labels:
    """What is written along one edge: the name of the axis, and one text a row or column."""

    title: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Wrapped texts, fonts and pixel positions of a sheet."""

    heading: str
    title: str
    columns: tuple[str, ...]
    side_title: str
    side: tuple[str, ...]
    font: Font
    bold: Font
    cell: tuple[int, int]
    left: int
    title_top: int
    top: int

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """The upper left pixel of a picture."""
        return self.left + column * (self.cell[0] + GAP), self.top + row * (self.cell[1] + GAP)

    def size(self, rows: int) -> tuple[int, int]:
        right, bottom = self.corner(rows, len(self.columns))
        return right - GAP + MARGIN, bottom - GAP + MARGIN


def contact_sheet(
    pictures: Sequence[Sequence[Image.Image]],
    *,
    columns: Labels,
    rows: Labels | None = None,
    heading: str = "",
) -> Image.Image:
    """Rows of pictures as one RGB image, `heading` on top, labels above the columns and left of the rows.

    All pictures must have one size; labels are wrapped to it and never cut. Text grows with the pictures,
    from 13 px.
    """
    layout = _layout(pictures[0][0].size, columns=columns, rows=rows, heading=heading)
    sheet = Image.new("RGB", layout.size(len(pictures)), PAPER)
    for row, line in enumerate(pictures):
        for column, picture in enumerate(line):
            sheet.paste(picture, layout.corner(row, column))
    _write(ImageDraw.Draw(sheet), layout)
    return sheet


def _layout(cell: tuple[int, int], *, columns: Labels, rows: Labels | None, heading: str) -> _Layout:
    font, bold = _font(cell[0], 0.085), _font(cell[0], 0.1)
    side_title, side = ("", ()) if rows is None else _side(rows, font, cell)
    left = MARGIN + max((_text_size(text, font)[0] + GAP for text in (side_title, *side) if text), default=0)
    across = len(columns.values) * (cell[0] + GAP) - GAP
    head = _wrap(heading, bold, left + across - MARGIN)
    title = _wrap(columns.title, font, across)
    over = tuple(_wrap(text, font, cell[0]) for text in columns.values)
    title_top = MARGIN + _block(head, bold)
    labels = max(_block(text, font) for text in (*over, side_title))
    return _Layout(
        heading=head,
        title=title,
        columns=over,
        side_title=side_title,
        side=side,
        font=font,
        bold=bold,
        cell=cell,
        left=left,
        title_top=title_top,
        top=title_top + _block(title, font) + labels,
    )


def _write(pen: ImageDraw.ImageDraw, layout: _Layout) -> None:
    base = layout.top - GAP
    pen.multiline_text((MARGIN, MARGIN), layout.heading, INK, layout.bold)
    pen.multiline_text((layout.left, layout.title_top), layout.title, FAINT, layout.font)
    pen.multiline_text(
        (layout.left - GAP, base), layout.side_title, FAINT, layout.font, anchor="rd", align="right"
    )
    for column, text in enumerate(layout.columns):
        middle = layout.corner(0, column)[0] + layout.cell[0] // 2
        pen.multiline_text((middle, base), text, INK, layout.font, anchor="md", align="center")
    for row, text in enumerate(layout.side):
        middle = layout.corner(row, 0)[1] + layout.cell[1] // 2
        pen.multiline_text((layout.left - GAP, middle), text, INK, layout.font, anchor="rm", align="right")


def _side(rows: Labels, font: Font, cell: tuple[int, int]) -> tuple[str, tuple[str, ...]]:
    """The row labels, wrapped as narrowly as the height of a picture allows."""
    width = max(96, round(cell[0] * 0.8))
    while True:
        side = tuple(_wrap(text, font, width) for text in rows.values)
        if all(_text_size(text, font)[1] <= cell[1] for text in side) or width > 40 * cell[0]:
            return _wrap(rows.title, font, width), side
        width = round(width * 1.25)


def _font(width: int, share: float) -> Font:
    return ImageFont.load_default(max(13, round(width * share * min(1.0, 256 / width) ** 0.5)))


def _text_size(text: str, font: Font) -> tuple[int, int]:
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font)
    return round(box[2] - box[0]), round(box[3])


def _block(text: str, font: Font) -> int:
    """Height of a text with the gap below it; none for no text."""
    return _text_size(text, font)[1] + GAP if text else 0


def _wrap(text: str, font: Font, width: int) -> str:
    """`text` broken into lines of at most `width` pixels, at spaces where there are any."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        pieces = _pieces(word, font, width)
        lines = [*lines[:-1], *([lines[-1]] if lines[-1] else []), *pieces]
    return "\n".join(lines)


def _pieces(word: str, font: Font, width: int) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces
