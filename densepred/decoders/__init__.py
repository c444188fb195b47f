"""Decoders: turn an encoder's maps into planes."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.decoders.anytime import AnytimeDecoder as AnytimeDecoder
    from densepred.decoders.aspp import ASPPDecoder as ASPPDecoder
    from densepred.decoders.base import Decoder as Decoder
    from densepred.decoders.base import DecoderFactory as DecoderFactory
    from densepred.decoders.context import ContextDecoder as ContextDecoder
    from densepred.decoders.deconvnet import DeconvNetDecoder as DeconvNetDecoder
    from densepred.decoders.deeplab import DeepLabV3Decoder as DeepLabV3Decoder
    from densepred.decoders.deeplab import TorchvisionDeepLabV3Decoder as TorchvisionDeepLabV3Decoder
    from densepred.decoders.deeplab_plus import DeepLabV3PlusDecoder as DeepLabV3PlusDecoder
    from densepred.decoders.dpt import DPTDecoder as DPTDecoder
    from densepred.decoders.eigen import EigenDecoder as EigenDecoder
    from densepred.decoders.fcn import FCNDecoder as FCNDecoder
    from densepred.decoders.fcn import TorchvisionFCNDecoder as TorchvisionFCNDecoder
    from densepred.decoders.fpn import FPNDecoder as FPNDecoder
    from densepred.decoders.gridnet import GridNetDecoder as GridNetDecoder
    from densepred.decoders.largefov import LargeFOVDecoder as LargeFOVDecoder
    from densepred.decoders.patches import PatchDecoder as PatchDecoder
    from densepred.decoders.pointwise import PointwiseDecoder as PointwiseDecoder
    from densepred.decoders.pspnet import PSPNetDecoder as PSPNetDecoder
    from densepred.decoders.segformer import SegFormerDecoder as SegFormerDecoder
    from densepred.decoders.segnet import SegNetBasicDecoder as SegNetBasicDecoder
    from densepred.decoders.segnet import SegNetDecoder as SegNetDecoder
    from densepred.decoders.tiramisu import TiramisuDecoder as TiramisuDecoder
    from densepred.decoders.transposed import TransposedConvDecoder as TransposedConvDecoder
    from densepred.decoders.unet import UNetDecoder as UNetDecoder
    from densepred.decoders.upernet import UPerNetDecoder as UPerNetDecoder

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "ASPPDecoder": "aspp",
        "AnytimeDecoder": "anytime",
        "ContextDecoder": "context",
        "DPTDecoder": "dpt",
        "Decoder": "base",
        "DecoderFactory": "base",
        "DeconvNetDecoder": "deconvnet",
        "DeepLabV3Decoder": "deeplab",
        "DeepLabV3PlusDecoder": "deeplab_plus",
        "EigenDecoder": "eigen",
        "FCNDecoder": "fcn",
        "FPNDecoder": "fpn",
        "GridNetDecoder": "gridnet",
        "LargeFOVDecoder": "largefov",
        "PSPNetDecoder": "pspnet",
        "PatchDecoder": "patches",
        "PointwiseDecoder": "pointwise",
        "SegFormerDecoder": "segformer",
        "SegNetBasicDecoder": "segnet",
        "SegNetDecoder": "segnet",
        "TiramisuDecoder": "tiramisu",
        "TorchvisionDeepLabV3Decoder": "deeplab",
        "TorchvisionFCNDecoder": "fcn",
        "TransposedConvDecoder": "transposed",
        "UNetDecoder": "unet",
        "UPerNetDecoder": "upernet",
    },
)
