"""Full-resolution residual networks."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.blocks import ConvNormAct, resize_like
from densepred.encoders.base import Encoder
from densepred.encoders.options import check_choice
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import initialise

FRRNName = Literal["frrn_a", "frrn_b"]


class FRRNNumbers(NamedTuple):
    """What tells the published networks apart: (units, multiple of the width) of each stage down and up."""

    downs: tuple[tuple[int, int], ...]
    ups: tuple[tuple[int, int], ...]


FRRNS: dict[str, FRRNNumbers] = {
    "frrn_a": FRRNNumbers(((3, 2), (4, 4), (2, 8), (2, 8)), ((2, 4), (2, 4), (2, 2))),
    "frrn_b": FRRNNumbers(((3, 2), (4, 4), (2, 8), (2, 8), (2, 8)), ((2, 4), (2, 4), (2, 4), (2, 2))),
}
_EPSILON = 1e-4  # lasagne's, in batch norm


class FRRNEncoder(Encoder):
    """A full-resolution residual network, FRRN A or B: one stream for where things are, one for what they are.

    The residual stream keeps the image's resolution; every unit adds to it and nothing else touches it, so borders stay
    sharp and gradients reach every unit directly. The pooling stream goes down to a 16th (A) or a 32nd (B) of the
    resolution and comes back, so it sees the whole scene. A full-resolution residual unit reads both: the residual
    stream is max-pooled to the pooling stream's size and put next to it, two 3x3 convolutions with batch norm and ReLU
    make the new pooling stream, and a 1x1 convolution of that, repeated to full size, is added to the residual stream.

    With `PointwiseDecoder` it is the published network. The pooling stream is enlarged bilinearly, the residual stream
    by repetition; there is no ReLU after the sums.

    Differs from the release: its bilinear enlargement (Theano's) puts every other value on a coarse one, a quarter of a
    coarse cell off; here cells keep their edges, as everywhere in this package.

    Args:
        name: The published network.
        in_channels: Channels of the image.
        mean: Mean of each channel, of an image in [0, 1]; by default 0: published without normalisation.
        std: As `mean`; by default 1.
        width: Channels at full resolution; further down they are 2, 4 and 8 times as many.
        residual: Channels of the residual stream.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1]; 16 pixels a side or more (B: 32).
        returns: one map (B, width, H, W).

    Raises:
        ConfigurationError: If there is no such network, a number is below 1, or the image is smaller than a cell of the
            coarsest map.

    Reference:
        Pohlen, Hermans, Mathias, Leibe. Full-Resolution Residual Networks for Semantic Segmentation in Street Scenes.
        CVPR 2017. arXiv:1611.08323. Widths, shortcuts, biases and initialisation are those of the release.

    Example:
        >>> encoder = FRRNEncoder("frrn_a", width=4, residual=4)
        >>> encoder.spec, encoder.multiple
        (FeatureSpec(channels=(4,), strides=(1,)), 16)
        >>> [tuple(feature.shape) for feature in encoder(torch.zeros(1, 3, 32, 48))]
        [(1, 4, 32, 48)]
    """

    def __init__(
        self,
        name: FRRNName = "frrn_b",
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        width: int = 48,
        residual: int = 32,
    ) -> None:
        super().__init__(
            in_channels, (0.0,) * in_channels if mean is None else mean, (1.0,) * in_channels if std is None else std
        )
        check_choice(type(self).__name__, "name", name, get_args(FRRNName))
        if min(width, residual) < 1:
            raise ConfigurationError(
                f"{type(self).__name__}: width is {width}, residual {residual}; expected 1 or more (48 and 32 as "
                "published)."
            )
        downs, ups = FRRNS[name]
        self.name = name
        self.coarsest = 1 << len(downs)
        self.stem = nn.Sequential(ConvNormAct(in_channels, width, 5), *(ResidualUnit(width, width) for _ in range(3)))
        self.split = ConvNormAct(width, residual, 1, activation="none")
        self.units = nn.ModuleList()
        channels, stride = width, 1
        for numbers, down in ((downs, True), (ups, False)):
            for count, multiple in numbers:
                stride = stride * 2 if down else stride // 2
                for i in range(count):
                    pool = down and i == 0
                    unit = FullResolutionResidualUnit(channels, width * multiple, residual, stride, pool)
                    channels = width * multiple
                    self.units.append(unit)
        self.merge = nn.Sequential(
            ResidualUnit(channels + residual, width), *(ResidualUnit(width, width) for _ in range(2))
        )
        self.spec = FeatureSpec((width,), (1,))
        self._initialise()

    @property
    def multiple(self) -> int:
        """The stride of the pooling stream where it is coarsest."""
        return self.coarsest

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to the merged streams."""
        height, width = image.shape[-2:]
        if min(height, width) < self.coarsest:
            raise ConfigurationError(
                f"{type(self).__name__}: the image is {height} x {width}, but {self.name} pools {self.coarsest} "
                "pixels a side into one. Enlarge or pad the image."
            )
        pooling = self.stem(self.normalise(image))
        residual = self.split(pooling)
        for unit in self.units:
            pooling, residual = unit(pooling, residual)
        return [self.merge(torch.cat([resize_like(pooling, residual), residual], dim=1))]

    def _initialise(self) -> None:
        initialise(self, "kaiming_uniform")
        for module in self.modules():
            # lasagne's HeUniform with the gain of what follows: sqrt(2) before a ReLU, else 1
            if isinstance(module, ConvNormAct) and isinstance(module[2], nn.Identity):
                initialise(module, "caffe_xavier")
            elif isinstance(module, FullResolutionResidualUnit):
                initialise(module.project, "caffe_xavier")
            elif isinstance(module, ResidualUnit):
                initialise(module.shortcut, "caffe_xavier")
            elif isinstance(module, nn.BatchNorm2d):
                module.eps = _EPSILON


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions with batch norm, a ReLU between them, added to what came in; no ReLU after the sum.

    Args:
        in_channels: Channels before.
        out_channels: Channels after; where they differ, the shortcut is a 1x1 convolution without bias or batch norm.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            ConvNormAct(in_channels, out_channels), ConvNormAct(out_channels, out_channels, activation="none")
        )
        self.shortcut = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1, bias=False)
        )

    def forward(self, values: Tensor) -> Tensor:
        """The sum."""
        total: Tensor = self.shortcut(values) + self.body(values)
        return total


