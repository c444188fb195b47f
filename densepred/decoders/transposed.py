"""Learned upsampling without skip connections."""

import math
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from densepred.blocks import Activation, Norm, nonlinearity, normalisation
from densepred.decoders.base import Decoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec

LearnedUpsampling = Literal["transposed", "resize", "pixel_shuffle"]
"""How a step of `TransposedConvDecoder` doubles the size."""

_KERNEL = {"transposed": 4, "resize": 3, "pixel_shuffle": 3}


class TransposedConvDecoder(Decoder):
    """Upsamples the coarsest map with learned steps that double the size, without skip connections.

    Each step is an upsampling convolution, norm and activation; after the last one a 1x1 convolution gives the planes.

    - "transposed": a transposed convolution of stride 2. With a kernel of 4 every output cell sees the same number of
      taps, and no checkerboard is built in; with 3 one cell sees 1, its neighbours 2, the next 4. Even so the taps that
      two neighbours see differ, and with random weights the pattern is there at first.
    - "resize": nearest upsampling, then a convolution. It cannot draw a checkerboard.
    - "pixel_shuffle": a convolution of four times the channels, rearranged into cells of half the size, initialised
      by `icnr_`: it begins as "resize" after the convolution, without a checkerboard, but can learn one.

    `densepred.anatomy` measures the pattern (`checkerboard`).

    Args:
        spec: The encoder's maps; only the coarsest is read.
        out_channels: Number of planes.
        widths: Output channels of the steps; `len(widths)` steps upsample by `2 ** len(widths)`.
        upsampling: "transposed", "resize" or "pixel_shuffle".
        kernel_size: Side of the steps' kernels: 2 or more for "transposed" (default 4; an odd one also moves the planes
            by half a cell a step), odd for the others (default 3).
        norm: See `densepred.blocks.normalisation`.
        activation: See `densepred.blocks.nonlinearity`.
        dropout: Probability of dropping an activation before the last convolution.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_last * 2**n, W_last * 2**n) with n = len(widths).

    Raises:
        ConfigurationError: If the steps would upsample past the image; if there is no such upsampling, or it has no
            such kernel.

    Reference:
        Xiao, Wu, Wei. Simple Baselines for Human Pose Estimation and Tracking. ECCV 2018. arXiv:1804.06208
        (three steps of 256 channels there).
        Odena, Dumoulin, Olah. Deconvolution and Checkerboard Artifacts. Distill 2016 (kernel and stride; resize).
        Shi et al. Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural
        Network. CVPR 2016. arXiv:1609.05158 (pixel shuffle; the rearrangement after each convolution here).
        Aitken et al. Checkerboard artifact free sub-pixel convolution. 2017. arXiv:1707.02937 (ICNR).

    Example:
        >>> decoder = TransposedConvDecoder(FeatureSpec((512,), (32,)), out_channels=21)
        >>> decoder([torch.zeros(1, 512, 4, 5)]).shape
        torch.Size([1, 21, 32, 40])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        widths: tuple[int, ...] = (256, 256, 256),
        upsampling: LearnedUpsampling = "transposed",
        kernel_size: int | None = None,
        norm: Norm = "batch",
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, out_channels)
        stride = spec.strides[-1]
        if 2 ** len(widths) > stride:
            raise ConfigurationError(
                f"TransposedConvDecoder: {len(widths)} steps upsample by {2 ** len(widths)}, past the image: the "
                f"encoder's coarsest map has stride {stride}. Give at most {int(math.log2(stride))} widths."
            )
        kernel_size = _kernel(upsampling, kernel_size)
        channels = (spec.channels[-1], *widths)
        steps: list[nn.Module] = []
        for before, after in pairwise(channels):
            # maxout keeps the larger of each two channels
            width = 2 * after if activation == "maxout" else after
            steps += [
                *_doubling(before, width, upsampling, kernel_size, norm),
                normalisation(norm, width),
                nonlinearity(activation),
            ]
        self.steps = nn.Sequential(*steps)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(channels[-1], out_channels, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        planes: Tensor = self.score(self.dropout(self.steps(features[-1])))
        return planes


def _kernel(upsampling: LearnedUpsampling, size: int | None) -> int:
    if upsampling not in _KERNEL:
        raise ConfigurationError(
            f"TransposedConvDecoder: upsampling is {upsampling!r}. Expected one of: "
            f"{', '.join(get_args(LearnedUpsampling))}."
        )
    if size is None:
        return _KERNEL[upsampling]
    if upsampling == "transposed" and size < 2:
        raise ConfigurationError(
            f"TransposedConvDecoder: kernel_size is {size}; a transposed convolution of stride 2 leaves gaps below 2. "
            "Give 2 or more; 4 builds no checkerboard in."
        )
    if upsampling != "transposed" and size % 2 == 0:
        raise ConfigurationError(
            f"TransposedConvDecoder: kernel_size is {size}; upsampling {upsampling!r} keeps the size of a map by "
            "padding an odd kernel. Give 1, 3, 5, ..."
        )
    return size


def _doubling(before: int, after: int, upsampling: LearnedUpsampling, kernel_size: int, norm: Norm) -> list[nn.Module]:
    """Layers that double the size: (B, before, H, W) to (B, after, 2 H, 2 W)."""
    # a normalisation with a bias of its own makes the convolution's needless
    bias = norm in ("weight", "none")
    if upsampling == "transposed":
        padding = (kernel_size - 1) // 2
        further = 2 - kernel_size + 2 * padding
        convolution: nn.Module = nn.ConvTranspose2d(before, after, kernel_size, 2, padding, further, bias=bias)
        return [weight_norm(convolution, dim=1) if norm == "weight" else convolution]
    shuffled = upsampling == "pixel_shuffle"
    plain = nn.Conv2d(before, 4 * after if shuffled else after, kernel_size, padding=kernel_size // 2, bias=bias)
    if shuffled:
        icnr_(plain)
    convolution = weight_norm(plain) if norm == "weight" else plain
    return [convolution, nn.PixelShuffle(2)] if shuffled else [nn.Upsample(scale_factor=2.0), convolution]


@torch.no_grad()
def icnr_(convolution: nn.Conv2d, factor: int = 2) -> None:
    """Gives the channels that a pixel shuffle joins into one the same weights: nearest upsampling, to begin with.

    Args:
        convolution: Followed by `nn.PixelShuffle(factor)`. Of its weights and biases, which keep their distribution,
            the first of each factor**2 channels are kept and repeated.
        factor: Of the shuffle.

    Reference:
        Aitken et al. Checkerboard artifact free sub-pixel convolution. 2017. arXiv:1707.02937.

    Example:
        >>> convolution = nn.Conv2d(1, 4, 1)
        >>> icnr_(convolution)
        >>> convolution.weight.unique().numel()
        1
    """
    for parameter in (convolution.weight, convolution.bias):
        if parameter is not None:
            parameter.copy_(parameter[:: factor**2].repeat_interleave(factor**2, dim=0))
