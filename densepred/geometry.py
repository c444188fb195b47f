"""Pinhole geometry on numpy arrays: intrinsics under crops, resizes and flips, points and normals from depth.

Everywhere: the camera frame is x right, y down, z forward; depth is metres along z; pixel centres are integers, so that
an image of width W spans x from -0.5 to W - 0.5; sizes are (height, width); missing depth is what `valid_depth` says.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from densepred.errors import ConfigurationError
from densepred.plane_fit import TOOLBOX_OFFSETS, blurred, pixels_to_rays, toolbox_planes, window_planes
from densepred.sample import valid_depth

Floats = NDArray[np.float32]
NormalsMethod = Literal["window", "toolbox"]


def intrinsics_matrix(fx: float, fy: float, cx: float, cy: float) -> Floats:
    """The matrix K that takes a point (x, y, z) to its pixel: (fx x / z + cx, fy y / z + cy).

    Shape:
        returns: (3, 3), float32.

    Example:
        >>> intrinsics_matrix(500, 510, 319.5, 239.5)[0].tolist()
        [500.0, 0.0, 319.5]
    """
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)


def crop_intrinsics(intrinsics: Floats, top: int, left: int) -> Floats:
    """K after `top` rows and `left` columns are cut off."""
    return _moved(intrinsics, -left, -top)


def pad_intrinsics(intrinsics: Floats, top: int, left: int) -> Floats:
    """K after `top` rows and `left` columns are put before the image (right and bottom change nothing)."""
    return _moved(intrinsics, left, top)


def _moved(intrinsics: Floats, right: float, down: float) -> Floats:
    moved = intrinsics.astype(np.float32)
    moved[0, 2] += right
    moved[1, 2] += down
    return moved


def resize_intrinsics(intrinsics: Floats, size: tuple[int, int], new_size: tuple[int, int]) -> Floats:
    """K after the image is resized: f' = s f and c' = (c + 0.5) s - 0.5, along each axis.

    Example:
        >>> resize_intrinsics(intrinsics_matrix(500, 500, 319.5, 239.5), (480, 640), (240, 320))[:2, 2].tolist()
        [159.5, 119.5]
    """
    resized = intrinsics.astype(np.float64)
    scales = np.array([new_size[1] / size[1], new_size[0] / size[0]])
    resized[:2, 2] += 0.5
    resized[:2] *= scales[:, None]
    resized[:2, 2] -= 0.5
    return resized.astype(np.float32)


def flip_intrinsics(intrinsics: Floats, width: int) -> Floats:
    """K after the image is flipped left-right: cx' = W - 1 - cx, and the skew changes its sign."""
    flipped = intrinsics.astype(np.float32)
    flipped[0, 1] *= -1
    flipped[0, 2] = width - 1 - flipped[0, 2]
    return flipped


def pixel_rays(intrinsics: Floats, size: tuple[int, int]) -> Floats:
    """The direction of every pixel, with z = 1: a point at depth Z is Z times its ray.

    Shape:
        returns: (H, W, 3), float32.
    """
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = np.stack([columns, rows, np.ones_like(rows)], -1).astype(np.float64)
    return (pixels @ np.linalg.inv(intrinsics.astype(np.float64)).T).astype(np.float32)


def unproject(depth: Floats, intrinsics: Floats) -> Floats:
    """Points in the camera frame, metres. Missing depth gives the zero point.

    Shape:
        depth: (H, W).
        returns: (H, W, 3), float32.

    Example:
        >>> unproject(np.full((2, 3), 4.0, np.float32), intrinsics_matrix(2, 2, 1, 0))[1, 2].tolist()
        [2.0, 2.0, 4.0]
    """
    _check_depth(depth)
    known = np.where(valid_depth(depth), depth, 0).astype(np.float32)
    return known[..., None] * pixel_rays(intrinsics, (depth.shape[0], depth.shape[1]))


def project(points: Floats, intrinsics: Floats) -> Floats:
    """Pixel coordinates (x, y) of points in the camera frame; NaN for points that are not in front of the camera.

    Shape:
        points: (..., 3).
        returns: (..., 2), float32.
    """
    homogeneous = points.astype(np.float64) @ intrinsics.astype(np.float64).T
    ahead = homogeneous[..., 2:] > 0
    return np.where(ahead, homogeneous[..., :2] / np.where(ahead, homogeneous[..., 2:], 1), np.nan).astype(np.float32)


