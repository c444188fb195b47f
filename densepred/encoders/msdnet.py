"""MSDNet: multi-scale dense blocks, after each of which an answer can be given."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor, nn

from densepred.encoders.base import Encoder
from densepred.encoders.multi_scale import MultiScaleLayer, MultiScaleStem, Scales, Transition
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec

_REDUCTION = 0.5  # of the channels, where a scale is dropped


class MSDNetEncoder(Encoder):
    """MSDNet: every layer works at several scales at once, so that coarse features are there from the first exit on.

    At each scale the maps of all layers are put together, as in a DenseNet; a layer adds `growth * factor` channels to
    a scale, half of them from the scale itself and half from the next finer one, by a strided convolution. After each
    block there is an exit: `AnytimeDecoder` has a head for it, and whoever is short of time, or sure already, does not
    compute the blocks behind it (`exits`).

    MSDNet was published for classification, where the finer scales are dropped on the way (`pruned`). Here all scales
    are kept to the end, since dense prediction needs fine maps at every exit. What an exit sees is then the first
    channels of the last maps (`spec.exits`), so that every other decoder may be used as well. The layers, their
    order, and with `pruned` the scales and transitions are those of the release.

    Args:
        in_channels: Channels of the image.
        blocks: Layers of each block; there is an exit after each.
        growth: Channels that a layer adds at the finest scale, times its factor.
        width: Channels of the first map, times its factor.
        factors: Of the channels of each scale, finest first; as many as there are scales.
        bottlenecks: A 1x1 convolution narrows what a 3x3 one reads to this multiple of what it adds, for each scale.
        stem: "imagenet" (stride 4: a 7x7 convolution of stride 2 and max pooling) or "cifar" (stride 1: a 3x3 one).
        pruned: Drop the finest scale after each of as many equal parts of the layers as there are scales, and halve
            the channels of the others there, as published for classification. The map of a dropped scale is its last
            one; the network then has no exits for dense prediction.
        mean: Mean of each channel, of an image in [0, 1]; ImageNet's by default.
        std: As `mean`.

    Attributes:
        blocks: The blocks, each a list of layers.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: a map a scale, finest first, at strides 4, 8, ... ("imagenet") or 1, 2, ... ("cifar").

    Raises:
        ConfigurationError: If there is no block or an empty one, fewer than two scales, not one bottleneck for each;
            if a scale would get an odd number of channels; if the scales to drop are more than the layers.

    Reference:
        Huang, Chen, Li, Wu, van der Maaten, Weinberger. Multi-Scale Dense Networks for Resource Efficient Image
        Classification. ICLR 2018. arXiv:1703.09844. The defaults are those of the release for ImageNet with five exits
        of four layers; CIFAR's are `blocks=(4, 2, ...)`, `growth=6`, `width=16`, three scales and the stem "cifar".

    Example:
        >>> import torch
        >>> encoder = MSDNetEncoder(blocks=(2, 1), growth=4, width=8, factors=(1, 2), bottlenecks=(1, 2))
        >>> encoder.spec
        FeatureSpec(channels=(20, 40), strides=(4, 8), exits=((16, 32), (20, 40)))
        >>> [[tuple(m.shape[1:]) for m in maps] for maps in encoder.exits(torch.rand(1, 3, 64, 64))]
        [[(16, 16, 16), (32, 8, 8)], [(20, 16, 16), (40, 8, 8)]]
    """

    def __init__(
        self,
        in_channels: int = 3,
        blocks: tuple[int, ...] = (4, 4, 4, 4, 4),
        growth: int = 16,
        width: int = 32,
        factors: tuple[int, ...] = (1, 2, 4, 4),
        bottlenecks: tuple[int, ...] = (1, 2, 4, 4),
        stem: Literal["cifar", "imagenet"] = "imagenet",
        pruned: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(in_channels, mean, std)
        scales = Scales(growth, tuple(factors), tuple(bottlenecks))
        _check(tuple(blocks), scales, stem, pruned)
        self.stem = MultiScaleStem(in_channels, width, scales, whole_size=stem == "cifar")
        channels = [width * factor for factor in factors]
        interval = math.ceil(sum(blocks) / len(factors))
        layers, finest = 0, 0
        self.blocks = nn.ModuleList()
        exits = []
        for count in blocks:
            block: list[nn.Module] = []
            for _ in range(count):
                before, finest = finest, layers // interval if pruned else 0
                layer = MultiScaleLayer(channels, scales, finest, drops=finest > before)
                block.append(layer)
                channels = layer.channels
                if finest > before:
                    transition = Transition(channels, scales, finest, _REDUCTION)
                    block.append(transition)
                    channels = transition.channels
                layers += 1
            self.blocks.append(nn.Sequential(*block))
            exits.append(tuple(channels))
        first = 1 if stem == "cifar" else 4
        strides = tuple(first * 2**scale for scale in range(len(factors)))
        self.spec = FeatureSpec(tuple(channels), strides, exits=() if pruned else tuple(exits))
        self._initialise()

    def _initialise(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                # the release's rule: over outgoing connections
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to the maps after the last block."""
        maps: list[Tensor] = self.stem(self.normalise(image))
        for block in self.blocks:
            maps = block(maps)
        return maps

    def exits(self, image: Tensor) -> Iterator[list[Tensor]]:
        """The maps after each block, which runs when its maps are asked for."""
        maps: list[Tensor] = self.stem(self.normalise(image))
        for block in self.blocks:
            maps = block(maps)
            yield maps


def _check(blocks: tuple[int, ...], scales: Scales, stem: str, pruned: bool) -> None:
    factors = scales.factors
    if not blocks or min(blocks) < 1:
        raise ConfigurationError(f"MSDNetEncoder: blocks {blocks}; give at least one, each of at least one layer.")
    if len(factors) < 2 or len(scales.bottlenecks) != len(factors):
        raise ConfigurationError(
            f"MSDNetEncoder: factors {factors} and bottlenecks {scales.bottlenecks}. Give at least two factors, one a "
            "scale, and as many bottlenecks."
        )
    if odd := [factor for factor in factors[1:] if scales.growth * factor % 2]:
        raise ConfigurationError(
            f"MSDNetEncoder: growth {scales.growth} times the factor {odd[0]} is odd, but half of what a layer adds "
            "comes from the finer scale. Give an even growth."
        )
    if stem not in ("cifar", "imagenet"):
        raise ConfigurationError(f"MSDNetEncoder: stem is {stem!r}. Expected cifar or imagenet.")
    interval = math.ceil(sum(blocks) / len(factors))
    if pruned and (sum(blocks) - 1) // interval >= len(factors):
        raise ConfigurationError(f"MSDNetEncoder: {sum(blocks)} layers are too few to drop {len(factors) - 1} scales.")
