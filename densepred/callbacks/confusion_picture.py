"""A confusion matrix as a picture, for dashboards that show pictures only."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_INK, _PALE, _PAPER = (32, 33, 36), (95, 99, 104), (255, 255, 255)
_RIGHT, _WRONG = (46, 158, 107), (200, 65, 63)
_TEXT, _GAP = 14, 8


def confusion_picture(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Image.Image:
    """Shares of each true class's pixels: rows are true classes, columns what they were taken for, per cent in cells.

    The diagonal is green, what is wrong is red; the stronger, the more.

    Args:
        counts: Pixels, a row a true class.
        names: The classes.
    """
    font = ImageFont.load_default(_TEXT)
    cell = max(14, min(40, 900 // len(names)))
    room = 2 * _GAP + int(max(font.getlength(name) for name in names))
    left, top = room + _TEXT + _GAP, room + _TEXT + _GAP
    side = cell * len(names)
    picture = Image.new("RGB", (left + side + 2 * _GAP, top + side + 2 * _GAP), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((left, _GAP // 2), "predicted", _PALE, font)
    picture.paste(_turned("true", font, _PALE), (_GAP // 2, top))
    values = np.asarray(counts, dtype=np.float64)
    shares = values / np.maximum(values.sum(1, keepdims=True), 1)
    for i, name in enumerate(names):
        middle = cell * i + cell // 2
        draw.text((left - _GAP, top + middle), name, _INK, font, anchor="rm")
        label = _turned(name, font, _INK)
        picture.paste(label, (left + middle - label.width // 2, top - _GAP // 2 - label.height))
        for j, share in enumerate(shares[i]):
            _draw_cell(draw, (left + cell * j, top + cell * i), cell, float(share), _RIGHT if i == j else _WRONG)
    return picture


def _draw_cell(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], cell: int, share: float, colour: tuple[int, int, int]
) -> None:
    x, y = corner
    weight = 0.04 + 0.96 * share
    red, green, blue = (round(255 + weight * (part - 255)) for part in colour)
    draw.rectangle((x, y, x + cell - 2, y + cell - 2), (red, green, blue))
    if cell >= 26 and share >= 0.005:
        ink = _PAPER if share > 0.6 else _INK
        draw.text(
            (x + cell // 2, y + cell // 2), f"{100 * share:.0f}", ink, ImageFont.load_default(_TEXT - 2), anchor="mm"
        )


def _turned(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, ink: tuple[int, int, int]) -> Image.Image:
    """A word that reads upward."""
    drawn = Image.new("RGB", (max(1, int(font.getlength(text)) + 1), _TEXT + 4), _PAPER)
    ImageDraw.Draw(drawn).text((0, 0), text, ink, font)
    return drawn.transpose(Image.Transpose.ROTATE_90)
