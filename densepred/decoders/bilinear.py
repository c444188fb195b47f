"""Bilinear interpolation as a transposed convolution, which can be learned further."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def bilinear_kernel(factor: int) -> Tensor:
    """The kernel of a transposed convolution of stride `factor` that interpolates bilinearly.

    Shape:
        returns: (k, k) with k = 2 * factor, or 2 * factor - 1 where the factor is odd; it sums to factor**2.

    Example:
        >>> bilinear_kernel(2)[1]
        tensor([0.1875, 0.5625, 0.5625, 0.1875])
    """
    size = 2 * factor - factor % 2
    line = 1 - (torch.arange(size) - (size - 1) / 2).abs() / factor
    return line[:, None] * line


class BilinearTransposedConv(nn.Module):
    """Upsamples each plane with a learned kernel of its own that starts as bilinear interpolation.

    A depthwise transposed convolution of kernel 2f, stride f. It sees the planes with their border repeated (a plain
    transposed convolution sees zeros there and fades the planes out over half a cell), so that at first it equals
    `interpolate(mode="bilinear", align_corners=False)` everywhere.

    Args:
        channels: Number of planes.
        factor: How many times larger.

    Shape:
        (B, channels, H, W) -> (B, channels, H * factor, W * factor).
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.weight = nn.Parameter(bilinear_kernel(factor).repeat(channels, 1, 1, 1))

    def forward(self, planes: Tensor) -> Tensor:
        """Planes, `factor` times larger."""
        bordered = F.pad(planes, (1, 1, 1, 1), mode="replicate")
        # padding crops: half a factor as in any bilinear kernel, and the factor that the repeated border became
        crop = self.factor // 2 + self.factor
        return F.conv_transpose2d(bordered, self.weight, stride=self.factor, padding=crop, groups=planes.shape[1])
