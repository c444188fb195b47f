"""The U-Net's decoder."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.blocks import ConvNormAct
from densepred.decoders.base import Decoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec

WIDTHS = (256, 128, 64, 32, 16)

Upsampling = Literal["bilinear", "nearest", "transposed"]


class UNetStep(nn.Module):
    """Upsamples a map to the next finer one, joins the two, and convolves twice.

    Args:
        in_channels: Channels of the coarser map.
        skip_channels: Channels of the finer map; 0 where there is none and the step upsamples by `factor` alone.
        width: Output channels.
        factor: How many times finer the finer map is; 1 where a dilated encoder kept the size.
        upsampling: See `UNetDecoder`.

    Shape:
        feature: (B, in_channels, h, w); skip: (B, skip_channels, H, W) or None.
        returns: (B, width, H, W).
    """

    def __init__(
        self, in_channels: int, skip_channels: int, width: int, factor: int, upsampling: Upsampling = "bilinear"
    ) -> None:
        super().__init__()
        self.factor = factor
        self.mode = "nearest" if upsampling == "nearest" else "bilinear"
        self.enlarge: nn.ConvTranspose2d | None = None
        if upsampling == "transposed" and factor > 1:
            self.enlarge = nn.ConvTranspose2d(in_channels, width, factor, factor)
            in_channels = width
        self.convs = nn.Sequential(ConvNormAct(in_channels + skip_channels, width), ConvNormAct(width, width))

    def forward(self, feature: Tensor, skip: Tensor | None = None) -> Tensor:
        """The map at the finer size."""
        size = feature.shape[-2] * self.factor, feature.shape[-1] * self.factor
        if skip is not None:
            size = skip.shape[-2], skip.shape[-1]
        if self.enlarge is not None:
            feature = self.enlarge(feature)
        if feature.shape[-2:] != size:
            feature = F.interpolate(feature, size=size, mode=self.mode)
        if skip is not None:
            feature = torch.cat([feature, skip], dim=1)
        merged: Tensor = self.convs(feature)
        return merged


class UNetDecoder(Decoder):
    """Climbs from the coarsest map to the finest, joining every map on the way.

    Each step doubles the size (or keeps it, between the equal maps of a dilated encoder), concatenates the encoder's
    map of that size and applies two 3x3 convolutions with batch norm and ReLU. A 1x1 convolution gives the planes. It
    ends at the finest map: at the image's own size if the encoder has a map of stride 1, else the rest is the network's
    upsampling, or that of further widths.

    Args:
        spec: The encoder's maps; all are read.
        out_channels: Number of planes.
        widths: Output channels of the steps, coarsest first: one for each map but the coarsest; each further one is a
            step without a skip that doubles the size. Default: 256, 128, 64, 32, 16, one for each map.
        upsampling: "bilinear", "nearest", or "transposed" (learned, kernel and stride 2: the paper's up-convolution).
        dropout: Probability of dropping an activation of the coarsest map (the paper drops there).

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_0, W_0), or 2**n times that with n further widths.

    Raises:
        ConfigurationError: If there is a single map, too few widths, or so many that they upsample past the image.

    Reference:
        Ronneberger, Fischer, Brox. U-Net: Convolutional Networks for Biomedical Image Segmentation. MICCAI 2015.
        arXiv:1505.04597. Padded convolutions and batch norm here; unpadded without norm there.

    Example:
        >>> decoder = UNetDecoder(FeatureSpec((8, 16, 32), (2, 4, 8)), out_channels=3)
        >>> decoder([torch.rand(1, 8, 20, 28), torch.rand(1, 16, 10, 14), torch.rand(1, 32, 5, 7)]).shape
        torch.Size([1, 3, 20, 28])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        widths: tuple[int, ...] | None = None,
        upsampling: Upsampling = "bilinear",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, out_channels)
        skips = len(spec.strides) - 1
        if widths is None:
            widths = tuple(WIDTHS[min(i, len(WIDTHS) - 1)] for i in range(skips))
        _check(spec, widths, upsampling)
        further = len(widths) - skips
        channels = [*spec.channels[-2::-1], *[0] * further]
        strides = [*spec.strides[::-1], *(spec.strides[0] // 2 ** (i + 1) for i in range(further))]
        self.dropout = nn.Dropout(dropout)
        self.steps = nn.ModuleList(
            UNetStep(before, channels[i], width, strides[i] // strides[i + 1], upsampling)
            for i, (before, width) in enumerate(zip((spec.channels[-1], *widths), widths, strict=False))
        )
        self.score = nn.Conv2d(widths[-1], out_channels, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        *skips, feature = features
        feature = self.dropout(feature)
        for i, step in enumerate(self.steps):
            feature = step(feature, skips[-1 - i] if i < len(skips) else None)
        planes: Tensor = self.score(feature)
        return planes


def _check(spec: FeatureSpec, widths: tuple[int, ...], upsampling: str) -> None:
    skips = len(spec.strides) - 1
    if not skips:
        raise ConfigurationError(
            f"UNetDecoder joins maps of several sizes; the encoder yields one, of stride {spec.strides[0]}. "
            "Use PointwiseDecoder, TransposedConvDecoder or DeepLabV3Decoder."
        )
    if upsampling not in ("bilinear", "nearest", "transposed"):
        raise ConfigurationError(
            f"UNetDecoder: upsampling is {upsampling!r}; expected 'bilinear', 'nearest' or 'transposed'."
        )
    most = skips + spec.strides[0].bit_length() - 1
    if not skips <= len(widths) <= most:
        expected = f"{skips}" if skips == most else f"{skips} (one for each skip) to {most} (up to the image's size)"
        raise ConfigurationError(
            f"UNetDecoder: {len(widths)} widths {tuple(widths)} for an encoder with maps of strides {spec.strides}. "
            f"Give {expected} widths."
        )
