"""A view of the scene: how pixels move and how the scene moves with them, so that every target keeps its meaning."""

import cv2
import numpy as np
from numpy.typing import NDArray

from densepred.data.transforms.resampling import Planes, Resampling
from densepred.sample import Kind, missing_value, valid_depth, valid_normals

DEPTH_RATIO = 1.05
"""Largest ratio of depths among 3 x 3 pixels that still count as one surface."""
NORMALS_SPREAD = 0.2
"""Largest spread, summed over components, of 3 x 3 normals that still count as one surface."""
SMALLEST = np.float32(1e-12)
"""Keeps divisions finite where the result is thrown away."""
NEIGHBOURS = np.ones((3, 3), np.uint8)


class View:
    """The picture after a transform, as the image of a scene that moved.

    A pixel map M (3x3, on pixels) goes with a scene map A (3x3, on points in camera coordinates). A point X seen at
    pixel K X is afterwards the point A X, seen at M K X. From this alone follow

    - intrinsics K' = M K inverse(A),
    - depth' = (A X)_z,
    - normals' = inverse(A)^T n, renormalised,

    so that normals(depth') under K' are normals(depth) moved. Transforms only choose M and A:

    ================== ======================= ======================
    transform          M                       A
    ================== ======================= ======================
    flip left-right    x' = W - 1 - x          diag(-1, 1, 1)
    roll by a          K Rz(a) inverse(K)      Rz(a)
    crop, pad, resize  x' = s x + t            identity
    zoom, f kept       x' = s x + t            diag(1, 1, 1 / s)
    ================== ======================= ======================

    Between pixels, labels and weights take the nearest pixel's value. Depth is read bilinearly *in 1 / depth*, which
    is exact on planes, where the 3 x 3 pixels around are one surface (all valid, depths within 5 %), and from the
    nearest pixel elsewhere: nothing floats between two surfaces, and valid never mixes with missing. Normals
    likewise (components within 0.2 in sum). What comes from outside the picture is missing; the image
    repeats its border.

    Args:
        resampling: The pixel map M.
        scene: The scene map A; its last row must be (0, 0, a). Identity if left out.
    """

    def __init__(self, resampling: Resampling, scene: NDArray[np.float64] | None = None) -> None:
        self.resampling = resampling
        self.scene = np.eye(3) if scene is None else scene

    def __call__(self, kind: Kind, planes: Planes) -> Planes:
        """An array of this kind, seen after the transform."""
        moves = {
            Kind.IMAGE: self.image,
            Kind.LABEL: self.label,
            Kind.DEPTH: self.depth,
            Kind.NORMALS: self.normals,
            Kind.WEIGHT: self.weight,
            Kind.INTRINSICS: self.intrinsics,
        }
        return moves[kind](planes)

    def image(self, image: Planes) -> Planes:
        """Image (H, W, C)."""
        return self.resampling.colour(image)

    def label(self, label: Planes) -> Planes:
        """Labels (H, W)."""
        return self.resampling.nearest(label, missing_value(Kind.LABEL, label.dtype))

    def weight(self, weight: Planes) -> Planes:
        """Weights (H, W)."""
        return self.resampling.nearest(weight, 0)

    def depth(self, depth: Planes) -> Planes:
        """Metres (H, W)."""
        unknown = ~valid_depth(depth)
        depth = _zeroed(depth, unknown)
        result = self.resampling.nearest(depth, 0)
        if not self.resampling.exact:
            # a missing pixel has inverse 0: it makes its neighbourhood rough, never one surface
            inverse = _zeroed(1 / np.maximum(depth, SMALLEST), unknown)
            one = cv2.dilate(inverse, NEIGHBOURS) <= DEPTH_RATIO * cv2.erode(inverse, NEIGHBOURS)
            blend = self._inside(one) & (result > 0)
            np.copyto(result, 1 / np.maximum(self.resampling.linear(inverse), SMALLEST), where=blend)
        if self.scene[2, 2] != 1:
            result *= np.float32(self.scene[2, 2])
        return result

    def normals(self, normals: Planes) -> Planes:
        """Unit vectors (H, W, 3)."""
        if not np.isfinite(cv2.sumElems(normals)).all():
            normals = np.where(valid_normals(normals, axis=-1)[..., None], normals, np.float32(0))
        result = self.resampling.nearest(normals, 0)
        if not self.resampling.exact:
            spread = cv2.subtract(cv2.dilate(normals, NEIGHBOURS), cv2.erode(normals, NEIGHBOURS))
            # a unit vector beside a zero vector spreads by 1 at least
            blend = self._inside(_summed(spread) < NORMALS_SPREAD) & (_summed(cv2.multiply(result, result)) > 0)
            result = cv2.copyTo(self.resampling.linear(normals), blend.astype(np.uint8), result)
        if not np.array_equal(self.scene, np.eye(3)):
            result = cv2.transform(result, np.linalg.inv(self.scene).T)
        # a mirror image is exact: flipped twice, every bit is the same again
        if not self.resampling.exact or not np.allclose(self.scene @ self.scene.T, np.eye(3)):
            length = np.sqrt(_summed(cv2.multiply(result, result)))
            result = cv2.multiply(result, cv2.merge([1 / np.maximum(length, SMALLEST)] * 3))
        return result

    def intrinsics(self, intrinsics: Planes) -> Planes:
        """Intrinsics (3, 3)."""
        moved = self.resampling.matrix @ intrinsics.astype(np.float64) @ np.linalg.inv(self.scene)
        result: Planes = (moved / moved[2, 2]).astype(intrinsics.dtype)
        return result

    def _inside(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return self.resampling.nearest(mask.astype(np.uint8), 0).astype(bool)


def _zeroed(planes: Planes, where: NDArray[np.bool_]) -> Planes:
    result = planes.copy()
    np.copyto(result, 0, where=where)
    return result


def _summed(vectors: Planes) -> Planes:
    """The sum over the channels of (H, W, 3); OpenCV's is ten times faster than numpy's over a last axis of three."""
    result: Planes = cv2.transform(vectors, np.ones((1, 3), np.float32))
    return result
