"""Losses: scalars, means over valid pixels."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.losses.base import Loss as Loss
    from densepred.losses.depth import L2Loss as L2Loss
    from densepred.losses.normals import CosineLoss as CosineLoss
    from densepred.losses.regression import SquaredErrorLoss as SquaredErrorLoss
    from densepred.losses.segmentation import BinaryCrossEntropyLoss as BinaryCrossEntropyLoss
    from densepred.losses.segmentation import CrossEntropyLoss as CrossEntropyLoss

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "Loss": "base",
        "L2Loss": "depth",
        "CosineLoss": "normals",
        "SquaredErrorLoss": "regression",
        "BinaryCrossEntropyLoss": "segmentation",
        "CrossEntropyLoss": "segmentation",
    },
)
