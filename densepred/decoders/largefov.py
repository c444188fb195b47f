"""DeepLab v1's decoder."""

from pathlib import Path

from torch import Tensor

from densepred.blocks import Activation, Norm
from densepred.decoders.atrous import scaled_rates
from densepred.decoders.base import Decoder
from densepred.decoders.vgg_classifier import VGGClassifier, load_vgg_classifier
from densepred.encoders.loading import LoadReport
from densepred.features import FeatureSpec


class LargeFOVDecoder(Decoder):
    """VGG's classifier made small and dilated, on the coarsest map: a large field of view for few weights.

    fc6 is a 3x3 convolution of dilation 12, which sees 25 x 25 cells; fc7 and the scores are 1x1. On
    `DeepLabVGGEncoder` it is DeepLab-LargeFOV; it reads any encoder. `kernel_size=7, dilation=4, width=4096` is the
    paper's DeepLab-7x7, with 4 instead of 7 its DeepLab-4x4.

    Args:
        spec: The encoder's maps; only the coarsest is read.
        out_channels: Number of planes.
        kernel_size: Side of fc6's kernel.
        dilation: Of fc6, on a map of stride 8; scaled to the encoder's own stride, so that it spans the same pixels.
        width: Channels of fc6 and fc7.
        dropout: Probability of dropping an activation of fc6 and of fc7.
        weights: Where fc6 and fc7 start from: "imagenet" for torchvision's VGG16 (IMAGENET1K_V1), or the path of a file
            with its keys; evenly spaced filters and taps of them are taken. None for random weights. What was loaded is
            logged and kept in `load_report`.
        norm: Normalisation after fc6 and fc7; none as published.
        activation: Nonlinearity after them.

    Attributes:
        load_report: What was loaded; None without weights.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_last, W_last).

    Raises:
        ConfigurationError: If an even kernel meets an odd dilation, or the encoder or the options leave no place for
            VGG's weights.
        WeightsError: If the weights cannot be found, downloaded or read, or are not VGG's.

    Reference:
        Chen, Papandreou, Kokkinos, Murphy, Yuille. Semantic Image Segmentation with Deep Convolutional Nets and Fully
        Connected CRFs. ICLR 2015. arXiv:1412.7062. The release trains on labels reduced 8 times and, at test,
        enlarges the planes of an image of 8 n + 1 pixels with their corner cells in the corner pixels; here the loss is
        at full size, and a cell covers 8 x 8 pixels. The variant "MSc", with branches on the image and the first
        poolings, is not built.

    Example:
        >>> import torch
        >>> decoder = LargeFOVDecoder(FeatureSpec((16,), (8,)), out_channels=21, width=32)
        >>> decoder([torch.rand(1, 16, 41, 41)]).shape
        torch.Size([1, 21, 41, 41])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        kernel_size: int = 3,
        dilation: int = 12,
        width: int = 1024,
        dropout: float = 0.5,
        weights: str | Path | None = None,
        norm: Norm = "none",
        activation: Activation = "relu",
    ) -> None:
        super().__init__(spec, out_channels)
        (rate,) = scaled_rates((dilation,), 8, spec)
        self.classifier = VGGClassifier(
            spec.channels[-1], out_channels, kernel_size, rate, width, dropout, norm, activation
        )
        self.load_report: LoadReport | None = None
        if weights is not None:
            self.load_report = load_vgg_classifier({"classifier.": self.classifier}, weights, "LargeFOVDecoder")

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        planes: Tensor = self.classifier(features[-1])
        return planes
