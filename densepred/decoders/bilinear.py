"""Upsampling of planes: bilinear, bilinear at first and learned, nearest."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.errors import ConfigurationError

Upsampling = Literal["bilinear", "learned", "nearest"]
"""Fixed bilinear, a kernel for each plane that starts as bilinear, or fixed nearest."""


def resized(planes: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    """Bilinear resize of `planes` to the size of `like`; `align_corners` puts the corner cells' centres together."""
    return F.interpolate(planes, size=like.shape[-2:], mode="bilinear", align_corners=align_corners)


def enlarged_to_image(planes: Tensor, stride: int) -> Tensor:
    """Planes of that stride at stride 1, the centres of the corner cells in the corner pixels."""
    return F.interpolate(planes, scale_factor=float(stride), mode="bilinear", align_corners=True)


def kernel_size(upsampling: Upsampling, factor: int) -> int:
    """Side of the kernel of the transposed convolution that a layer is.

    Example:
        >>> kernel_size("bilinear", 32), kernel_size("learned", 3), kernel_size("nearest", 2)
        (64, 5, 2)
    """
    return factor if upsampling == "nearest" else 2 * factor - factor % 2


def bilinear_kernel(factor: int) -> Tensor:
    """The kernel of a transposed convolution of stride `factor` that interpolates bilinearly.

    Shape:
        returns: (k, k) with k = 2 * factor, or 2 * factor - 1 where the factor is odd; it sums to factor**2.

    Example:
        >>> bilinear_kernel(2)[1]
        tensor([0.1875, 0.5625, 0.5625, 0.1875])
    """
    size = kernel_size("bilinear", factor)
    line = 1 - (torch.arange(size) - (size - 1) / 2).abs() / factor
    return line[:, None] * line


class BilinearTransposedConv(nn.Module):
    """Upsamples each plane with a learned kernel of its own that starts as bilinear interpolation.

    A depthwise transposed convolution of kernel 2f, stride f. Padded, it sees the planes with their border repeated (a
    plain transposed convolution sees zeros there and fades the planes out over half a cell), so that at first it equals
    `interpolate(mode="bilinear", align_corners=False)` everywhere. Unpadded it is the plain one, as in Caffe: what it
    gives goes half a cell beyond the planes on every side, and fades there.

    Args:
        channels: Number of planes.
        factor: How many times larger.
        padded: Whether it covers what the planes cover.

    Shape:
        (B, channels, H, W) -> (B, channels, H * factor, W * factor); unpadded (B, channels, (H + 1) * factor,
        (W + 1) * factor), one less where the factor is odd.

    Example:
        >>> ones = torch.ones(1, 1, 2, 2)
        >>> BilinearTransposedConv(1, factor=2)(ones)[0, 0, 0].detach()
        tensor([1., 1., 1., 1.])
        >>> BilinearTransposedConv(1, factor=2, padded=False)(ones)[0, 0, 1].detach()
        tensor([0.1875, 0.5625, 0.7500, 0.7500, 0.5625, 0.1875])
    """

    def __init__(self, channels: int, factor: int, padded: bool = True) -> None:
        super().__init__()
        self.factor = factor
        self.padded = padded
        self.weight = nn.Parameter(bilinear_kernel(factor).repeat(channels, 1, 1, 1))

    def forward(self, planes: Tensor) -> Tensor:
        """Planes, `factor` times larger."""
        if not self.padded:
            return F.conv_transpose2d(planes, self.weight, stride=self.factor, groups=planes.shape[1])
        bordered = F.pad(planes, (1, 1, 1, 1), mode="replicate")
        # padding crops: half a factor as in any bilinear kernel, and the factor that the repeated border became
        crop = self.factor // 2 + self.factor
        return F.conv_transpose2d(bordered, self.weight, stride=self.factor, padding=crop, groups=planes.shape[1])


class UnpaddedBilinear(nn.Module):
    """The unpadded `BilinearTransposedConv` as it starts, fixed: an interpolation of the planes with zeros around.

    Args:
        factor: How many times larger.

    Shape:
        (B, C, H, W) -> (B, C, (H + 1) * factor, (W + 1) * factor), one less where the factor is odd.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, planes: Tensor) -> Tensor:
        """Planes, `factor` times larger and half a cell more on every side."""
        bordered = F.pad(planes, (1, 1, 1, 1))
        enlarged = F.interpolate(bordered, scale_factor=float(self.factor), mode="bilinear", align_corners=False)
        crop = (self.factor + 1) // 2
        return enlarged[..., crop:-crop, crop:-crop]


def upsampling_layer(upsampling: Upsampling, channels: int, factor: int, padded: bool = True) -> nn.Module:
    """The layer of that name.

    Args:
        upsampling: "bilinear", "learned" (see `BilinearTransposedConv`) or "nearest".
        channels: Number of planes.
        factor: How many times larger.
        padded: Whether it covers what the planes cover, and repeats their border; else it is Caffe's deconvolution,
            which goes half a cell beyond (but for nearest, whose kernel does not reach over a cell).

    Raises:
        ConfigurationError: If there is no such name.
    """
    match upsampling:
        case "learned":
            return BilinearTransposedConv(channels, factor, padded)
        case "bilinear" if not padded:
            return UnpaddedBilinear(factor)
        case "bilinear":
            return nn.Upsample(scale_factor=float(factor), mode="bilinear", align_corners=False)
        case "nearest":
            return nn.Upsample(scale_factor=float(factor), mode="nearest")
    raise ConfigurationError(f"upsampling is {upsampling!r}. Expected bilinear, learned or nearest.")
