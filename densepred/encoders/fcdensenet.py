"""FC-DenseNet's way down."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.blocks import Activation, Norm
from densepred.dense_block import FC_DENSENETS, DenseBlock, DenseLayer, DenseOptions, FCDenseNetName
from densepred.encoders.base import Encoder
from densepred.encoders.options import check_choice
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import initialise


class FCDenseNetEncoder(Encoder):
    """The way down of FC-DenseNet 56, 67 or 103 (the "One Hundred Layers Tiramisu"), or of any such network.

    A 3x3 convolution; then dense blocks, each followed by a transition down: batch norm, ReLU, 1x1 convolution that
    keeps the channels, dropout, 2x2 max pooling. A block's map is its input and its layers' new maps together; of the
    last block, the bottleneck, only the new maps are passed on, since only these go up again. `TiramisuDecoder` with
    the same name is the published way up.

    By default the network pads the image to a multiple of 32, and every decoder reads the maps. The published network
    takes images as they are: pooling rounds down, and the way up is cropped to the finer maps (360 x 480 pixels:
    180 x 240, 90 x 120, 45 x 60, 22 x 30, 11 x 15). Such maps need not cover the last rows and columns, so with
    `padded=False` only `TiramisuDecoder` reads them. On multiples of 32 both are the same.

    Trap: the published figures were measured with the batch's own statistics in evaluation (batches of 10 at test).
    `batch_statistics` does that, in the encoder and the decoder each; it can be set for a finished checkpoint. A
    picture's prediction then depends on which others are in its batch. The default uses running averages.

    Args:
        name: The published network whose numbers are used where none are given.
        in_channels: Channels of the image.
        mean: Mean of each channel, of an image in [0, 1]; by default 0: published without normalisation.
        std: As `mean`; by default 1.
        layers: Layers of each block on the way down, finest first; a transition down follows each.
        bottleneck: Layers of the last block.
        growth: Maps that each layer adds.
        first: Channels of the first convolution.
        norm: Normalisation before each convolution.
        activation: Nonlinearity before each convolution.
        dropout: Probability of dropping an activation after each convolution of a block or transition.
        bias: Whether convolutions have a bias; published with.
        batch_statistics: Use the batch's own statistics in evaluation too, as published; of `norm` "batch" alone.
        recompute: In training, compute concatenations, normalisations and nonlinearities again in the backward pass
            instead of keeping them: a fraction of the memory, the same gradients, no convolution is run twice.
        padded: Whether the network pads the image to the coarsest stride. False: as published, for `TiramisuDecoder`.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1]; 32 pixels a side or more.
        returns: maps at 1/1, 1/2, ... 1/32 of the size, rounded down. FC-DenseNet103: 112, 192, 304, 464, 656 and 240
            channels.

    Raises:
        ConfigurationError: If there is no such network, or the image is smaller than a cell of the coarsest map.

    Reference:
        Jégou, Drozdzal, Vazquez, Romero, Bengio. The One Hundred Layers Tiramisu: Fully Convolutional DenseNets for
        Semantic Segmentation. CVPR Workshops 2017. arXiv:1611.09326. The release corrects some of the paper's channel
        numbers (880, 1072, 800, 368), and is followed here.
        Pleiss et al. Memory-Efficient Implementation of DenseNets. 2017. arXiv:1707.06990 (`recompute`).

    Example:
        >>> encoder = FCDenseNetEncoder("fc_densenet56")
        >>> encoder.spec.channels
        (96, 144, 192, 240, 288, 48)
        >>> [tuple(feature.shape[-2:]) for feature in encoder(torch.zeros(1, 3, 45, 60))]
        [(45, 60), (22, 30), (11, 15), (5, 7), (2, 3), (1, 1)]
    """

    def __init__(
        self,
        name: FCDenseNetName = "fc_densenet103",
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        layers: tuple[int, ...] | None = None,
        bottleneck: int | None = None,
        growth: int | None = None,
        first: int = 48,
        norm: Norm = "batch",
        activation: Activation = "relu",
        dropout: float = 0.2,
        bias: bool = True,
        batch_statistics: bool = False,
        recompute: bool = False,
        padded: bool = True,
    ) -> None:
        super().__init__(
            in_channels, (0.0,) * in_channels if mean is None else mean, (1.0,) * in_channels if std is None else std
        )
        check_choice(type(self).__name__, "name", name, get_args(FCDenseNetName))
        published = FC_DENSENETS[name]
        layers = published.layers if layers is None else tuple(layers)
        bottleneck = published.bottleneck if bottleneck is None else bottleneck
        growth = published.growth if growth is None else growth
        if not layers or min(*layers, bottleneck, growth, first) < 1:
            raise ConfigurationError(
                f"{type(self).__name__}: layers {layers}, bottleneck {bottleneck}, growth {growth}, first {first}: "
                "expected at least one block before the bottleneck, and numbers of 1 or more."
            )
        options = DenseOptions(norm, activation, dropout, bias, batch_statistics, recompute)
        self.name = name
        self.padded = padded
        self.first = nn.Conv2d(in_channels, first, 3, padding=1, bias=bias)
        initialise(self.first, "kaiming_uniform")
        channels = [first]
        for count in layers:
            channels.append(channels[-1] + count * growth)
        self.blocks = nn.ModuleList(
            DenseBlock(before, count, growth, options) for before, count in zip(channels, layers, strict=False)
        )
        self.downs = nn.ModuleList(DenseLayer(width, width, 1, options) for width in channels[1:])
        self.bottleneck = DenseBlock(channels[-1], bottleneck, growth, options)
        strides = tuple(2**i for i in range(len(layers) + 1))
        # maps that do not cover the image are told apart by stating where they begin
        origins = () if padded else tuple((stride - 1) / 2 for stride in strides)
        self.spec = FeatureSpec((*channels[1:], bottleneck * growth), strides, origins)

    @property
    def multiple(self) -> int:
        """1, as published, or the coarsest stride."""
        return self.spec.strides[-1] if self.padded else 1

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to the blocks' maps, finest first, and the new maps of the bottleneck."""
        height, width = image.shape[-2:]
        coarsest = self.spec.strides[-1]
        if min(height, width) < coarsest:
            raise ConfigurationError(
                f"{type(self).__name__}: the image is {height} x {width}, but its coarsest map has a cell for each "
                f"{coarsest} x {coarsest} pixels. Enlarge or pad the image, or give fewer `layers`."
            )
        x = self.first(self.normalise(image))
        features: list[Tensor] = []
        for block, down in zip(self.blocks, self.downs, strict=True):
            skip = torch.cat([x, *block([x])], dim=1)
            features.append(skip)
            x = F.max_pool2d(down([skip]), 2)
        return [*features, torch.cat(self.bottleneck([x]), dim=1)]
