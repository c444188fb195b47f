"""The feature pyramid network with Panoptic FPN's semantic branch."""

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.blocks import Activation, ConvNormAct, Norm
from densepred.decoders.base import Decoder
from densepred.decoders.bilinear import enlarged_to_image, resized
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import initialise

Merge = Literal["sum", "concat"]


def pyramid_start(owner: str, spec: FeatureSpec, finest_stride: int) -> int:
    """The place of the first map of stride `finest_stride` or more; the coarsest map where all are finer.

    Raises:
        ConfigurationError: If `finest_stride` is not positive.
    """
    if finest_stride < 1:
        raise ConfigurationError(f"{owner}: finest_stride is {finest_stride}; expected 1 or more, usually 4.")
    return next((i for i, stride in enumerate(spec.strides) if stride >= finest_stride), len(spec.strides) - 1)


class FeaturePyramid(nn.Module):
    """Maps of one width, each with the coarser ones added to it: strong in meaning at every stride.

    A 1x1 convolution brings each map to `width` channels; from the coarsest on, each sum is enlarged (nearest) to the
    next finer map and added to it. A 3x3 convolution then smooths each sum.

    Args:
        channels: Channels of the maps, finest first.
        width: Channels of all maps of the pyramid.
        smooth: Whether there are the 3x3 convolutions.

    Shape:
        features: a list of (B, channels[i], H_i, W_i), finest first.
        returns: a list of (B, width, H_i, W_i).

    Reference:
        Lin et al. Feature Pyramid Networks for Object Detection. CVPR 2017. arXiv:1612.03144.
    """

    def __init__(self, channels: tuple[int, ...], width: int, smooth: bool = True) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(before, width, 1) for before in channels)
        self.smooth = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1) if smooth else nn.Identity() for _ in channels
        )
        initialise(self, "caffe_xavier")  # the authors' c2_xavier_fill

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps, finest first, to those of the pyramid."""
        sums = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)]
        for i in range(len(sums) - 2, -1, -1):
            # of equal size between the maps of a dilated encoder or of a vision transformer
            same = sums[i + 1].shape[-2:] == sums[i].shape[-2:]
            sums[i] = sums[i] + (sums[i + 1] if same else F.interpolate(sums[i + 1], size=sums[i].shape[-2:]))
        return [smooth(feature) for smooth, feature in zip(self.smooth, sums, strict=True)]


class FPNDecoder(Decoder):
    """A feature pyramid whose levels are all brought to the finest one's size and summed (Semantic FPN).

    The pyramid (`FeaturePyramid`) reads the maps of stride `finest_stride` and more. Each level then climbs to the
    finest one's size, a 3x3 convolution with norm and activation and a bilinear resize for each size on the way (the
    finest has one convolution alone). The levels are summed, and a 1x1 convolution gives the planes.

    Args:
        spec: The encoder's maps.
        out_channels: Number of planes.
        width: Channels of the pyramid.
        branch_width: Channels of each level after its first convolution.
        finest_stride: Maps of a finer stride are not read; where all are finer, the coarsest is.
        merge: "sum", or "concat" for the levels side by side, the coarsest first.
        smooth: Whether the pyramid has its 3x3 convolutions (segmentation_models_pytorch leaves them out).
        norm: Normalisation in the levels' convolutions.
        activation: Nonlinearity after it.
        dropout: Probability of dropping a channel of an image before the last convolution.
        align_corners: Resize with the centres of the corner cells on top of each other, and up to the image's own size,
            as segmentation_models_pytorch does. Each resize then moves what lies near the border by up to half a cell.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, h, w) at the finest stride read; at stride 1 with `align_corners`.

    Raises:
        ConfigurationError: If `finest_stride` is not positive or `merge` unknown.

    Reference:
        Kirillov, Girshick, He, Dollar. Panoptic Feature Pyramid Networks. CVPR 2019. arXiv:1901.02446 (the semantic
        branch; scores start near zero here).
        `FPNDecoder(spec, n, smooth=False, align_corners=True)` on `ResNetEncoder("resnet34")` is
        segmentation_models_pytorch's `FPN("resnet34")`.

    Example:
        >>> import torch
        >>> decoder = FPNDecoder(FeatureSpec((8, 16, 32), (4, 8, 16)), out_channels=3, width=8, branch_width=4)
        >>> decoder([torch.rand(1, 8, 12, 16), torch.rand(1, 16, 6, 8), torch.rand(1, 32, 3, 4)]).shape
        torch.Size([1, 3, 12, 16])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        width: int = 256,
        branch_width: int = 128,
        finest_stride: int = 4,
        merge: Merge = "sum",
        smooth: bool = True,
        norm: Norm = "group",
        activation: Activation = "relu",
        dropout: float = 0.0,
        align_corners: bool = False,
    ) -> None:
        super().__init__(spec, out_channels)
        if merge not in get_args(Merge):
            raise ConfigurationError(f"FPNDecoder: merge is {merge!r}; expected 'sum' or 'concat'.")
        self.start = pyramid_start("FPNDecoder", spec, finest_stride)
        self.merge = merge
        self.align_corners = align_corners
        self.pyramid = FeaturePyramid(spec.channels[self.start :], width, smooth)
        strides = spec.strides[self.start :]
        # the maps whose sizes each level goes through on its way up: one of each finer stride
        self.ways = [sorted({strides.index(s) for s in strides if s < stride}, reverse=True) for stride in strides]
        self.levels = nn.ModuleList(
            nn.ModuleList(
                ConvNormAct(branch_width if step else width, branch_width, norm=norm, activation=activation)
                for step in range(max(len(way), 1))
            )
            for way in self.ways
        )
        self.dropout = nn.Dropout2d(dropout)
        self.score = nn.Conv2d(branch_width * (len(strides) if merge == "concat" else 1), out_channels, 1)
        initialise(self.score, "gaussian")

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        pyramid = self.pyramid(features[self.start :])
        levels = [self._climb(i, pyramid) for i in range(len(pyramid))]
        merged = torch.cat(levels[::-1], dim=1) if self.merge == "concat" else torch.stack(levels).sum(dim=0)
        planes: Tensor = self.score(self.dropout(merged))
        return enlarged_to_image(planes, self.spec.strides[self.start]) if self.align_corners else planes

    def _climb(self, level: int, pyramid: list[Tensor]) -> Tensor:
        """A level of the pyramid at the finest one's size."""
        feature, way = pyramid[level], self.ways[level]
        for step, convolution in enumerate(cast(nn.ModuleList, self.levels[level])):
            feature = convolution(feature)
            if way:
                feature = resized(feature, pyramid[way[step]], self.align_corners)
        return feature
