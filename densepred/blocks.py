"""What the rooms share: layers, their options by name, resizing, precision."""

from math import gcd
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from densepred.errors import ConfigurationError

Norm = Literal["batch", "group", "layer", "instance", "weight", "none"]
"""How a convolution's output is normalised; see `normalisation`."""

Activation = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "maxout", "none"]
"""The nonlinearity after a convolution; see `nonlinearity`."""


class BatchNormOfFew(nn.BatchNorm2d):
    """Batch norm that uses its running statistics where a channel has a single value.

    One value has no variance: PyTorch refuses to normalise it in training. This happens to a globally pooled map in a
    batch of one image. Training and evaluation then agree; the running statistics are not updated by such a batch.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalised values."""
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


class Maxout(nn.Module):
    """The larger of each two neighbouring channels.

    Shape:
        (B, 2 * C, H, W) -> (B, C, H, W).

    Reference:
        Goodfellow et al. Maxout Networks. ICML 2013. arXiv:1302.4389 (two pieces).

    Example:
        >>> Maxout()(torch.tensor([1.0, 3.0, -2.0, -5.0]).view(1, 4, 1, 1)).flatten()
        tensor([ 3., -2.])
    """

    def forward(self, values: Tensor) -> Tensor:
        """Half the channels."""
        # not amax: the gradient of a tie would be split, and amax is slower
        return torch.maximum(values[:, ::2], values[:, 1::2])


def normalisation(name: Norm, channels: int) -> nn.Module:
    """The layer of that name.

    Args:
        name: "batch", "group" (32 groups, or as many as divide the channels), "layer" (over channels and pixels of an
            image, Ba et al. 2016, arXiv:1607.06450), "instance" (per image and channel, with affine parameters);
            "weight" (Salimans, Kingma 2016, arXiv:1602.07868) is a matter of the convolution itself, so it gives an
            identity, as does "none".
        channels: Channels to normalise.

    Raises:
        ConfigurationError: If there is no such name.
    """
    match name:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(gcd(32, channels), channels)
        case "layer":
            return nn.GroupNorm(1, channels)
        case "instance":
            return nn.GroupNorm(channels, channels)
        case "weight" | "none":
            return nn.Identity()
    raise ConfigurationError(f"norm is {name!r}. Expected batch, group, layer, instance, weight or none.")


def nonlinearity(name: Activation) -> nn.Module:
    """The layer of that name; "maxout" halves the channels.

    Raises:
        ConfigurationError: If there is no such name.
    """
    match name:
        case "relu":
            return nn.ReLU(inplace=True)
        case "leaky_relu":
            return nn.LeakyReLU(0.01, inplace=True)
        case "elu":
            return nn.ELU(inplace=True)
        case "gelu":
            return nn.GELU()
        case "silu":
            return nn.SiLU(inplace=True)
        case "maxout":
            return Maxout()
        case "none":
            return nn.Identity()
    raise ConfigurationError(f"activation is {name!r}. Expected relu, leaky_relu, elu, gelu, silu, maxout or none.")


class ConvNormAct(nn.Sequential):
    """Convolution, normalisation, nonlinearity; "same" padding for odd kernels, or none.

    Args:
        in_channels: Channels before.
        out_channels: Channels after.
        kernel_size: Side of the kernel.
        stride: Stride of the convolution.
        dilation: Dilation of the convolution.
        norm: See `normalisation`.
        activation: See `nonlinearity`. With "maxout" the convolution has twice the channels.
        padded: Whether the convolution is padded to keep the size.
        bias: Whether the convolution has a bias; by default where no normalisation with a bias of its own follows.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)); without padding each side loses
        dilation * (kernel_size - 1) cells.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        norm: Norm = "batch",
        activation: Activation = "relu",
        padded: bool = True,
        bias: bool | None = None,
    ) -> None:
        width = 2 * out_channels if activation == "maxout" else out_channels
        padding = dilation * (kernel_size // 2) if padded else 0
        bias = norm in ("weight", "none") if bias is None else bias
        convolution = nn.Conv2d(in_channels, width, kernel_size, stride, padding, dilation, bias=bias)
        super().__init__(
            weight_norm(convolution) if norm == "weight" else convolution,
            normalisation(norm, width),
            nonlinearity(activation),
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
