"""The U-Net's weight map: borders between touching cells count more than anything else."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from densepred.sample import valid_segmentation

REACH = 6
"""In sigmas: a border further away adds less than a ten millionth of the peak."""


def border_weights(
    labels: np.ndarray, cell: int = 1, peak: float = 10.0, sigma: float = 5.0, balance: bool = True
) -> NDArray[np.float32]:
    """How much each pixel counts in the loss: w(x) = w_c(x) + peak * exp(-(d1 + d2)^2 / (2 sigma^2)).

    d1 and d2 are the distances, in pixels between centres, to the nearest and the second nearest cell, a cell being a
    connected piece (by edges, not corners) of the class `cell`. The second term is that of pixels outside of cells, and
    of images with two cells at least. w_c makes up for the classes' frequencies: all classes of the image have the same
    sum, and the mean is 1.

    Args:
        labels: Class indices.
        cell: The class whose pieces are to be kept apart.
        peak: Weight between two cells that touch; the paper's w0.
        sigma: How far, in pixels, borders reach.
        balance: Whether to add w_c; otherwise 1.

    Shape:
        labels: (H, W); returns (H, W).

    Missing pixels weigh 0.

    Reference:
        Ronneberger, Fischer, Brox. U-Net. MICCAI 2015. arXiv:1505.04597, equation 2. How w_c is scaled is not said
        there.

    Example:
        >>> seam = np.array([[1, 1, 0, 1, 1]], np.uint8)
        >>> print(border_weights(seam, balance=False).round(2))
        [[ 1.    1.   10.23  1.    1.  ]]
    """
    known = valid_segmentation(labels)
    weights = _class_balance(labels, known) if balance else np.ones(labels.shape, np.float32)
    inside = labels == cell
    nearest, second = _two_nearest(inside, reach=math.ceil(REACH * sigma))
    border = peak * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return np.where(known, weights + np.where(inside, 0, border), 0).astype(np.float32)


def _two_nearest(inside: NDArray[np.bool_], reach: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distances to the nearest and the second nearest piece; infinite where none is within reach."""
    pieces, numbers, boxes, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=4)
    nearest = np.full(inside.shape, np.inf, np.float32)
    second = nearest.copy()
    for piece in range(1, pieces):
        left, top, width, height = (int(side) for side in boxes[piece][:4])
        # the rest of the picture is out of reach: a slice of a hundred cells takes a tenth of the time
        around = np.s_[max(0, top - reach) : top + height + reach, max(0, left - reach) : left + width + reach]
        other = (numbers[around] != piece).astype(np.uint8)
        away = cv2.distanceTransform(other, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        second[around] = np.minimum(second[around], np.maximum(nearest[around], away))
        nearest[around] = np.minimum(nearest[around], away)
    return nearest, second


def _class_balance(labels: np.ndarray, known: NDArray[np.bool_]) -> NDArray[np.float32]:
    classes, places, counts = np.unique(labels[known], return_inverse=True, return_counts=True)
    weights = np.zeros(labels.shape, np.float32)
    weights[known] = (known.sum() / (len(classes) * counts))[places.ravel()]
    return weights
