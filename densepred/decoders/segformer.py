"""SegFormer's decoder: every map through a linear layer, all together through another."""

import torch
from torch import Tensor, nn

from densepred.blocks import Activation, ConvNormAct, Norm, resize_like
from densepred.decoders.base import Decoder
from densepred.decoders.fpn import pyramid_start
from densepred.features import FeatureSpec
from densepred.initialisers import initialise


class SegFormerDecoder(Decoder):
    """Brings every map to one width, all to the finest one's size, and fuses them with a 1x1 convolution.

    No convolution is larger than 1x1: what a cell sees around it is left to the encoder, so it suits those that see
    far (transformers, large kernels).

    Args:
        spec: The encoder's maps.
        out_channels: Number of planes.
        width: Channels of each map and after the fusion: 256 for MiT-B0 and B1, 768 for the larger ones.
        finest_stride: Maps of a finer stride are not read; where all are finer, the coarsest is.
        norm: Normalisation after the fusion.
        activation: Nonlinearity after it.
        dropout: Probability of dropping a channel of an image before the last convolution.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, h, w) at the finest stride read.

    Raises:
        ConfigurationError: If `finest_stride` is not positive.

    Reference:
        Xie et al. SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers. NeurIPS 2021.
        arXiv:2105.15203. With `dropout=0` the same as segmentation_models_pytorch's `SegformerDecoder`, up to its last
        enlargement, which puts the centres of the corner cells in the corner pixels; ours keeps cells in place.

    Example:
        >>> decoder = SegFormerDecoder(FeatureSpec((8, 16, 32), (4, 8, 16)), out_channels=3, width=8)
        >>> decoder([torch.rand(1, 8, 12, 16), torch.rand(1, 16, 6, 8), torch.rand(1, 32, 3, 4)]).shape
        torch.Size([1, 3, 12, 16])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        width: int = 256,
        finest_stride: int = 4,
        norm: Norm = "batch",
        activation: Activation = "relu",
        dropout: float = 0.1,
    ) -> None:
        super().__init__(spec, out_channels)
        self.start = pyramid_start(type(self).__name__, spec, finest_stride)
        self.linears = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in spec.channels[self.start :])
        self.fuse = ConvNormAct(len(self.linears) * width, width, 1, norm=norm, activation=activation)
        self.dropout = nn.Dropout2d(dropout)
        self.score = nn.Conv2d(width, out_channels, 1)
        initialise(self.score, "gaussian")

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        features = features[self.start :]
        same_width = [linear(feature) for linear, feature in zip(self.linears, features, strict=True)]
        # coarsest first, as the authors' weights expect
        joined = torch.cat([resize_like(feature, features[0]) for feature in reversed(same_width)], dim=1)
        planes: Tensor = self.score(self.dropout(self.fuse(joined)))
        return planes
