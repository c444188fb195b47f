"""The unified perceptual parsing network's decoder."""

import torch
from torch import Tensor, nn

from densepred.blocks import Activation, ConvNormAct, Norm, resize_like
from densepred.decoders.base import Decoder
from densepred.decoders.fpn import pyramid_start
from densepred.decoders.pspnet import PyramidPooling
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import initialise


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell by itself.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalised values."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class UPerNetDecoder(Decoder):
    """A feature pyramid under a pyramid-pooled coarsest map, all its levels fused at the finest one's size.

    The coarsest map goes through pyramid pooling and a 3x3 convolution. On the way up (bilinear) the finer maps are
    added, each through a 1x1 convolution, and each sum is smoothed by a 3x3 convolution. All levels are brought to the
    finest one's size, concatenated, fused by a 3x3 convolution and scored. Every convolution but the last has
    normalisation and nonlinearity.

    Args:
        spec: The encoder's maps.
        out_channels: Number of planes.
        width: Channels of every level, of each pooled map and after the fusion.
        bins: Windows a side of each pooled map; see `PyramidPooling`.
        finest_stride: Maps of a finer stride are not read; where all are finer, the coarsest is.
        norm: Normalisation; see `PyramidPooling` for that of few values.
        activation: Nonlinearity.
        dropout: Probability of dropping a channel of an image before the scores.
        normalise_maps: Layer norm over the channels of each cell of each map first, for encoders whose maps come
            without a norm (ConvNeXt, Swin, ViT); segmentation_models_pytorch does it always.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, h, w) at the finest stride read.

    Raises:
        ConfigurationError: If `finest_stride` is not positive, or `bins` is empty or has a number below 1.

    Reference:
        Xiao, Liu, Zhou, Jiang, Sun. Unified Perceptual Parsing for Scene Understanding. ECCV 2018. arXiv:1807.10221
        (the scene and part branch; scores start near zero here, and there are no auxiliary tasks' heads).
        With `width=256, normalise_maps=True` on `ResNetEncoder("resnet34")` the planes are those of
        segmentation_models_pytorch's `UPerNet("resnet34")`. One difference remains: it enlarges them to the image with
        the centres of the corner cells on top of each other, the network with the cells' edges, so that cells keep
        their place.

    Example:
        >>> decoder = UPerNetDecoder(FeatureSpec((8, 16, 32), (4, 8, 16)), out_channels=3, width=8)
        >>> decoder([torch.rand(2, 8, 12, 16), torch.rand(2, 16, 6, 8), torch.rand(2, 32, 3, 4)]).shape
        torch.Size([2, 3, 12, 16])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        width: int = 512,
        bins: tuple[int, ...] = (1, 2, 3, 6),
        finest_stride: int = 4,
        norm: Norm = "batch",
        activation: Activation = "relu",
        dropout: float = 0.0,
        normalise_maps: bool = False,
    ) -> None:
        super().__init__(spec, out_channels)
        if not bins or min(bins) < 1:
            raise ConfigurationError(f"UPerNetDecoder: bins are {bins}; expected numbers above 0, such as 1, 2, 3, 6.")
        self.start = pyramid_start("UPerNetDecoder", spec, finest_stride)
        channels = spec.channels[self.start :]

        def convolution(before: int, kernel: int) -> ConvNormAct:
            return ConvNormAct(before, width, kernel, norm=norm, activation=activation)

        self.norms = nn.ModuleList(ChannelNorm(n, eps=1e-6) if normalise_maps else nn.Identity() for n in channels)
        self.pooling = PyramidPooling(channels[-1], width, bins, norm, activation=activation)
        self.context = convolution(self.pooling.channels, 3)
        self.laterals = nn.ModuleList(convolution(before, 1) for before in channels[:-1])
        self.smooth = nn.ModuleList(convolution(width, 3) for _ in channels[:-1])
        self.fuse = convolution(len(channels) * width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.score = nn.Conv2d(width, out_channels, 1)
        initialise(self, "kaiming")  # the release's rule
        initialise(self.score, "gaussian")

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        *finer, coarsest = [norm(f) for norm, f in zip(self.norms, features[self.start :], strict=True)]
        sums = [self.context(self.pooling(coarsest))]
        for lateral, feature in zip(reversed(self.laterals), reversed(finer), strict=True):
            skip = lateral(feature)
            sums.insert(0, resize_like(sums[0], skip) + skip)
        levels = [smooth(feature) for smooth, feature in zip(self.smooth, sums[:-1], strict=True)]
        levels.append(sums[-1])
        fused = self.fuse(torch.cat([resize_like(level, levels[0]) for level in levels], dim=1))
        planes: Tensor = self.score(self.dropout(fused))
        return planes