class FullResolutionResidualUnit(nn.Module):
    """Reads both streams, makes the new pooling stream and adds to the residual one.

    Args:
        in_channels: Channels of the pooling stream before.
        out_channels: Channels of the pooling stream after.
        residual: Channels of the residual stream.
        stride: Of the pooling stream after. A coarser one is enlarged first, bilinearly.
        pool: Whether the pooling stream comes at twice the resolution, and is max-pooled first.

    Shape:
        pooling: (B, in_channels, h, w).
        residual: (B, residual, H, W).
        returns: (B, out_channels, H / stride, W / stride) and (B, residual, H, W).
    """

    def __init__(self, in_channels: int, out_channels: int, residual: int, stride: int, pool: bool = False) -> None:
        super().__init__()
        self.stride = stride
        self.pool = pool
        self.body = nn.Sequential(
            ConvNormAct(in_channels + residual, out_channels), ConvNormAct(out_channels, out_channels)
        )
        self.project = nn.Conv2d(out_channels, residual, 1)

    def forward(self, pooling: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Both streams to both streams."""
        pooled = F.max_pool2d(residual, self.stride)
        if self.pool:
            pooling = F.max_pool2d(pooling, 2)
        pooling = self.body(torch.cat([resize_like(pooling, pooled), pooled], dim=1))
        new = F.interpolate(self.project(pooling), size=residual.shape[-2:], mode="nearest")
        return pooling, residual + new
