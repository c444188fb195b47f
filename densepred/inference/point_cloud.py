"""Depth as a coloured point cloud: a .ply file that MeshLab, CloudCompare, Blender and Open3D open."""

from pathlib import Path

import numpy as np

from densepred.data.atomic import whole_file
from densepred.errors import ConfigurationError, DataError
from densepred.geometry import unproject
from densepred.inference.cameras import UNKNOWN_CAMERA
from densepred.inference.points_file import points_ply
from densepred.inference.prediction import Prediction
from densepred.sample import Kind, valid_depth


def write_ply(
    path: str | Path,
    depth: np.ndarray,
    intrinsics: np.ndarray,
    image: np.ndarray,
    normals: np.ndarray | None = None,
) -> int:
    """Writes a depth map as a coloured point cloud, whole or not at all; returns the number of points.

    The points stand in the camera's frame, in metres: x right, y down, z forward. Missing depth makes no point.

    Args:
        path: The file, .ply (binary, little-endian).
        depth: Metres along the optical axis.
        intrinsics: K of this very depth map, see `resize_intrinsics` where it was measured at another size.
        image: The colours.
        normals: Unit vectors in the same frame; the zero vector where they are missing.

    Shape:
        depth: (H, W). intrinsics: (3, 3). image: (H, W, 3), uint8 RGB. normals: (H, W, 3).

    Raises:
        DataError: If the sizes differ, no depth is known, or the intrinsics are no camera's.

    Example:
        >>> from tempfile import mkdtemp
        >>> wall = np.full((3, 4), 2.0, np.float32)
        >>> from densepred.inference.cameras import default_intrinsics
        >>> path = Path(mkdtemp()) / "wall.ply"
        >>> write_ply(path, wall, default_intrinsics((3, 4)), np.zeros((3, 4, 3), np.uint8))
        12
    """
    content = ply_bytes(depth, intrinsics, image, normals)
    with whole_file(Path(path)) as temporary:
        temporary.write_bytes(content)
    return int(valid_depth(depth).sum())


def prediction_ply(prediction: Prediction, intrinsics: np.ndarray | None = None, task: str | None = None) -> bytes:
    """A prediction's depth as a coloured point cloud, with the predicted normals where there are some.

    Args:
        prediction: Of a network with a task of depth.
        intrinsics: K of the picture at its own size; None takes that of its EXIF data, or else `default_intrinsics`,
            with which the cloud's width and height are right only as far as that guess is.
        task: The name of the task of depth; the first one's by default.

    Raises:
        ConfigurationError: If there is no such task.
        DataError: See `write_ply`.
    """
    of_depth = [one.name for one in prediction.tasks if one.kind is Kind.DEPTH]
    if (name := task or next(iter(of_depth), "")) not in of_depth:
        told = ", ".join(one.name for one in prediction.tasks)
        raise ConfigurationError(f"A point cloud needs depth; the network predicts {told}.")
    depth = prediction[name][0].float().numpy()
    of_normals = [one.name for one in prediction.tasks if one.kind is Kind.NORMALS]
    normals = prediction[of_normals[0]].float().numpy().transpose(1, 2, 0) if of_normals else None
    known = UNKNOWN_CAMERA.of(prediction) if intrinsics is None else intrinsics
    return ply_bytes(depth, known, prediction.shown_image().numpy().transpose(1, 2, 0), normals)


def ply_bytes(depth: np.ndarray, intrinsics: np.ndarray, image: np.ndarray, normals: np.ndarray | None = None) -> bytes:
    """The content of `write_ply`'s file."""
    _check(depth, intrinsics, image, normals)
    known = valid_depth(depth)
    points = unproject(depth, intrinsics)[known]
    return points_ply(points, image[known], None if normals is None else normals[known])


def _check(depth: np.ndarray, intrinsics: np.ndarray, image: np.ndarray, normals: np.ndarray | None) -> None:
    if depth.ndim != 2:
        raise DataError(f"point cloud: expected depth (H, W) in metres, got an array of shape {depth.shape}.")
    if not valid_depth(depth).any():
        raise DataError(f"point cloud: of {depth.shape[0]} x {depth.shape[1]} pixels none has a known depth.")
    wanted = (*depth.shape, 3)
    for name, array in (("image", image), ("normals", normals)):
        if array is not None and array.shape != wanted:
            raise DataError(f"point cloud: depth {depth.shape} wants {name} {wanted}; got {array.shape}.")
    if image.dtype != np.uint8:
        raise DataError(f"point cloud: expected colours as uint8, got {image.dtype}.")
    usable = intrinsics.shape == (3, 3) and np.isfinite(intrinsics).all()
    if not usable or min(intrinsics[0, 0], intrinsics[1, 1]) <= 0 or not np.array_equal(intrinsics[2], [0, 0, 1]):
        raise DataError(
            "point cloud: expected intrinsics (3, 3) with focal lengths above 0 and 0 0 1 in the last row; got "
            f"{np.asarray(intrinsics).tolist()}."
        )
