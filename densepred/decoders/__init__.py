"""Decoders: turn an encoder's maps into planes."""

from typing import TYPE_CHECKING

from densepred.lazy import lazy_exports

if TYPE_CHECKING:
    from densepred.decoders.base import Decoder as Decoder
    from densepred.decoders.base import DecoderFactory as DecoderFactory
    from densepred.decoders.deeplab import DeepLabV3Decoder as DeepLabV3Decoder
    from densepred.decoders.deeplab import TorchvisionDeepLabV3Decoder as TorchvisionDeepLabV3Decoder
    from densepred.decoders.fcn import FCNDecoder as FCNDecoder
    from densepred.decoders.fcn import TorchvisionFCNDecoder as TorchvisionFCNDecoder
    from densepred.decoders.pointwise import PointwiseDecoder as PointwiseDecoder
    from densepred.decoders.transposed import TransposedConvDecoder as TransposedConvDecoder
    from densepred.decoders.unet import UNetDecoder as UNetDecoder

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "Decoder": "base",
        "DecoderFactory": "base",
        "DeepLabV3Decoder": "deeplab",
        "FCNDecoder": "fcn",
        "PointwiseDecoder": "pointwise",
        "TorchvisionDeepLabV3Decoder": "deeplab",
        "TorchvisionFCNDecoder": "fcn",
        "TransposedConvDecoder": "transposed",
        "UNetDecoder": "unet",
    },
)
