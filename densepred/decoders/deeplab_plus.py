"""DeepLab v3+'s decoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.blocks import Activation, ConvNormAct, Norm
from densepred.decoders.atrous import Convolutions, conv3x3, scaled_rates
from densepred.decoders.base import Decoder
from densepred.decoders.bilinear import enlarged_to_image
from densepred.decoders.deeplab import ASPP, score_layer
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec


class DeepLabV3PlusDecoder(Decoder):
    """DeepLab v3's pyramid, enlarged and refined beside a finer map of few channels.

    The coarsest map goes through `ASPP`; its result is enlarged (bilinear) to a map of stride 4, which a 1x1
    convolution has reduced to 48 channels so that it does not outweigh it. 3x3 convolutions over both give the planes.
    Every convolution is followed by norm and activation.

    Args:
        spec: The encoder's maps; the coarsest and one finer are read.
        out_channels: Number of planes.
        rates: Dilations of the pyramid's 3x3 branches at stride 16; scaled to the encoder's own stride, so that they
            span the same pixels: they double at stride 8, as published.
        width: Channels of the pyramid and of the 3x3 convolutions.
        finest_stride: Stride of the finer map. Where the encoder has none of it, the next coarser is read, or the one
            before the last where all are finer.
        finest_width: Channels that the finer map is reduced to.
        fuse_layers: Number of 3x3 convolutions over both.
        convolutions: How all 3x3 convolutions are built: "dense" as with ResNet; "separable_normalised", 3x3 on each
            channel and 1x1 across them, each with norm and activation, as with Xception; "separable" with neither
            between the two.
        refine: Add a 3x3 convolution after the pyramid.
        dropout: Probability of dropping an activation after the pyramid.
        norm: Normalisation after each convolution.
        activation: Nonlinearity after it.
        align_corners: Enlarge with the centres of the corner cells on top of each other, and up to the image's own
            size; see `DeepLabV3Decoder`.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, h, w) at the finer map's stride; at stride 1 with `align_corners`.

    Raises:
        ConfigurationError: If the encoder has a single map; if there are no rates, or one below 1.

    Reference:
        Chen, Zhu, Papandreou, Schroff, Adam. Encoder-Decoder with Atrous Separable Convolution for Semantic Image
        Segmentation. ECCV 2018. arXiv:1802.02611. The release aligns corners on images of 513 pixels.
        segmentation_models_pytorch's `DeepLabV3Plus("resnet34")` dilates by 12, 24, 36 at stride 16, adds a convolution
        after the pyramid, has one after the finer map instead of two, and separates all 3x3 convolutions without a norm
        between: it is `DeepLabV3PlusDecoder(spec, n, rates=(12, 24, 36), fuse_layers=1, convolutions="separable",
        refine=True, align_corners=True)` on `ResNetEncoder("resnet34", output_stride=16, multi_grid=(1, 1, 1))`.

    Example:
        >>> decoder = DeepLabV3PlusDecoder(FeatureSpec((8, 16), (4, 16)), out_channels=21, width=8)
        >>> decoder([torch.rand(2, 8, 12, 16), torch.rand(2, 16, 3, 4)]).shape
        torch.Size([2, 21, 12, 16])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        rates: tuple[int, ...] = (6, 12, 18),
        width: int = 256,
        finest_stride: int = 4,
        finest_width: int = 48,
        fuse_layers: int = 2,
        convolutions: Convolutions = "dense",
        refine: bool = False,
        dropout: float = 0.1,
        norm: Norm = "batch",
        activation: Activation = "relu",
        align_corners: bool = False,
    ) -> None:
        super().__init__(spec, out_channels)
        if fuse_layers < 1:
            raise ConfigurationError(f"DeepLabV3PlusDecoder: fuse_layers is {fuse_layers}; expected 1 or more.")
        self.finer = _finer_map(spec, finest_stride)
        self.align_corners = align_corners
        channels, dilations = spec.channels[-1], scaled_rates(rates, 16, spec)
        self.aspp = ASPP(channels, width, dilations, convolutions, norm, activation)
        self.refine = conv3x3(convolutions, width, width, 1, norm, activation) if refine else nn.Identity()
        self.reduce = ConvNormAct(spec.channels[self.finer], finest_width, 1, norm=norm, activation=activation)
        widths = [width + finest_width, *[width] * (fuse_layers - 1)]
        self.fuse = nn.Sequential(*(conv3x3(convolutions, before, width, 1, norm, activation) for before in widths))
        self.dropout = nn.Dropout(dropout)
        self.score = score_layer(width, out_channels)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        finer = self.reduce(features[self.finer])
        coarse = self.refine(self.dropout(self.aspp(features[-1])))
        coarse = F.interpolate(coarse, size=finer.shape[-2:], mode="bilinear", align_corners=self.align_corners)
        planes: Tensor = self.score(self.fuse(torch.cat([coarse, finer], dim=1)))
        return enlarged_to_image(planes, self.spec.strides[self.finer]) if self.align_corners else planes


def _finer_map(spec: FeatureSpec, stride: int) -> int:
    """The place of the map of that stride or the next coarser, of several the deepest, but never the coarsest map."""
    before = spec.strides[:-1]
    if not before:
        raise ConfigurationError(
            f"DeepLabV3PlusDecoder: the encoder has a single map, of stride {spec.strides[-1]}, and no finer one to "
            "refine with. Use DeepLabV3Decoder."
        )
    chosen = min((s for s in before if s >= stride), default=before[-1])
    # of maps that all have the coarsest stride (a vision transformer's) the shallowest says most about edges
    return before.index(chosen) if chosen == spec.strides[-1] else len(before) - 1 - before[::-1].index(chosen)
