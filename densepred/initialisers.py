"""Initialisations by name, where the papers used them."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from densepred.errors import ConfigurationError

Initialisation = Literal["gaussian", "xavier", "caffe_xavier", "kaiming", "kaiming_uniform"]
"""Names that `initialise` knows."""


def caffe_xavier_(weight: Tensor) -> Tensor:
    """U(-a, a) with a = sqrt(3 / fan_in): what Caffe calls "xavier" (Glorot's own divides by the mean of both fans)."""
    bound = math.sqrt(3 / weight[0].numel())
    return nn.init.uniform_(weight, -bound, bound)


def kaiming_fan_in_(weight: Tensor) -> Tensor:
    """N(0, sqrt(2 / fan_in)): He et al. 2015, arXiv:1502.01852; U-Net's rule too (its N counts incoming nodes)."""
    return nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")


def kaiming_uniform_(weight: Tensor) -> Tensor:
    """U(-a, a) with a = sqrt(6 / fan_in): lasagne's HeUniform("relu"). PyTorch's own default has sqrt(1 / fan_in)."""
    return nn.init.kaiming_uniform_(weight, mode="fan_in", nonlinearity="relu")


def gaussian_(weight: Tensor) -> Tensor:
    """N(0, 0.01): AlexNet's rule, and that of most Caffe networks."""
    return nn.init.normal_(weight, 0.0, 0.01)


_RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "gaussian": gaussian_,
    "xavier": nn.init.xavier_uniform_,
    "caffe_xavier": caffe_xavier_,
    "kaiming": kaiming_fan_in_,
    "kaiming_uniform": kaiming_uniform_,
}


def initialise(module: nn.Module, name: Initialisation, bias: float = 0.0) -> None:
    """Draws the weights of all convolutions and linear layers inside `module` anew, by a rule's name.

    Args:
        module: A layer, or a network of them; normalisation layers are left alone.
        name: "gaussian" (N(0, 0.01), AlexNet), "xavier" (Glorot, Bengio 2010, uniform), "caffe_xavier" (Caffe's form of
            it), "kaiming" (normal, over incoming connections), "kaiming_uniform" (lasagne's HeUniform).
        bias: Value of the biases.

    Raises:
        ConfigurationError: If there is no such rule.

    Example:
        >>> layer = nn.Conv2d(64, 64, 3)
        >>> initialise(layer, "kaiming")
        >>> abs(layer.weight.std().item() / (2 / 576) ** 0.5 - 1) < 0.05
        True
    """
    if name not in _RULES:
        raise ConfigurationError(f"There is no initialisation {name!r}. Expected one of: {', '.join(_RULES)}.")
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            weight = layer.weight
            with torch.no_grad():
                # a transposed convolution's weight is (in, out, h, w): its rule reads the other way round
                _RULES[name](weight.transpose(0, 1) if isinstance(layer, nn.ConvTranspose2d) else weight)
                if is_parametrized(layer, "weight"):
                    layer.weight = weight  # under weight normalisation what was drawn into is a copy
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def shift_norms(module: nn.Module, shift: float) -> None:
    """Starts every batch norm inside `module` with that shift: 0.001 in the releases of DeconvNet and SegNet.

    Example:
        >>> layer = nn.BatchNorm2d(2)
        >>> shift_norms(layer, 0.5)
        >>> layer.bias.tolist()
        [0.5, 0.5]
    """
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.constant_(layer.bias, shift)


def initialise_as_torch7(module: nn.Module) -> None:
    """Draws weights and biases of all convolutions inside `module` as Torch7 does: U(-a, a), a = 1 / sqrt(fan_in).

    PyTorch's own default is the same for a convolution, but counts a transposed one's incoming connections by its
    outgoing maps.

    Example:
        >>> layer = nn.ConvTranspose2d(100, 4, 3)
        >>> initialise_as_torch7(layer)
        >>> 0.03 < layer.weight.abs().max() <= 1 / 30
        tensor(True)
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            bound = 1 / math.sqrt(layer.in_channels * math.prod(layer.kernel_size))
            for values in (layer.weight, layer.bias):
                if values is not None:
                    nn.init.uniform_(values, -bound, bound)


@torch.no_grad()
def identity_(weight: Tensor, groups: int, spread: float = 0.0) -> Tensor:
    """A convolution that passes `groups` values on, for channels that repeat them: Yu & Koltun's initialisation.

    With `a` of c_in channels in and `b` of c_out out, the centre tap is groups / c_out where
    floor(a * groups / c_in) = floor(b * groups / c_out); every other weight is drawn from N(0, spread). A chain of such
    layers from `groups` channels through multiples of them back to `groups` is the identity.

    Args:
        weight: Drawn anew, in place.
        groups: How many values are passed on: the classes.
        spread: Standard deviation of the other weights.

    Shape:
        weight: (c_out, c_in, k, k) with an odd k; c_in and c_out multiples of `groups`.

    Reference:
        Yu, Koltun. Multi-Scale Context Aggregation by Dilated Convolutions. ICLR 2016. arXiv:1511.07122.

    Example:
        >>> identity_(torch.empty(4, 2, 3, 3), groups=2)[:, :, 1, 1]
        tensor([[0.5000, 0.0000],
                [0.5000, 0.0000],
                [0.0000, 0.5000],
                [0.0000, 0.5000]])
    """
    outside, inside, height, width = weight.shape
    weight.normal_(0, spread) if spread else weight.zero_()
    b, a = torch.arange(outside) * groups // outside, torch.arange(inside) * groups // inside
    weight[:, :, height // 2, width // 2][b[:, None] == a] = groups / outside
    return weight
