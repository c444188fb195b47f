"""Losses: scalars, means over valid pixels."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.losses.base import Loss as Loss
    from densepred.losses.class_weights import count_labels as count_labels
    from densepred.losses.class_weights import inverse_frequency_weights as inverse_frequency_weights
    from densepred.losses.class_weights import median_frequency_weights as median_frequency_weights
    from densepred.losses.codebook import CodebookLoss as CodebookLoss
    from densepred.losses.depth import BerHuLoss as BerHuLoss
    from densepred.losses.depth import L1Loss as L1Loss
    from densepred.losses.depth import L2Loss as L2Loss
    from densepred.losses.focal import BinaryFocalLoss as BinaryFocalLoss
    from densepred.losses.focal import FocalLoss as FocalLoss
    from densepred.losses.normals import AngularLoss as AngularLoss
    from densepred.losses.normals import CosineLoss as CosineLoss
    from densepred.losses.normals import NormalsL2Loss as NormalsL2Loss
    from densepred.losses.ordinal import OrdinalLoss as OrdinalLoss
    from densepred.losses.overlap import DiceLoss as DiceLoss
    from densepred.losses.overlap import LovaszSoftmaxLoss as LovaszSoftmaxLoss
    from densepred.losses.regression import AbsoluteErrorLoss as AbsoluteErrorLoss
    from densepred.losses.regression import SquaredErrorLoss as SquaredErrorLoss
    from densepred.losses.scale_invariant import ScaleInvariantGradientLoss as ScaleInvariantGradientLoss
    from densepred.losses.scale_invariant import ScaleInvariantLoss as ScaleInvariantLoss
    from densepred.losses.scale_invariant import SILogLoss as SILogLoss
    from densepred.losses.segmentation import BinaryCrossEntropyLoss as BinaryCrossEntropyLoss
    from densepred.losses.segmentation import CrossEntropyLoss as CrossEntropyLoss
    from densepred.losses.sum import SumLoss as SumLoss
    from densepred.losses.topk import TopKCrossEntropyLoss as TopKCrossEntropyLoss
    from densepred.losses.von_mises_fisher import VonMisesFisherLoss as VonMisesFisherLoss

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "AbsoluteErrorLoss": "regression",
        "AngularLoss": "normals",
        "BerHuLoss": "depth",
        "BinaryCrossEntropyLoss": "segmentation",
        "BinaryFocalLoss": "focal",
        "CodebookLoss": "codebook",
        "CosineLoss": "normals",
        "CrossEntropyLoss": "segmentation",
        "DiceLoss": "overlap",
        "FocalLoss": "focal",
        "L1Loss": "depth",
        "L2Loss": "depth",
        "Loss": "base",
        "LovaszSoftmaxLoss": "overlap",
        "NormalsL2Loss": "normals",
        "OrdinalLoss": "ordinal",
        "SILogLoss": "scale_invariant",
        "ScaleInvariantGradientLoss": "scale_invariant",
        "ScaleInvariantLoss": "scale_invariant",
        "SquaredErrorLoss": "regression",
        "SumLoss": "sum",
        "TopKCrossEntropyLoss": "topk",
        "VonMisesFisherLoss": "von_mises_fisher",
        "count_labels": "class_weights",
        "inverse_frequency_weights": "class_weights",
        "median_frequency_weights": "class_weights",
    },
)
