"""Augmentations in one line of a config: a size, and one number for the strength."""

import math
from typing import Any, Literal

import albumentations as A

from densepred.data.transforms.flip import FlipLeftRight
from densepred.data.transforms.resampling import Planes
from densepred.data.transforms.roll import Roll
from densepred.data.transforms.scale_crop import ScaleCrop
from densepred.errors import ConfigurationError

Range = tuple[float, float]


class Augmentation(A.Compose):  # type: ignore[misc]  # albumentations is untyped
    """Turn, zoom, crop, flip and colours, with one number for how much of them.

    At strength 0 a random crop is left, at 1 it is what the arguments say, at 2 twice that. With strength s:

    ============ ============================================== ==================================
    step         what it does                                   drawn
    ============ ============================================== ==================================
    `roll`       turns by up to s * roll degrees                always
    `zoom`       zooms by zoom[0] ** s to zoom[1] ** s          always
    crop         cuts out `size`                                always
    flip         left-right                                     with probability min(s, 1) / 2
    `brightness` adds up to s * brightness of full white        with probability 1/2
    `contrast`   times contrast[0] ** s to contrast[1] ** s     with probability 1/2
    `saturation` the same, of the distance to grey              with probability 1/2
    `hue`        shifts by up to s * hue of the colour circle   with probability 1/2
    `gain`       each channel times gain[0] ** s to gain[1] ** s always
    ============ ============================================== ==================================

    Each step is drawn by itself. A factor's range is raised to the power s, so that twice as strong is twice as far in
    doublings, and never below 0. Hue and saturation are left alone in images that are not of three channels. The
    geometric steps are densepred's own: depth, normals, labels and intrinsics keep their meaning. A preset is an entry
    of `train_transforms`, before, behind or between others, or all of it.

    `SegmentationAugmentation`, `DepthAugmentation`, `NormalsAugmentation` and `MultitaskAugmentation` hold usual
    numbers.

    Args:
        size: (height, width) of the result.
        strength: 0 none, 1 as the numbers say, 2 twice that.
        zoom: Smallest and largest zoom; 1 is the picture's own pixels.
        roll: Degrees, either way.
        brightness: Share of full white, up or down.
        contrast: Smallest and largest factor of the values.
        saturation: Smallest and largest factor.
        hue: Share of the colour circle, either way.
        gain: Smallest and largest factor of each channel.
        cat_max_ratio: See `ScaleCrop`.
        depth: What a zoom does to depth, see `ScaleCrop`.

    Raises:
        ConfigurationError: If strength is negative or not finite, or a range does not hold 1.

    Reference:
        Cubuk, Zoph, Shlens, Le. RandAugment. 2019. arXiv:1909.13719, and Müller, Hutter. TrivialAugment. ICCV 2021.
        arXiv:2103.10158 (why one number for all magnitudes is enough to search).

    Example:
        >>> import numpy as np
        >>> from densepred.data.transforms.pipeline import SampleTransforms
        >>> preset = Augmentation(size=(32, 48), strength=0.5, zoom=(0.25, 4.0))
        >>> preset.transforms[0].scale
        (0.5, 2.0)
        >>> SampleTransforms([preset])({"image": np.zeros((60, 80, 3), np.uint8)})["image"].shape
        (32, 48, 3)
    """

    def __init__(
        self,
        size: tuple[int, int],
        strength: float = 1.0,
        zoom: tuple[float, float] = (1.0, 1.0),
        roll: float = 0.0,
        brightness: float = 0.0,
        contrast: tuple[float, float] = (1.0, 1.0),
        saturation: tuple[float, float] = (1.0, 1.0),
        hue: float = 0.0,
        gain: tuple[float, float] = (1.0, 1.0),
        cat_max_ratio: float | None = None,
        depth: Literal["divide", "focal"] = "divide",
    ) -> None:
        who = type(self).__name__
        if not 0 <= strength < math.inf:
            raise ConfigurationError(
                f"{who}: strength is {strength}; expected a number from 0 (a random crop alone) on; 1 is usual."
            )
        factors = {"zoom": zoom, "contrast": contrast, "saturation": saturation, "gain": gain}
        for name, given in factors.items():
            if len(given) != 2 or not 0 < given[0] <= 1 <= given[1]:
                raise ConfigurationError(
                    f"{who}: {name} is {given}; expected [smallest, largest] factor, with 1 between them."
                )
        amounts = {"roll": roll, "brightness": brightness, "hue": hue}
        for name, amount in amounts.items():
            if not 0 <= amount < math.inf:
                raise ConfigurationError(f"{who}: {name} is {amount}; expected a number, at least 0.")
        self.size, self.strength = size, strength
        ranges = {name: (given[0] ** strength, given[1] ** strength) for name, given in factors.items()}
        largest = {name: amount * strength for name, amount in amounts.items()}
        steps: list[A.BasicTransform] = [
            # first, so that the crop cuts off some of the corners that come from outside
            Roll(limit=min(largest["roll"], 180.0), p=float(largest["roll"] > 0)),
            ScaleCrop(size, ranges["zoom"], cat_max_ratio, depth),
            FlipLeftRight(p=min(strength, 1.0) / 2),
            *_light(largest["brightness"], ranges["contrast"], ranges["gain"]),
            *_colour(ranges["saturation"], min(largest["hue"], 0.5)),
        ]
        # at strength 0 the crop is exact: no step that might round
        kept = [step for step in steps if step.p > 0 and (strength > 0 or isinstance(step, ScaleCrop))]
        super().__init__(kept, is_check_shapes=False)

    def to_dict_private(self) -> dict[str, Any]:
        """As albumentations records it: the composition of its steps."""
        return {**super().to_dict_private(), "__class_fullname__": "Compose"}