def normals_from_depth(
    depth: Floats, intrinsics: Floats, window: int = 7, blur: float = 0.0, method: NormalsMethod = "window"
) -> Floats:
    """Unit surface normals from a depth map, by fitting a plane around every pixel.

    A normal faces the camera: its dot product with the pixel's ray is negative.

    Method "window": on a plane, inverse depth is linear in the pixel's coordinates, so its least-squares fit over a
    square window needs only box sums of moments, whatever the window's size. A window that straddles a depth edge or a
    crease fits badly; each pixel therefore takes, of the windows centred on it and shifted by half a window in eight
    directions, the one that explains its surroundings and itself best, and the centred one unless another is clearly
    better. Missing pixels don't take part.

    Method "toolbox": the NYU Depth v2 toolbox's; points at offsets {0, 1, 3, 6, 9} in both directions whose depth
    differs by less than 5 %, homogeneous fit by the smallest eigenvector. Slow; here to compare with published labels.

    Args:
        depth: Metres.
        intrinsics: K of this very depth map.
        window: Side of the window in pixels, odd (method "window").
        blur: Sigma in pixels of a Gaussian blur of the inverse depth before the fit (one that keeps planes plane).
            8-bit or stepped depth wants one: NYU v2 from an 8-bit copy about 3, with a window of 21.
        method: "window" or "toolbox".

    Shape:
        depth: (H, W).
        returns: (H, W, 3), float32; the zero vector where depth is missing or too few neighbours are known.

    Raises:
        ConfigurationError: If the window is even or below 3, the blur negative, or the depth not (H, W).

    Reference:
        Silberman, Hoiem, Kohli, Fergus. Indoor Segmentation and Support Inference from RGBD Images. ECCV 2012 (the
        toolbox's method). Choosing among shifted windows: Kuwahara, Hachimura, Eiho, Kinoshita. Processing of
        RI-angiocardiographic images. 1976.

    Example:
        >>> wall = np.full((9, 9), 2.0, np.float32)
        >>> abs(normals_from_depth(wall, intrinsics_matrix(10, 10, 4, 4))[4, 4]).round(6).tolist()
        [0.0, 0.0, 1.0]
    """
    _check_depth(depth)
    normals_record(window, blur, method)  # refuses what cannot be used
    valid = valid_depth(depth)
    inverse = np.zeros(depth.shape, np.float64)
    np.divide(1.0, depth, out=inverse, where=valid, dtype=np.float64)
    if blur:
        inverse = blurred(inverse, valid, blur)
    if method == "toolbox":
        planes = toolbox_planes(inverse, valid, pixel_rays(intrinsics, (depth.shape[0], depth.shape[1])))
    else:
        planes = pixels_to_rays(window_planes(inverse, valid, window), intrinsics)
    length = np.linalg.norm(planes, axis=-1)
    known = valid & np.isfinite(length) & (length > 0)
    normals = np.zeros((*depth.shape, 3), np.float32)
    # n . ray = c / Z with c < 0 for a plane that faces the camera: the plane's gradient, negated
    normals[known] = -planes[known] / length[known][:, None]
    return normals


def normals_record(window: int = 7, blur: float = 0.0, method: NormalsMethod = "window") -> dict[str, Any]:
    """How `normals_from_depth` would make normals, as plain values to keep beside them.

    Raises:
        ConfigurationError: If the options cannot be used.

    Example:
        >>> normals_record(window=21, blur=3.0)
        {'source': 'depth', 'method': 'window', 'window': 21, 'blur': 3.0}
    """
    if method not in ("window", "toolbox"):
        raise ConfigurationError(f"normals from depth: method must be 'window' or 'toolbox', got {method!r}.")
    if window < 3 or window % 2 == 0:
        raise ConfigurationError(f"normals from depth: window must be odd and at least 3 pixels, got {window}.")
    if blur < 0:
        raise ConfigurationError(f"normals from depth: blur (pixels) must be 0 or above, got {blur}.")
    side = window if method == "window" else 2 * TOOLBOX_OFFSETS[-1] + 1
    return {"source": "depth", "method": method, "window": side, "blur": float(blur)}


def _check_depth(depth: Floats) -> None:
    if depth.ndim != 2:
        raise ConfigurationError(f"depth must be an array (height, width) of metres, got shape {depth.shape}.")
