"""Colours for labels and numbers."""

from functools import lru_cache
from typing import Literal

MISSING_COLOUR = (128, 128, 128)
"""The grey in which missing depth, normals and values are drawn."""

ColourMap = Literal["viridis", "inferno"]


def voc_palette(classes: int) -> list[list[int]]:
    """The colours of Pascal VOC's label files, by the rule that makes them.

    The bits of the label are dealt to red, green, blue in turn, the first ones to the highest bits. So neighbouring
    labels differ much, and label 0 is black.

    Reference:
        `VOClabelcolormap.m` in the development kit of the Pascal VOC challenge, 2012.

    Example:
        >>> voc_palette(3), voc_palette(256)[255]
        ([[0, 0, 0], [128, 0, 0], [0, 128, 0]], [224, 224, 192])
    """
    return [
        [sum((label >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
        for label in range(classes)
    ]


VOID_COLOUR = (224, 224, 192)
"""The cream in which Pascal VOC draws missing labels: its colour of 255."""

CAMVID_PALETTE = [
    [128, 128, 128],
    [128, 0, 0],
    [192, 192, 128],
    [128, 64, 128],
    [60, 40, 222],
    [128, 128, 0],
    [192, 128, 128],
    [64, 64, 128],
    [64, 0, 128],
    [64, 64, 0],
    [0, 128, 192],
]
"""The colours in which SegNet draws CamVid's 11 classes, sky to bicyclist."""


@lru_cache
def colour_table(name: ColourMap) -> list[list[int]]:
    """256 colours (red, green, blue) of a perceptually uniform map, dark to bright.

    Example:
        >>> colour_table("viridis")[0]
        [68, 1, 84]
    """
    import cv2
    import numpy as np

    maps = {"viridis": cv2.COLORMAP_VIRIDIS, "inferno": cv2.COLORMAP_INFERNO}
    blue_green_red = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], maps[name])
    table: list[list[int]] = blue_green_red[:, 0, ::-1].tolist()
    return table
