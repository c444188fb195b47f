"""What MSDNet is stacked from: layers that work at several scales at once."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from densepred.blocks import ConvNormAct


class Scales(NamedTuple):
    """What the scales of a network have in common.

    Args:
        growth: Channels that a layer adds, times the factor of the scale.
        factors: Of the channels of each scale, finest first.
        bottlenecks: Of each scale the width of a layer's 1x1 convolution, as a multiple of what is added.
    """

    growth: int
    factors: tuple[int, ...]
    bottlenecks: tuple[int, ...]


class MultiScaleStem(nn.Module):
    """The first map of each scale: of the finest one from the image, of every other from the next finer.

    Args:
        in_channels: Channels of the image.
        width: Channels of the first map, times the factor of the scale.
        scales: See `Scales`.
        whole_size: Whether the finest scale is that of the image; else a quarter of it.

    Shape:
        (B, in_channels, H, W) -> a list of (B, width * factor, ...), finest first.
    """

    def __init__(self, in_channels: int, width: int, scales: Scales, whole_size: bool) -> None:
        super().__init__()
        widths = [width * factor for factor in scales.factors]
        self.finest: nn.Module = (
            ConvNormAct(in_channels, widths[0])
            if whole_size
            # with a bias, as in the release
            else nn.Sequential(ConvNormAct(in_channels, widths[0], 7, stride=2, bias=True), nn.MaxPool2d(3, 2, 1))
        )
        self.coarser = nn.ModuleList(ConvNormAct(fine, coarse, stride=2) for fine, coarse in pairwise(widths))

    def forward(self, image: Tensor) -> list[Tensor]:
        """The maps, finest first."""
        maps = [self.finest(image)]
        for layer in self.coarser:
            maps.append(layer(maps[-1]))
        return maps


class MultiScaleLayer(nn.Module):
    """Adds channels to each scale: from the scale itself, and from the next finer one.

    Args:
        channels: Of each scale before, finest first.
        scales: See `Scales`.
        finest: The finest scale that still grows; finer ones are handed on as they are.
        drops: Whether the scale before `finest` grew until now; it is read a last time.

    Attributes:
        channels: Of each scale afterwards.

    Shape:
        maps: a list of (B, C_s, H_s, W_s), finest first.
        returns: the same with more channels, the new ones last.
    """

    def __init__(self, channels: Sequence[int], scales: Scales, finest: int, drops: bool) -> None:
        super().__init__()
        self.finest = finest
        self.channels = list(channels)
        self.down, self.normal = nn.ModuleDict(), nn.ModuleDict()
        for scale in range(finest, len(channels)):
            new = scales.growth * scales.factors[scale]
            if scale > finest or drops:
                finer = scale - 1
                self.down[str(scale)] = _path(channels[finer], new // 2, scales.bottlenecks[finer], stride=2)
            own = new // 2 if str(scale) in self.down else new
            self.normal[str(scale)] = _path(channels[scale], own, scales.bottlenecks[scale], stride=1)
            self.channels[scale] += new

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """More channels."""
        grown = maps[: self.finest]
        for scale in range(self.finest, len(maps)):
            key = str(scale)
            new = [maps[scale]]
            if key in self.down:
                new.append(self.down[key](maps[scale - 1]))
            grown.append(torch.cat([*new, self.normal[key](maps[scale])], dim=1))
        return grown


def _path(in_channels: int, out_channels: int, bottleneck: int, stride: int) -> nn.Sequential:
    inner = min(in_channels, bottleneck * out_channels)
    return nn.Sequential(ConvNormAct(in_channels, inner, 1), ConvNormAct(inner, out_channels, stride=stride))


class Transition(nn.Module):
    """Fewer channels at the scales that are left, by 1x1 convolutions.

    Args:
        channels: Of each scale before, finest first.
        scales: See `Scales`.
        finest: The finest scale that is left.
        share: Of the channels that stay.

    Attributes:
        channels: Of each scale afterwards.

    Shape:
        maps: a list of (B, C_s, H_s, W_s), finest first; returns the same with fewer channels.
    """

    def __init__(self, channels: Sequence[int], scales: Scales, finest: int, share: float) -> None:
        super().__init__()
        self.finest = finest
        # rounded at a factor of 1, as in the release
        left = [
            int(share * (before // factor)) * factor for before, factor in zip(channels, scales.factors, strict=True)
        ]
        self.channels = [*channels[:finest], *left[finest:]]
        self.layers = nn.ModuleList(
            ConvNormAct(before, after, 1) for before, after in zip(channels[finest:], left[finest:], strict=True)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Fewer channels."""
        narrow = zip(self.layers, maps[self.finest :], strict=True)
        return [*maps[: self.finest], *(layer(planes) for layer, planes in narrow)]
