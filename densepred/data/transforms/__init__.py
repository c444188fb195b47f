"""Transforms that move image, labels, depth, normals and intrinsics together; photometric ones are albumentations'."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.data.transforms.base import SceneTransform as SceneTransform
    from densepred.data.transforms.cutout import CutoutMissing as CutoutMissing
    from densepred.data.transforms.elastic import ElasticDeformation as ElasticDeformation
    from densepred.data.transforms.flip import FlipLeftRight as FlipLeftRight
    from densepred.data.transforms.pipeline import Pipeline as Pipeline
    from densepred.data.transforms.pipeline import SampleTransforms as SampleTransforms
    from densepred.data.transforms.presets import Augmentation as Augmentation
    from densepred.data.transforms.presets import DepthAugmentation as DepthAugmentation
    from densepred.data.transforms.presets import MultitaskAugmentation as MultitaskAugmentation
    from densepred.data.transforms.presets import NormalsAugmentation as NormalsAugmentation
    from densepred.data.transforms.presets import SegmentationAugmentation as SegmentationAugmentation
    from densepred.data.transforms.resize import CentreCrop as CentreCrop
    from densepred.data.transforms.resize import PadTo as PadTo
    from densepred.data.transforms.resize import Rescale as Rescale
    from densepred.data.transforms.roll import Roll as Roll
    from densepred.data.transforms.scale_crop import ScaleCrop as ScaleCrop

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "Augmentation": "presets",
        "CentreCrop": "resize",
        "CutoutMissing": "cutout",
        "DepthAugmentation": "presets",
        "ElasticDeformation": "elastic",
        "FlipLeftRight": "flip",
        "MultitaskAugmentation": "presets",
        "NormalsAugmentation": "presets",
        "PadTo": "resize",
        "Pipeline": "pipeline",
        "Rescale": "resize",
        "Roll": "roll",
        "SampleTransforms": "pipeline",
        "ScaleCrop": "scale_crop",
        "SceneTransform": "base",
        "SegmentationAugmentation": "presets",
    },
)
