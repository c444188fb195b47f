"""Which transforms a pipeline may hold: those that leave no target of the sample behind."""

from collections.abc import Iterator

import albumentations as A

from densepred.data.transforms.base import SceneTransform
from densepred.errors import ConfigurationError

INSTEAD: dict[str, tuple[type[A.BasicTransform], ...]] = {
    "FlipLeftRight": (A.HorizontalFlip,),
    "Roll": (A.Rotate, A.SafeRotate),
    "Roll and ScaleCrop": (A.Affine, A.ShiftScaleRotate),
    "CentreCrop": (A.CenterCrop, A.Crop, A.CropAndPad),
    "ScaleCrop": (
        A.RandomCrop,
        A.RandomResizedCrop,
        A.RandomSizedCrop,
        A.RandomScale,
        A.RandomCropFromBorders,
        A.RandomCropNearBBox,
        A.RandomSizedBBoxSafeCrop,
        A.BBoxSafeRandomCrop,
        A.AtLeastOneBBoxRandomCrop,
        A.CropNonEmptyMaskIfExists,
    ),
    "Rescale": (A.Resize, A.SmallestMaxSize, A.LongestMaxSize),
    "PadTo": (A.Pad,),
    "ElasticDeformation": (A.ElasticTransform, A.GridDistortion, A.ThinPlateSpline),
    "CutoutMissing": (
        A.CoarseDropout,
        A.ConstrainedCoarseDropout,
        A.Erasing,
        A.GridDropout,
        A.MaskDropout,
        A.PixelDropout,
        A.XYMasking,
    ),
}
"""Ours, for those of albumentations."""

ENCODERS_WORK: dict[type[A.BasicTransform], str] = {
    A.Normalize: "normalises the image, which the encoder does (mean and std go with its weights)",
    A.ToFloat: "makes the image float, but images go to the device as uint8 and the encoder scales them",
}


def check_pipeline(pipeline: A.BasicTransform | A.BaseCompose, where: str) -> None:
    """Refuses, by name and place, whatever would leave depth, normals, labels or intrinsics behind.

    Accepted are transforms of ours, albumentations' `ImageOnlyTransform` (photometric), `NoOp` and `ToTensorV2`.

    Raises:
        ConfigurationError: If a leaf of the pipeline, however deeply nested, is none of these, or was given an
            argument that it does not have, or if a Compose names targets of its own.
    """
    for place, leaf, channels_only in _leaves(pipeline, where, False):
        name = type(leaf).__name__
        if getattr(leaf, "invalid_args", None):
            raise ConfigurationError(
                f"{place}: {name} has no argument {', '.join(map(repr, leaf.invalid_args))}; albumentations only warns "
                "and goes on without it. Remove it or correct its name."
            )
        if type(leaf) in ENCODERS_WORK:
            raise ConfigurationError(f"{place}: {name} {ENCODERS_WORK[type(leaf)]}. Leave it out.")
        if isinstance(leaf, A.ImageOnlyTransform):
            continue
        if channels_only:
            raise ConfigurationError(
                f"{place}: SelectiveChannelTransform hands {name} some channels of the image and nothing else, so "
                "targets would be left behind. Only photometric transforms may stand in it."
            )
        # not isinstance: Lambda derives from NoOp and does anything
        if isinstance(leaf, SceneTransform) or type(leaf) in (A.NoOp, A.ToTensorV2):
            continue
        raise ConfigurationError(f"{place}: {name} {_refusal(leaf)}")


def _leaves(
    node: A.BasicTransform | A.BaseCompose, where: str, channels_only: bool
) -> Iterator[tuple[str, A.BasicTransform, bool]]:
    if isinstance(node, A.BaseCompose):
        if node.additional_targets:
            raise ConfigurationError(
                f"{where}: {type(node).__name__} names additional_targets {node.additional_targets}. Leave them out: "
                "the datamodule says which kind each key of the sample is."
            )
        channels_only = channels_only or isinstance(node, A.SelectiveChannelTransform)
        for index, child in enumerate(node.transforms):
            yield from _leaves(child, f"{where} > {type(node).__name__}[{index}]", channels_only)
    elif isinstance(node, A.BasicTransform):
        yield where, node, channels_only
    else:
        raise ConfigurationError(
            f"{where}: {node!r} is no transform. Expected transforms of albumentations or densepred.data.transforms."
        )


def _refusal(leaf: A.BasicTransform) -> str:
    ours = next((ours for ours, theirs in INSTEAD.items() if isinstance(leaf, theirs)), None)
    if ours is not None:
        return (
            "would change the image and leave depth, normals or intrinsics as they were (and pad labels with class 0, "
            f"not with void). Use {ours} of densepred.data.transforms instead."
        )
    if isinstance(leaf, A.Lambda):
        return (
            "may do anything, so nothing says whether every target follows. Derive from "
            "albumentations.ImageOnlyTransform (photometric) or densepred.data.transforms.SceneTransform (geometric)."
        )
    return (
        "does not know depth, normals and intrinsics and has no counterpart here. Use FlipLeftRight, Roll, ScaleCrop, "
        "Rescale, PadTo, CentreCrop, ElasticDeformation or CutoutMissing, or derive from "
        "densepred.data.transforms.SceneTransform."
    )
