"""SegNet-Basic's encoder."""

from collections.abc import Sequence

from torch import Tensor, nn

from densepred.blocks import Activation, ConvNormAct, Norm
from densepred.encoders.base import Encoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import initialise, shift_norms


class SegNetBasicEncoder(Encoder):
    """Four 7x7 convolutions of 64 channels, each with batch norm, ReLU and 2x2 max-pooling; made to be trained alone.

    The image is divided by its local response first (Krizhevsky's normalisation over 5 channels, here all there are:
    1 + 1e-4 / 5 * the sum of squares, to the power 0.75). That rule was made for colours of 0 to 255, so these are what
    it sees: by default the mean is 0 and the standard deviation 1/255.

    The maps are those before each pooling, as `SegNetBasicDecoder` needs them to find the switches; the last pooling is
    done there. Where a map's size is odd the pooling rounds up, as published.

    Args:
        in_channels: Channels of the image.
        mean: Mean of each channel, of an image in [0, 1]; 0 by default.
        std: Standard deviation likewise; 1/255 by default.
        width: Channels of each convolution.
        norm: Normalisation after each convolution.
        activation: Nonlinearity after it.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: four maps of `width` channels at 1, 1/2, 1/4, 1/8 of the size, rounded up.

    Raises:
        ConfigurationError: If `width` is below 1, or `mean` or `std` have not a number a channel.

    Reference:
        Badrinarayanan, Kendall, Cipolla. SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image
        Segmentation. PAMI 2017. arXiv:1511.00561. Initialised as in the release: He et al.'s rule, shifts 0.001.

    Example:
        >>> import torch
        >>> encoder = SegNetBasicEncoder()
        >>> [tuple(feature.shape[-2:]) for feature in encoder(torch.zeros(1, 3, 45, 60, dtype=torch.uint8))]
        [(45, 60), (23, 30), (12, 15), (6, 8)]
    """

    def __init__(
        self,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        width: int = 64,
        norm: Norm = "batch",
        activation: Activation = "relu",
    ) -> None:
        if width < 1:
            raise ConfigurationError(f"SegNetBasicEncoder: width is {width}; expected 1 or more (64 as published).")
        mean = (0.0,) * in_channels if mean is None else mean
        std = (1 / 255,) * in_channels if std is None else std
        super().__init__(in_channels, mean, std)
        self.respond = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
        self.stages = nn.ModuleList(
            ConvNormAct(before, width, 7, norm=norm, activation=activation, bias=True)
            for before in (in_channels, width, width, width)
        )
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.spec = FeatureSpec((width,) * 4, (1, 2, 4, 8))
        initialise(self, "kaiming")
        shift_norms(self, 0.001)

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to the maps before each pooling, finest first."""
        x = self.respond(self.normalise(image))
        features: list[Tensor] = []
        for stage in self.stages:
            features.append(stage(self.pool(features[-1]) if features else x))
        return features
