"""Encoders: an image to feature maps that describe themselves."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.encoders.base import Encoder as Encoder
    from densepred.encoders.eigen import EigenEncoder as EigenEncoder
    from densepred.encoders.fabric import FabricEncoder as FabricEncoder
    from densepred.encoders.fcdensenet import FCDenseNetEncoder as FCDenseNetEncoder
    from densepred.encoders.frrn import FRRNEncoder as FRRNEncoder
    from densepred.encoders.fusion import FusionEncoder as FusionEncoder
    from densepred.encoders.gridnet import GridNetEncoder as GridNetEncoder
    from densepred.encoders.loading import LoadReport as LoadReport
    from densepred.encoders.msdnet import MSDNetEncoder as MSDNetEncoder
    from densepred.encoders.resnet import ResNetEncoder as ResNetEncoder
    from densepred.encoders.segnet import SegNetBasicEncoder as SegNetBasicEncoder
    from densepred.encoders.timm import TimmEncoder as TimmEncoder
    from densepred.encoders.torchvision import TorchvisionEncoder as TorchvisionEncoder
    from densepred.encoders.unet import UNetEncoder as UNetEncoder
    from densepred.encoders.vgg import VGGEncoder as VGGEncoder
    from densepred.encoders.vgg_deeplab import DeepLabVGGEncoder as DeepLabVGGEncoder
    from densepred.encoders.vgg_dilated import DilatedVGGEncoder as DilatedVGGEncoder
    from densepred.encoders.vgg_fcn import FCNVGGEncoder as FCNVGGEncoder
    from densepred.encoders.wang import WangGlobalEncoder as WangGlobalEncoder
    from densepred.encoders.wang import WangLocalEncoder as WangLocalEncoder

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "DeepLabVGGEncoder": "vgg_deeplab",
        "DilatedVGGEncoder": "vgg_dilated",
        "EigenEncoder": "eigen",
        "Encoder": "base",
        "FCDenseNetEncoder": "fcdensenet",
        "FCNVGGEncoder": "vgg_fcn",
        "FabricEncoder": "fabric",
        "FRRNEncoder": "frrn",
        "FusionEncoder": "fusion",
        "GridNetEncoder": "gridnet",
        "LoadReport": "loading",
        "MSDNetEncoder": "msdnet",
        "ResNetEncoder": "resnet",
        "SegNetBasicEncoder": "segnet",
        "TimmEncoder": "timm",
        "TorchvisionEncoder": "torchvision",
        "UNetEncoder": "unet",
        "VGGEncoder": "vgg",
        "WangGlobalEncoder": "wang",
        "WangLocalEncoder": "wang",
    },
)
