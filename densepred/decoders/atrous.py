"""Dilated convolutions: their rates at any stride, and their separable forms."""

from typing import Literal, get_args

from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from densepred.blocks import Activation, ConvNormAct, Norm, nonlinearity, normalisation
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec

Convolutions = Literal["dense", "separable", "separable_normalised"]
"""How a 3x3 convolution is built; see `conv3x3`."""


def scaled_rates(rates: tuple[int, ...], published_stride: int, spec: FeatureSpec) -> tuple[int, ...]:
    """Dilations that span, on the encoder's coarsest map, the pixels that `rates` span at the published stride.

    Raises:
        ConfigurationError: If there are no rates, or one below 1.

    Example:
        >>> scaled_rates((6, 12, 18), 16, FeatureSpec((2048,), (8,)))
        (12, 24, 36)
    """
    if not rates or min(rates) < 1:
        raise ConfigurationError(f"The rates (dilations) are {tuple(rates)}; expected one or more numbers above 0.")
    return tuple(max(1, round(rate * published_stride / spec.strides[-1])) for rate in rates)


def conv3x3(
    kind: Convolutions, in_channels: int, out_channels: int, dilation: int, norm: Norm, activation: Activation
) -> nn.Sequential:
    """A 3x3 convolution, normalisation and nonlinearity.

    Args:
        kind: "dense"; "separable", a 3x3 convolution of each channel and a 1x1 across them
            (segmentation_models_pytorch); "separable_normalised" with normalisation and nonlinearity between the two,
            as in DeepLab v3+'s Xception.
        in_channels: Channels before.
        out_channels: Channels after.
        dilation: Of the 3x3 convolution.
        norm: See `densepred.blocks.normalisation`.
        activation: See `densepred.blocks.nonlinearity`.

    Raises:
        ConfigurationError: If there is no such kind.
    """
    if kind not in get_args(Convolutions):
        raise ConfigurationError(f"convolutions is {kind!r}. Expected one of: {', '.join(get_args(Convolutions))}.")
    if kind == "dense":
        return ConvNormAct(in_channels, out_channels, 3, dilation=dilation, norm=norm, activation=activation)
    normalised = kind == "separable_normalised"
    # a bias before the 1x1 convolution would be one too many: that has its own, or a normalisation's
    bias = normalised and norm in ("weight", "none")
    width = 2 * in_channels if normalised and activation == "maxout" else in_channels
    depthwise = nn.Conv2d(in_channels, width, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=bias)
    between = [normalisation(norm, width), nonlinearity(activation)] if normalised else []
    pointwise = ConvNormAct(in_channels, out_channels, 1, norm=norm, activation=activation)
    return nn.Sequential(weight_norm(depthwise) if norm == "weight" else depthwise, *between, pointwise)
