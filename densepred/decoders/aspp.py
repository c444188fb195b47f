"""DeepLab v2's decoder."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from densepred.blocks import Activation, Norm
from densepred.decoders.atrous import scaled_rates
from densepred.decoders.base import Decoder
from densepred.decoders.vgg_classifier import VGGClassifier, load_vgg_classifier
from densepred.encoders.loading import LoadReport
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import initialise


class ASPPDecoder(Decoder):
    """Scores of the coarsest map at several dilations at once, summed: atrous spatial pyramid pooling.

    On a ResNet each branch is one 3x3 convolution to the planes; on VGG, with `width`, it is fc6, fc7 and scores as in
    `LargeFOVDecoder`. Published: `ResNetEncoder("resnet101", output_stride=8, multi_grid=(1, 1, 1))`, and
    `DeepLabVGGEncoder(average=False)` with `width=1024`. DeepLab v3's pyramid, whose branches are fused by a
    convolution, is `DeepLabV3Decoder`.

    Args:
        spec: The encoder's maps; only the coarsest is read.
        out_channels: Number of planes.
        rates: Dilation of each branch on a map of stride 8; scaled to the encoder's own stride, so that they span the
            same pixels. (6, 12, 18, 24) is the paper's ASPP-L, (2, 4, 8, 12) its ASPP-S.
        width: Channels of fc6 and fc7 of each branch, 1024 in the paper's VGG; None for branches of one convolution.
        dropout: Probability of dropping an activation of fc6 and of fc7, or of the map where there are none. By
            default as published: 0.5, or 0 without fc6 and fc7.
        weights: Where fc6 and fc7 of all branches start from, as in `LargeFOVDecoder`; None for random weights.
        norm: Normalisation after fc6 and fc7; none as published.
        activation: Nonlinearity after them.

    Attributes:
        load_report: What was loaded; None without weights.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_last, W_last).

    Raises:
        ConfigurationError: If there are no rates, or one below 1; if `weights` are given without `width`, or the
            encoder or the options leave no place for them.
        WeightsError: If the weights cannot be found, downloaded or read, or are not VGG's.

    Reference:
        Chen, Papandreou, Kokkinos, Murphy, Yuille. DeepLab: Semantic Image Segmentation with Deep Convolutional Nets,
        Atrous Convolution, and Fully Connected CRFs. PAMI 2018. arXiv:1606.00915. Its multi-scale inputs (the network
        on the image at 1, 0.75 and 0.5 of its size, the element-wise maximum of the three, and a loss on each) are a
        matter of the whole network, which a decoder cannot do: they are not here.

    Example:
        >>> decoder = ASPPDecoder(FeatureSpec((16,), (8,)), out_channels=21)
        >>> decoder([torch.rand(1, 16, 41, 41)]).shape
        torch.Size([1, 21, 41, 41])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        rates: tuple[int, ...] = (6, 12, 18, 24),
        width: int | None = None,
        dropout: float | None = None,
        weights: str | Path | None = None,
        norm: Norm = "none",
        activation: Activation = "relu",
    ) -> None:
        super().__init__(spec, out_channels)
        share = (0.0 if width is None else 0.5) if dropout is None else dropout
        self.dropout = nn.Dropout(share if width is None else 0.0)
        channels = spec.channels[-1]
        self.branches = nn.ModuleList(
            _scores(channels, out_channels, rate)
            if width is None
            else VGGClassifier(channels, out_channels, 3, rate, width, share, norm, activation)
            for rate in scaled_rates(rates, 8, spec)
        )
        self.load_report: LoadReport | None = None
        if weights is not None:
            self.load_report = self._load(weights)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        feature = self.dropout(features[-1])
        return torch.stack([branch(feature) for branch in self.branches]).sum(dim=0)

    def _load(self, weights: str | Path) -> LoadReport:
        if not isinstance(self.branches[0], VGGClassifier):
            raise ConfigurationError(
                "ASPPDecoder: weights are for fc6 and fc7, which these branches of one convolution do not have. Set "
                "width (1024 in the paper), or weights to null."
            )
        branches = {f"branches.{i}.": cast(VGGClassifier, branch) for i, branch in enumerate(self.branches)}
        return load_vgg_classifier(branches, weights, "ASPPDecoder")


def _scores(in_channels: int, out_channels: int, rate: int) -> nn.Conv2d:
    scores = nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate)
    initialise(scores, "gaussian")
    return scores
