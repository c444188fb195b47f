"""What the rooms share: layers, resizing, precision."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormAct(nn.Sequential):
    """Convolution, batch norm, ReLU; "same" padding for odd kernels.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1
    ) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(
            # bias-free: the batch norm that follows has its own
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


def resize_like(planes: Tensor, like: Tensor) -> Tensor:
    """Bilinear resize of `planes` (B, C, h, w) to the height and width of `like` (cell edges aligned, not centres)."""
    if planes.shape[-2:] == like.shape[-2:]:
        return planes
    return F.interpolate(planes, size=like.shape[-2:], mode="bilinear", align_corners=False)


def full_precision(values: Tensor) -> Tensor:
    """Float32 (or float64, if it is that already), so that losses and metrics are exact under autocast.

    Example:
        >>> full_precision(torch.ones(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return values if values.dtype == torch.float64 else values.float()
