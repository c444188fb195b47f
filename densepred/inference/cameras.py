"""The camera that took a picture: from its EXIF data, as it is told, or by a field of view that is assumed."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image

from densepred.errors import ConfigurationError
from densepred.geometry import Floats, intrinsics_matrix
from densepred.inference.prediction import Prediction

FIELD_OF_VIEW = 60.0
"""Degrees along the longer side, where nothing is known of a camera: a phone's or a Kinect's, to a tenth or so."""

_FILM_DIAGONAL = math.hypot(24, 36)


@dataclass(frozen=True)
class AssumedCamera:
    """What is taken for the camera of a picture.

    Args:
        field_of_view: Degrees along the longer side, of pictures whose EXIF data tell no focal length.
        intrinsics: fx, fy, cx, cy in pixels of all pictures at their own size, whatever their EXIF data tell.

    Raises:
        ConfigurationError: If the angle is not between 0 and 180 degrees, or a focal length is not above 0.
    """

    field_of_view: float = FIELD_OF_VIEW
    intrinsics: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        default_intrinsics((2, 2), self.field_of_view)
        if self.intrinsics is not None and not (min(self.intrinsics[:2]) > 0 and np.isfinite(self.intrinsics).all()):
            told = " ".join(f"{value:g}" for value in self.intrinsics)
            raise ConfigurationError(f"intrinsics {told}: expected fx fy cx cy in pixels, fx and fy above 0.")

    def of(self, prediction: Prediction) -> Floats:
        """K (3, 3) of a prediction's picture."""
        if self.intrinsics is not None:
            return intrinsics_matrix(*self.intrinsics)
        if prediction.focal_on_film > 0:
            return film_intrinsics(prediction.focal_on_film, _size(prediction))
        return default_intrinsics(_size(prediction), self.field_of_view)

    def note(self, prediction: Prediction) -> str:
        """What was assumed, for people; empty where nothing was."""
        if self.intrinsics is not None:
            return ""
        if prediction.focal_on_film > 0:
            return "point clouds by the focal length in the EXIF data"
        angle = f"{self.field_of_view:g} degrees"
        return f"point clouds by an assumed field of view of {angle} (--field_of_view, --intrinsics)"


def film_focal(picture: Image.Image) -> float:
    """Millimetres of the focal length that sees as much on film of 24 x 36 mm, as EXIF data tell; 0 where they don't.

    Args:
        picture: Opened; its pixels are not read.
    """
    try:
        told = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.FocalLengthIn35mmFilm, 0)
        millimetres = float(told)
    except Exception:  # damaged EXIF data make Pillow raise anything; a picture is good without them
        return 0.0
    return millimetres if 0 < millimetres < math.inf else 0.0


def film_intrinsics(millimetres: float, size: tuple[int, int]) -> Floats:
    """K of a picture from the length that an equal view would need on film of 24 x 36 mm.

    Scaled by the diagonals, as CIPA DC-008 (Exif) defines it. What cameras write is a whole number of millimetres, so
    good to a few per cent; a photo that was cropped afterwards tells a wrong one.

    Args:
        millimetres: Above 0.
        size: (height, width) of the picture.

    Example:
        >>> film_intrinsics(26, (2400, 3600))[0].tolist()
        [2600.0, 0.0, 1799.5]
    """
    return _centred(millimetres / _FILM_DIAGONAL * math.hypot(*size), size)


def default_intrinsics(size: tuple[int, int], field_of_view: float = FIELD_OF_VIEW) -> Floats:
    """K of a camera of which nothing is known: square pixels, the optical axis in the middle.

    Args:
        size: (height, width) of the picture.
        field_of_view: Degrees along its longer side.

    Raises:
        ConfigurationError: If the angle is not between 0 and 180 degrees.

    Example:
        >>> default_intrinsics((480, 640), field_of_view=90)[:2].tolist()
        [[320.0, 0.0, 319.5], [0.0, 320.0, 239.5]]
    """
    if not 0 < field_of_view < 180:
        raise ConfigurationError(f"field of view: expected degrees between 0 and 180, got {field_of_view}.")
    return _centred(max(size) / 2 / math.tan(math.radians(field_of_view) / 2), size)


def _centred(focal: float, size: tuple[int, int]) -> Floats:
    return intrinsics_matrix(focal, focal, (size[1] - 1) / 2, (size[0] - 1) / 2)


def _size(prediction: Prediction) -> tuple[int, int]:
    return prediction.image.shape[-2], prediction.image.shape[-1]


UNKNOWN_CAMERA = AssumedCamera()
"""Of which only the photos tell something."""
