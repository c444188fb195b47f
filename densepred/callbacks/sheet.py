"""A sheet of pictures: a row a sample, a column a picture, with captions, names and a legend."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Key = tuple[str, str]

_CELL = 320
_GAP = 6
_MARGIN = 16
_PAPER: Colour = (255, 255, 255)
_INK: Colour = (32, 33, 36)
_PALE: Colour = (95, 99, 104)
_LINE: Colour = (218, 220, 224)

_TITLE, _HEADING, _TEXT = 20, 18, 15


@dataclass(frozen=True)
class Row:
    """One sample's pictures.

    Attributes:
        name: What stands above the row.
        pictures: Pictures (H, W, 3), uint8, all of one size, by heading and caption; neighbours of the same heading
            stand under it together.
    """

    name: str
    pictures: dict[Key, np.ndarray]


@dataclass(frozen=True)
class Legend:
    """What the colours of one heading mean.

    Attributes:
        heading: Whose colours.
        entries: Name and colour of each.
    """

    heading: str
    entries: list[tuple[str, Colour]] = field(default_factory=list)


def draw_sheet(rows: Sequence[Row], title: str = "", legends: Sequence[Legend] = (), across: int = 1) -> Image.Image:
    """Draws rows of pictures on white paper.

    Small pictures are enlarged by a whole number, so that their pixels stay square and sharp; large ones are reduced.
    A row that lacks a column of another row leaves it empty.

    Args:
        rows: At least one sample.
        title: What stands above everything.
        legends: What stands below everything.
        across: How many rows stand side by side.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row.pictures))
    cells = [{key: _fit(picture) for key, picture in row.pictures.items()} for row in rows]
    widths = {key: max(row[key].width for row in cells if key in row) for key in columns}
    lefts, block = {}, 0
    for before, key in zip([None, *columns], columns, strict=False):
        # a wider gap sets what belongs together apart
        block += 0 if before is None else _GAP if before[0] == key[0] else 4 * _GAP
        lefts[key], block = block, block + widths[key]
    starts = [_MARGIN + place * (block + 8 * _GAP) for place in range(min(across, len(rows)))]
    lines = [range(first, min(first + across, len(rows))) for first in range(0, len(rows), across)]
    heights = [max(cell.height for index in line for cell in cells[index].values()) for line in lines]
    head = (_TITLE + 3 * _GAP if title else 0) + _HEADING + _TEXT + 3 * _GAP
    name = _TEXT + 4 * _GAP
    width = starts[-1] + block + _MARGIN
    keys = [line for legend in legends for line in _legend_lines(legend, width)]
    foot = len(keys) * (_TEXT + 2 * _GAP) + (3 * _GAP if keys else 0)
    sheet = Image.new("RGB", (width, _MARGIN + head + sum(heights) + len(lines) * name + foot + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    if title:
        draw.text((_MARGIN, top), _short(title, _TITLE, width - 2 * _MARGIN), _INK, _font(_TITLE))
        top += _TITLE + 3 * _GAP
    for start in starts:
        _draw_headings(draw, columns, {key: start + left for key, left in lefts.items()}, widths, top)
    top = _MARGIN + head
    for line, height in zip(lines, heights, strict=True):
        for start, index in zip(starts, line, strict=False):
            text = _short(rows[index].name, _TEXT, block, keep_end=True)
            # nearer to its own row than to the one above
            draw.text((start, top + 2 * _GAP), text, _PALE, _font(_TEXT))
            for key, cell in cells[index].items():
                sheet.paste(cell, (start + lefts[key], top + name))
        top += name + height
    top += 3 * _GAP
    for key_line in keys:
        _draw_legend_line(draw, key_line, top)
        top += _TEXT + 2 * _GAP
    return sheet


def _fit(picture: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture))
    scale = min(_CELL / image.width, 1.25 * _CELL / image.height)
    if scale >= 1:
        size = (image.width * int(scale), image.height * int(scale))
        return image.resize(size, Image.Resampling.NEAREST)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR)


def _draw_headings(
    draw: ImageDraw.ImageDraw, columns: list[Key], lefts: dict[Key, int], widths: dict[Key, int], top: int
) -> None:
    for heading in dict.fromkeys(heading for heading, _ in columns):
        mine = [key for key in columns if key[0] == heading]
        left, right = lefts[mine[0]], lefts[mine[-1]] + widths[mine[-1]]
        draw.text((left, top), _short(heading, _HEADING, right - left), _INK, _font(_HEADING))
        line = top + _HEADING + _GAP
        draw.line((left, line, right - 1, line), _LINE)
    for key in columns:
        text = _short(key[1], _TEXT, widths[key])
        draw.text((lefts[key], top + _HEADING + 2 * _GAP), text, _PALE, _font(_TEXT))


@dataclass(frozen=True)
class _Placed:
    left: float
    text: str
    colour: Colour | None


def _legend_lines(legend: Legend, width: int) -> list[list[_Placed]]:
    """The legend broken into lines that fit the width."""
    font = _font(_TEXT)
    start = _MARGIN + font.getlength(legend.heading) + 3 * _GAP
    lines, left = [[_Placed(_MARGIN, legend.heading, None)]], start
    for name, colour in legend.entries:
        advance = _TEXT + _GAP + font.getlength(name) + 3 * _GAP
        if left + advance > width - _MARGIN and left > start:
            lines.append([])
            left = start
        lines[-1].append(_Placed(left, name, colour))
        left += advance
    return lines


def _draw_legend_line(draw: ImageDraw.ImageDraw, line: list[_Placed], top: int) -> None:
    for placed in line:
        left = placed.left
        if placed.colour is not None:
            draw.rectangle((left, top + 2, left + _TEXT - 1, top + _TEXT + 1), placed.colour, _LINE)
            left += _TEXT + _GAP
        draw.text((left, top), placed.text, _INK if placed.colour is None else _PALE, _font(_TEXT))


def _short(text: str, size: int, width: int, keep_end: bool = False) -> str:
    """The text, cut with an ellipsis where it is wider than the room for it."""
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[1:] if keep_end else text[:-1]
    return "..." + text if keep_end else text + "..."


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow's own: the same everywhere, and no file to look for
    return ImageFont.load_default(size)
