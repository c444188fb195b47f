"""Planes fitted to inverse depth, which on a plane is linear in the pixel's coordinates: the way to normals."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Mask = NDArray[np.bool_]
LocalSum = Callable[[Doubles], Doubles]

TOOLBOX_OFFSETS = (-9, -6, -3, -1, 0, 1, 3, 6, 9)
TOOLBOX_JUMP = 0.05
FEWEST_POINTS = 5


def blurred(inverse: Doubles, valid: Mask, sigma: float) -> Doubles:
    """Gaussian-weighted linear fit around every known pixel: a blur that keeps planes plane, at borders too."""
    points = 4 * np.pi * sigma**2  # as many as a box whose mean has the same variance

    def gaussian_sum(plane: Doubles) -> Doubles:
        blur = cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
        return np.asarray(blur, np.float64) * points

    _, _, centre, residual = _fits(inverse, valid, gaussian_sum)
    return np.where(np.isfinite(residual) & (centre > 0), centre, inverse)


def _fits(inverse: Doubles, valid: Mask, local_sum: LocalSum) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    """Least squares inverse = mean + slope_x (x - x0) + slope_y (y - y0) around every pixel (x0, y0).

    Returns the slopes, the value at the pixel, and the mean squared residual relative to that value (infinite where no
    plane can be fitted).
    """
    mask = valid.astype(np.float64)
    rows, columns = np.mgrid[: inverse.shape[0], : inverse.shape[1]].astype(np.float64)
    # centred columns, rows and values keep the moments small, and the variances below exact
    level = inverse[valid].mean() if valid.any() else 0.0
    value = np.where(valid, inverse - level, 0)
    count = local_sum(mask)
    safe = np.maximum(count, 1e-9)

    def mean(plane: Doubles) -> Doubles:
        return local_sum(plane) / safe

    x, y, w = mean(mask * columns), mean(mask * rows), mean(value)
    xx, yy = mean(mask * columns * columns) - x * x, mean(mask * rows * rows) - y * y
    xy = mean(mask * columns * rows) - x * y
    xw, yw, ww = mean(value * columns) - x * w, mean(value * rows) - y * w, mean(value * value) - w * w
    determinant = xx * yy - xy * xy
    fits = (count >= FEWEST_POINTS) & (determinant > 1e-3)
    determinant = np.where(fits, determinant, 1)
    slope_x, slope_y = (xw * yy - yw * xy) / determinant, (yw * xx - xw * xy) / determinant
    centre = w + level + slope_x * (columns - x) + slope_y * (rows - y)
    residual = np.maximum(ww - slope_x * xw - slope_y * yw, 0) * safe / np.maximum(safe - 3, 0.5)
    return slope_x, slope_y, centre, np.where(fits, residual / np.maximum(w + level, 1e-9) ** 2, np.inf)


def window_planes(inverse: Doubles, valid: Mask, window: int) -> Doubles:
    """The chosen plane of every pixel, (H, W, 3): inverse depth = [0] x + [1] y + [2], with x, y from the pixel."""

    def box_sum(plane: Doubles) -> Doubles:
        total = cv2.boxFilter(plane, cv2.CV_64F, (window, window), normalize=False, borderType=cv2.BORDER_CONSTANT)
        return np.asarray(total, np.float64)

    slope_x, slope_y, centre, residual = _fits(inverse, valid, box_sum)
    height, width = inverse.shape
    half = window // 2
    # the centred window stays unless another's error is under a third of its own; the floor settles ties in its favour
    best = (residual + ((centre - inverse) / np.where(valid, inverse, 1)) ** 2) / 9 + 1e-13
    planes = np.stack([slope_x, slope_y, centre], -1)
    planes[~np.isfinite(residual)] = np.nan
    for down in (-half, 0, half):
        for right in (-half, 0, half):
            if (down, right) == (0, 0) or abs(down) >= height or abs(right) >= width:
                continue
            here = _shifted(down, height), _shifted(right, width)
            there = _shifted(-down, height), _shifted(-right, width)
            at_pixel = centre[there] - right * slope_x[there] - down * slope_y[there]
            own = (at_pixel - inverse[here]) / np.where(valid[here], inverse[here], 1)
            score = residual[there] + own**2 + 4e-13
            better = score < best[here]
            best[here][better] = score[better]
            chosen = np.stack([slope_x[there], slope_y[there], at_pixel], -1)
            planes[here][better] = chosen[better]
    return planes


def _shifted(by: int, length: int) -> slice:
    """The part of an axis that has a neighbour `by` further on."""
    return slice(max(0, -by), length - max(0, by))


def pixels_to_rays(planes: Doubles, intrinsics: Floats) -> Doubles:
    """(a, b, c) of inverse depth = a X + b Y + c over rays (X, Y, 1), from planes over pixels."""
    height, width = planes.shape[:2]
    K = intrinsics.astype(np.float64)
    rows, columns = np.mgrid[:height, :width]
    constant = planes[..., 2] - planes[..., 0] * columns - planes[..., 1] * rows
    return np.stack([planes[..., 0], planes[..., 1], constant], -1) @ K


def toolbox_planes(inverse: Doubles, valid: Mask, rays: Floats) -> Doubles:
    """Minus the facing normal of every pixel, (H, W, 3), by the homogeneous fit of the NYU Depth v2 toolbox."""
    height, width = inverse.shape
    depth = np.divide(1.0, inverse, out=np.zeros_like(inverse), where=valid & (inverse > 0))
    reach = TOOLBOX_OFFSETS[-1]
    points = np.pad(depth[..., None] * rays, ((reach, reach), (reach, reach), (0, 0)))
    planes = np.full((height, width, 3), np.nan)
    for row in range(height):  # a row at a time: the neighbourhoods of a whole image would take gigabytes
        near = np.stack(
            [
                points[row + reach + down, reach + right : reach + right + width]
                for down in TOOLBOX_OFFSETS
                for right in TOOLBOX_OFFSETS
            ],
            axis=1,
        )
        z = depth[row][:, None]
        taken = (near[..., 2] > 0) & (np.abs(near[..., 2] - z) < TOOLBOX_JUMP * z)
        homogeneous = np.concatenate([near, np.ones_like(near[..., :1])], -1) * taken[..., None]
        plane = np.linalg.eigh(homogeneous.transpose(0, 2, 1) @ homogeneous)[1][:, :3, 0]
        away = np.sign(np.einsum("wc,wc->w", plane, rays[row]))[:, None]
        planes[row] = np.where(taken.sum(1)[:, None] >= FEWEST_POINTS, plane * away, np.nan)
    return planes
