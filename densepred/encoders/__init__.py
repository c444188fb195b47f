"""Encoders: an image to feature maps that describe themselves."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.encoders.base import Encoder as Encoder
    from densepred.encoders.loading import LoadReport as LoadReport
    from densepred.encoders.resnet import ResNetEncoder as ResNetEncoder
    from densepred.encoders.vgg import VGGEncoder as VGGEncoder

__getattr__, __all__ = lazy_exports(
    __name__, {"Encoder": "base", "LoadReport": "loading", "ResNetEncoder": "resnet", "VGGEncoder": "vgg"}
)