class SegmentationAugmentation(Augmentation):
    """The usual augmentation of semantic segmentation, at strength 1: zoom 0.5 to 2, flip, photometric distortion.

    Brightness by 32 of 255, contrast and saturation 0.5 to 1.5, hue by a tenth of the circle (18 of OpenCV's 180).

    Args:
        size: (height, width) of the result.
        strength: 0 a random crop alone, 1 usual, 2 twice that; see `Augmentation`.
        cat_max_ratio: Draw the window again while one class fills this share; 0.75 is usual. See `ScaleCrop`.

    Reference:
        Zoom: Chen et al. DeepLab. 2016. arXiv:1606.00915 (0.5 to 1.5 there); 0.5 to 2 is that of torchvision's
        reference training and of mmsegmentation's configurations. Distortion: Liu et al. SSD. ECCV 2016.
        arXiv:1512.02325, as mmsegmentation's PhotoMetricDistortion (here contrast always comes before saturation and
        hue, and saturation is the distance to grey).
    """

    def __init__(self, size: tuple[int, int], strength: float = 1.0, cat_max_ratio: float | None = None) -> None:
        super().__init__(
            size,
            strength,
            zoom=(0.5, 2.0),
            brightness=32 / 255,
            contrast=(0.5, 1.5),
            saturation=(0.5, 1.5),
            hue=0.1,
            cat_max_ratio=cat_max_ratio,
        )


class DepthAugmentation(Augmentation):
    """The usual augmentation of depth from one image, at strength 1: zoom 1 to 1.5, roll by 5 degrees, flip, gain.

    The gain of each channel is 0.8 to 1.2. A zoom divides depth.

    Args:
        size: (height, width) of the result.
        strength: 0 a random crop alone, 1 usual, 2 twice that; see `Augmentation`.
        depth: What a zoom does to depth, see `ScaleCrop`.

    Reference:
        Eigen, Puhrsch, Fergus. Depth Map Prediction from a Single Image using a Multi-Scale Deep Network. NeurIPS 2014.
        arXiv:1406.2283, section 3.4.
    """

    def __init__(
        self, size: tuple[int, int], strength: float = 1.0, depth: Literal["divide", "focal"] = "divide"
    ) -> None:
        super().__init__(size, strength, zoom=(1.0, 1.5), roll=5.0, gain=(0.8, 1.2), depth=depth)


