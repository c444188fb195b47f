"""The U-Net's decoder."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.blocks import Activation, ConvNormAct, Norm
from densepred.decoders.base import Decoder
from densepred.decoders.climbing import Rung, rungs
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec, Place
from densepred.initialisers import Initialisation, initialise

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
        norm: See `UNetDecoder`.
        activation: See `UNetDecoder`.
        bias: See `UNetDecoder`.
        crop: For unpadded convolutions: cells by which the finer map begins before the upsampled one, at the top and at
            the left. None for padded ones.

    Shape:
        feature: (B, in_channels, h, w); skip: (B, skip_channels, H, W) or None.
        returns: (B, width, H, W); unpadded (B, width, factor * h - 4, factor * w - 4).
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        width: int,
        factor: int,
        upsampling: Upsampling = "bilinear",
        norm: Norm = "batch",
        activation: Activation = "relu",
        bias: bool | None = None,
        crop: int | None = None,
    ) -> None:
        super().__init__()
        self.factor = factor
        self.crop = crop
        self.mode = "nearest" if upsampling == "nearest" else "bilinear"
        self.enlarge: nn.ConvTranspose2d | None = None
        if upsampling == "transposed" and factor > 1:
            self.enlarge = nn.ConvTranspose2d(in_channels, width, factor, factor)
            in_channels = width
        self.convs = nn.Sequential(
            *(
                ConvNormAct(before, width, norm=norm, activation=activation, padded=crop is None, bias=bias)
                for before in (in_channels + skip_channels, width)
            )
        )

    def forward(self, feature: Tensor, skip: Tensor | None = None) -> Tensor:
        """The map at the finer size."""
        size = feature.shape[-2] * self.factor, feature.shape[-1] * self.factor
        if skip is not None and self.crop is not None:
            skip = skip[..., self.crop : self.crop + size[0], self.crop : self.crop + size[1]]
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

    Where the encoder's convolutions are unpadded (`UNetEncoder(padded=False)`) the decoder's are so too, and each skip
    is cropped to the map it joins: the published network.

    Args:
        spec: The encoder's maps; all are read.
        out_channels: Number of planes.
        widths: Output channels of the steps, coarsest first: one for each map but the coarsest; each further one is a
            step without a skip that doubles the size. Default: 256, 128, 64, 32, 16, one for each map. The paper's:
            512, 256, 128, 64.
        upsampling: "bilinear", "nearest", or "transposed" (learned, kernel and stride 2: the paper's up-convolution).
        dropout: Probability of dropping an activation of the coarsest map (the paper drops there).
        norm: See `densepred.blocks.normalisation`; "none" in the paper.
        activation: See `densepred.blocks.nonlinearity`.
        bias: Whether the 3x3 convolutions have biases; by default where no normalisation with its own follows.
        score_kernel: Side of the last convolution's kernel, odd; 3 in segmentation_models_pytorch.
        initialisation: Rule for the weights. "kaiming" is the paper's, normal with deviation sqrt(2 / N), N the
            incoming connections. None leaves PyTorch's, under which the first planes are smaller.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_0, W_0), or 2**n times that with n further widths. From maps with margins, planes
            that begin at the image's corner and go at least to its end.

    Raises:
        ConfigurationError: If there is a single map, too few widths, or so many that they upsample past the image; if
            the kernel's side is even; if maps with margins do not reach far enough around the image.

    Reference:
        Ronneberger, Fischer, Brox. U-Net: Convolutional Networks for Biomedical Image Segmentation. MICCAI 2015.
        arXiv:1505.04597. As in the paper there is no nonlinearity after the up-convolutions, and each halves the
        channels; the released model has a ReLU there, and its last up-convolution keeps 128.

    Example:
        >>> decoder = UNetDecoder(FeatureSpec((8, 16, 32), (2, 4, 8)), out_channels=3)
        >>> decoder([torch.rand(1, 8, 20, 28), torch.rand(1, 16, 10, 14), torch.rand(1, 32, 5, 7)]).shape
        torch.Size([1, 3, 20, 28])
    """

    reads_origins = True

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        widths: tuple[int, ...] | None = None,
        upsampling: Upsampling = "bilinear",
        dropout: float = 0.0,
        norm: Norm = "batch",
        activation: Activation = "relu",
        bias: bool | None = None,
        score_kernel: int = 1,
        initialisation: Initialisation | None = None,
    ) -> None:
        super().__init__(spec, out_channels)
        if widths is None:
            widths = tuple(WIDTHS[min(i, len(WIDTHS) - 1)] for i in range(len(spec.strides) - 1))
        climb = rungs("UNetDecoder", spec, "widths", tuple(widths))
        _check(upsampling, score_kernel)
        crops, self.begin = _crops(spec, climb, score_kernel)
        self.dropout = nn.Dropout(dropout)
        self.steps = nn.ModuleList(
            UNetStep(before, rung.skip, width, rung.factor, upsampling, norm, activation, bias, crop)
            for before, width, rung, crop in zip((spec.channels[-1], *widths), widths, climb, crops, strict=False)
        )
        padding = 0 if spec.origins else score_kernel // 2
        self.score = nn.Conv2d(widths[-1], out_channels, score_kernel, padding=padding)
        if initialisation is not None:
            initialise(self, initialisation)
            if initialisation == "kaiming":
                _draw_up_convolutions(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        *skips, feature = features
        feature = self.dropout(feature)
        for i, step in enumerate(self.steps):
            feature = step(feature, skips[-1 - i] if i < len(skips) else None)
        planes: Tensor = self.score(feature)
        return planes[..., self.begin :, self.begin :] if self.begin else planes


def _draw_up_convolutions(decoder: nn.Module) -> None:
    """Where kernel and stride are equal, a cell of the result has one tap: N is the number of channels before."""
    for layer in decoder.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            nn.init.normal_(layer.weight, 0, math.sqrt(2 / layer.in_channels))


def _crops(spec: FeatureSpec, climb: list[Rung], score_kernel: int) -> tuple[list[int | None], int]:
    """By how much each step crops its skip, and the planes' first cell inside the image; maps without margins: none."""
    if not spec.origins:
        return [None] * len(climb), 0
    crops: list[int | None] = []
    place = Place(spec.origins[-1], spec.strides[-1])
    for i, rung in enumerate(climb):
        place = place.enlarged(rung.factor, rung.factor)
        skip = spec.origins[-2 - i] if rung.skip else place.origin
        fault = f"the map of stride {place.stride} begins inside the map that it joins"
        crops.append(_cells(place.origin - skip, place.stride, spec, fault))
        place = place.after(3).after(3)
    place = place.after(score_kernel)
    begin = _cells((place.stride - 1) / 2 - place.origin, place.stride, spec, "the planes begin inside the image")
    return crops, begin


def _cells(pixels: float, stride: int, spec: FeatureSpec, fault: str) -> int:
    cells = pixels / stride
    if cells < 0 or cells != int(cells):
        raise ConfigurationError(
            f"UNetDecoder: {fault}, by {-pixels:g} pixels, where whole cells of {stride} pixels are to be cropped. The "
            f"encoder's maps of strides {spec.strides} begin at pixels {spec.origins}: its margin does not fit this "
            "decoder. Take UNetEncoder, set score_kernel to 1, or set the encoder's `padded` to true."
        )
    return int(cells)


def _check(upsampling: str, score_kernel: int) -> None:
    if upsampling not in ("bilinear", "nearest", "transposed"):
        raise ConfigurationError(
            f"UNetDecoder: upsampling is {upsampling!r}; expected 'bilinear', 'nearest' or 'transposed'."
        )
    if score_kernel < 1 or score_kernel % 2 == 0:
        raise ConfigurationError(f"UNetDecoder: score_kernel is {score_kernel}; expected an odd number, as 1 or 3.")
