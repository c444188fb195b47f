"""The fully convolutional network's decoder."""

from typing import Literal

from torch import Tensor, nn

from densepred.blocks import ConvNormAct, resize_like
from densepred.decoders.base import Decoder
from densepred.decoders.bilinear import BilinearTransposedConv
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec


def _score(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1x1 convolution that starts at zero."""
    score = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.zeros_(score.weight)
    if score.bias is not None:
        nn.init.zeros_(score.bias)
    return score


class _Skip(nn.Module):
    """Planes upsampled to a finer map, plus that map's own score."""

    def __init__(self, in_channels: int, out_channels: int, factor: int, scale: float, learned: bool) -> None:
        super().__init__()
        self.scale = scale
        self.upsample = BilinearTransposedConv(out_channels, factor) if learned else None
        self.score = _score(in_channels, out_channels)

    def forward(self, planes: Tensor, feature: Tensor) -> Tensor:
        if self.upsample is not None:
            planes = self.upsample(planes)
        score: Tensor = self.score(feature * self.scale if self.scale != 1 else feature)
        return resize_like(planes, score) + score


class FCNDecoder(Decoder):
    """Scores the coarsest map, then adds the scores of finer maps on the way up (FCN-32s, FCN-16s, FCN-8s).

    A 1x1 convolution turns the coarsest map into planes; these are upsampled bilinearly to each finer map down to
    `finest_stride`, and that map's own 1x1 scores are added. The last upsampling, to the image, is left to the network
    or the task; it is fixed bilinear in the published networks too. All scores start at zero: the first cross-entropy
    is ln(classes), and a network that gains a skip starts where it was.

    On `VGGEncoder(fully_connected=True, maps="pool")` this is the published network; it reads any encoder. On a dilated
    encoder there are fewer skips, or none: only maps finer than the coarsest one can be added.

    Args:
        spec: The encoder's maps; the coarsest is read, and the deepest of each finer stride down to `finest_stride`.
        out_channels: Number of planes.
        finest_stride: Stride of the finest skip, and of the planes: 32, 16 or 8.
        learn_upsampling: Learn the upsampling between skips, from bilinear, a kernel for each plane (the conference
            version). Fixed by default, as in the release, where it made no difference.
        hidden: Channels of a 3x3 convolution with batch norm and ReLU before the coarsest score; none by default.
        dropout: Probability of dropping an activation before the coarsest score.
        skip_scales: Fixed factors on the maps of stride 16 and 8 before their scores; (0.01, 0.0001) for the published
            "at once" training, where the skips are learned together with the rest.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, h, w) at `finest_stride`, or at the coarsest map's stride where that is finer.

    Raises:
        ConfigurationError: If the encoder has no map of `finest_stride` although its coarsest is coarser.

    Reference:
        Long, Shelhamer, Darrell. Fully Convolutional Networks for Semantic Segmentation. CVPR 2015. arXiv:1411.4038;
        Shelhamer, Long, Darrell. PAMI 2017. arXiv:1605.06211. The border differs from the release: there 100 pixels of
        padding and crops, here "same" padding and interpolation that repeats the border.

    Example:
        >>> import torch
        >>> decoder = FCNDecoder(FeatureSpec((256, 512, 512), (8, 16, 32)), out_channels=21)
        >>> decoder([torch.rand(1, 256, 8, 12), torch.rand(1, 512, 4, 6), torch.rand(1, 512, 2, 3)]).shape
        torch.Size([1, 21, 8, 12])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        finest_stride: Literal[32, 16, 8] = 8,
        learn_upsampling: bool = False,
        hidden: int | None = None,
        dropout: float = 0.0,
        skip_scales: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__(spec, out_channels)
        coarsest = spec.strides[-1]
        strides = _skip_strides(spec, finest_stride)
        # the deepest map of each stride: a dilated encoder has several of its coarsest
        self.skip_maps = [max(i for i, s in enumerate(spec.strides) if s == stride) for stride in strides]
        self.hidden = nn.Identity() if hidden is None else ConvNormAct(spec.channels[-1], hidden)
        self.dropout = nn.Dropout(dropout)
        self.score = _score(spec.channels[-1] if hidden is None else hidden, out_channels)
        scales = dict(zip((16, 8), skip_scales, strict=True))
        # by stride, so that the weights of a 32s load into a 16s and those into an 8s
        self.skips = nn.ModuleDict(
            {
                str(stride): _Skip(
                    spec.channels[i], out_channels, before // stride, scales.get(stride, 1.0), learn_upsampling
                )
                for before, stride, i in zip([coarsest, *strides], strides, self.skip_maps, strict=False)
            }
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        planes: Tensor = self.score(self.dropout(self.hidden(features[-1])))
        for i, skip in zip(self.skip_maps, self.skips.values(), strict=True):
            planes = skip(planes, features[i])
        return planes


def _skip_strides(spec: FeatureSpec, finest: int) -> list[int]:
    """Strides of the maps to add, coarse to fine."""
    if finest not in (32, 16, 8):
        raise ConfigurationError(f"FCNDecoder: finest_stride is {finest}; expected 32, 16 or 8.")
    coarsest = spec.strides[-1]
    strides = sorted({stride for stride in spec.strides if finest <= stride < coarsest}, reverse=True)
    if finest < coarsest and finest not in strides:
        possible = [stride for stride in (32, 16, 8) if stride in spec.strides or stride >= coarsest]
        raise ConfigurationError(
            f"FCNDecoder: finest_stride {finest} needs a map of that stride; the encoder's maps have strides "
            f"{spec.strides}. Set finest_stride to one of {possible or 'none: choose another decoder'}."
        )
    return strides


class TorchvisionFCNDecoder(FCNDecoder):
    """torchvision's `FCNHead`: 3x3 convolution to a quarter of the channels, batch norm, ReLU, dropout, scores.

    With `ResNetEncoder("resnet50", output_stride=8)` the network is `torchvision.models.segmentation.fcn_resnet50`,
    and with `auxiliary=TorchvisionFCNDecoder` too its auxiliary classifier. `load_torchvision_segmentation` loads its
    weights.

    Args:
        spec: The encoder's maps; only the coarsest is read.
        out_channels: Number of planes.
        dropout: Probability of dropping an activation before the scores.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_last, W_last).

    Reference:
        torchvision.models.segmentation.fcn.FCNHead (scores start at zero here, at random there).
    """

    def __init__(self, spec: FeatureSpec, out_channels: int, dropout: float = 0.1) -> None:
        super().__init__(spec, out_channels, finest_stride=32, hidden=max(spec.channels[-1] // 4, 1), dropout=dropout)
