"""SegNet's decoders: upsampling by the encoder's pooling switches alone."""

from itertools import pairwise

from torch import Tensor, nn

from densepred.blocks import Activation, ConvNormAct, Norm
from densepred.decoders.base import Decoder
from densepred.decoders.unpooling import UnpoolingPath, mirrored_channels, pool, unpooling_factors
from densepred.features import FeatureSpec
from densepred.initialisers import initialise, shift_norms


class SegNetDecoder(Decoder):
    """Mirrors the encoder: unpools by the switches of each pooling, then convolves to make the sparse map dense.

    Of the encoder's finer maps only the places of the maxima are used, not the values: `VGGEncoder("vgg16_bn",
    maps="conv")` before it is the published network, to its number of parameters. Each step is as many 3x3
    convolutions (with bias) as VGG16 has there, each with batch norm and ReLU; the last convolution of all gives the
    planes, without either. The coarsest map is pooled here once more, as VGG16's own last pooling does.

    It reads any encoder: where maps do not halve, as between the equal ones of a dilated encoder, a step convolves
    without unpooling; where the finest map is not of stride 1, the planes are of its stride; where an encoder does not
    max-pool (ResNet), the switches are the places of its maps' own maxima. On wide encoders (ResNet-50: 2048 channels)
    3x3 convolutions of full width are large: `depths` of 1 leave out all but those that narrow.

    The published sizes of a 360 x 480 image are rounded up, 45 x 60 to 23 x 30 to 12 x 15, and so they are here, on
    such maps. Within a network the image is first padded to 368 x 480, so that the map of 23 x 30 comes from one of
    46 x 60; the planes of the padding are cropped.

    Args:
        spec: The encoder's maps, before the poolings; all are read.
        out_channels: Number of planes.
        depths: Convolutions of each step, coarsest first, the one that gives the planes included; by default 3, and 2
            in the two finest.
        norm: Normalisation after each convolution but the last.
        activation: Nonlinearity after it.
        dropout: Probability of dropping an activation before the last convolution.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_0, W_0).

    Raises:
        ConfigurationError: If a stride is no multiple of the finer one, or `depths` does not fit the maps.

    Reference:
        Badrinarayanan, Kendall, Cipolla. SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image
        Segmentation. PAMI 2017. arXiv:1511.00561. Initialised as in the release: He et al.'s rule, shifts 0.001.

    Example:
        >>> import torch
        >>> decoder = SegNetDecoder(FeatureSpec((8, 16, 32), (1, 2, 4)), out_channels=3)
        >>> decoder([torch.rand(1, 8, 20, 28), torch.rand(1, 16, 10, 14), torch.rand(1, 32, 5, 7)]).shape
        torch.Size([1, 3, 20, 28])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        depths: tuple[int, ...] | None = None,
        norm: Norm = "batch",
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, out_channels)
        *coarser, finest = mirrored_channels("SegNetDecoder", spec, depths)
        steps = [_convolutions(channels, 3, norm, activation) for channels in (*coarser, finest[:-1])]
        self.climb = UnpoolingPath(unpooling_factors("SegNetDecoder", spec), steps)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(spec.channels[0], out_channels, 3, padding=1)
        initialise(self, "kaiming")
        shift_norms(self, 0.001)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        planes: Tensor = self.score(self.dropout(self.climb(pool(features[-1], 2), features)))
        return planes


class SegNetBasicDecoder(Decoder):
    """The small SegNet's: after each unpooling one 7x7 convolution with batch norm and no nonlinearity.

    On `SegNetBasicEncoder` it is the published network; it reads any encoder, as `SegNetDecoder` does. A 1x1
    convolution gives the planes.

    Args:
        spec: The encoder's maps, before the poolings; all are read.
        out_channels: Number of planes.
        bias: Whether the 7x7 convolutions have biases. Batch norm makes them idle; the release has them.
        norm: Normalisation after each convolution.
        activation: Nonlinearity after it; none in the published network.
        dropout: Probability of dropping an activation before the last convolution.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_0, W_0).

    Raises:
        ConfigurationError: If a stride is no multiple of the finer one.

    Reference:
        Badrinarayanan, Kendall, Cipolla. SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image
        Segmentation. PAMI 2017. arXiv:1511.00561 (SegNet-Basic; the release's initialisation).

    Example:
        >>> import torch
        >>> decoder = SegNetBasicDecoder(FeatureSpec((8, 8), (1, 2)), out_channels=3)
        >>> decoder([torch.rand(1, 8, 15, 21), torch.rand(1, 8, 8, 11)]).shape
        torch.Size([1, 3, 15, 21])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        bias: bool = True,
        norm: Norm = "batch",
        activation: Activation = "none",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, out_channels)
        channels = mirrored_channels("SegNetBasicDecoder", spec, [1] * len(spec.channels))
        steps = [_convolutions(along, 7, norm, activation, bias) for along in channels]
        self.climb = UnpoolingPath(unpooling_factors("SegNetBasicDecoder", spec), steps)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(spec.channels[0], out_channels, 1)
        initialise(self, "kaiming")
        shift_norms(self, 0.001)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        planes: Tensor = self.score(self.dropout(self.climb(pool(features[-1], 2), features)))
        return planes


def _convolutions(
    channels: list[int], kernel_size: int, norm: Norm, activation: Activation, bias: bool = True
) -> nn.Sequential:
    return nn.Sequential(
        *(
            ConvNormAct(before, after, kernel_size, norm=norm, activation=activation, bias=bias)
            for before, after in pairwise(channels)
        )
    )