class NormalsAugmentation(Augmentation):
    """The usual augmentation of surface normals, at strength 1: that of depth, and contrast 0.8 to 1.2.

    A flip and a roll turn normals, a zoom that divides depth stretches their z.

    Args:
        size: (height, width) of the result.
        strength: 0 a random crop alone, 1 usual, 2 twice that; see `Augmentation`.
        depth: What a zoom does to depth and so to normals, see `ScaleCrop`.

    Reference:
        Eigen, Fergus. Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale Convolutional
        Architecture. ICCV 2015. arXiv:1411.4734 (the steps; the range of contrast is not published).
    """

    def __init__(
        self, size: tuple[int, int], strength: float = 1.0, depth: Literal["divide", "focal"] = "divide"
    ) -> None:
        super().__init__(size, strength, zoom=(1.0, 1.5), roll=5.0, contrast=(0.8, 1.2), gain=(0.8, 1.2), depth=depth)


class MultitaskAugmentation(Augmentation):
    """For labels, depth and normals together, at strength 1: the geometry of depth, the colours of segmentation.

    Zoom 1 to 1.5, roll by 5 degrees, flip; brightness, contrast, saturation and hue as `SegmentationAugmentation`.

    Args:
        size: (height, width) of the result.
        strength: 0 a random crop alone, 1 usual, 2 twice that; see `Augmentation`.
        cat_max_ratio: Draw the window again while one class fills this share, see `ScaleCrop`.
        depth: What a zoom does to depth, see `ScaleCrop`.

    Reference:
        Those of `DepthAugmentation` (geometry) and `SegmentationAugmentation` (colours).
    """

    def __init__(
        self,
        size: tuple[int, int],
        strength: float = 1.0,
        cat_max_ratio: float | None = None,
        depth: Literal["divide", "focal"] = "divide",
    ) -> None:
        super().__init__(
            size,
            strength,
            zoom=(1.0, 1.5),
            roll=5.0,
            brightness=32 / 255,
            contrast=(0.5, 1.5),
            saturation=(0.5, 1.5),
            hue=0.1,
            cat_max_ratio=cat_max_ratio,
            depth=depth,
        )


def _light(brightness: float, contrast: Range, gain: Range) -> list[A.BasicTransform]:
    """Brightness, contrast and gain, which images of any number of channels take; those that do nothing have p 0."""
    brightness = min(brightness, 1.0)
    factors = (contrast[0] - 1, contrast[1] - 1)
    return [
        A.RandomBrightnessContrast((-brightness, brightness), (0, 0), p=0.5 * (brightness > 0)),
        A.RandomBrightnessContrast((0, 0), factors, p=0.5 * (factors != (0, 0))),
        A.MultiplicativeNoise(gain, per_channel=True, p=float(gain != (1, 1))),
    ]


def _colour(saturation: Range, hue: float) -> list[A.BasicTransform]:
    """Saturation and hue, each drawn by itself."""
    return [
        _ColourJitter((1, 1), (1, 1), saturation, (0, 0), p=0.5 * (saturation != (1, 1))),
        _ColourJitter((1, 1), (1, 1), (1, 1), (-hue, hue), p=0.5 * (hue > 0)),
    ]


class _ColourJitter(A.ColorJitter):  # type: ignore[misc]  # albumentations is untyped
    """For images of any number of channels, of which those with three have a hue; albumentations' refuses others."""

    def apply(self, img: Planes, **params: Any) -> Planes:
        """The image in other colours."""
        result: Planes = super().apply(img, **params) if img.shape[2] == 3 else img
        return result
