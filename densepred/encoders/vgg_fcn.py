"""VGG as the fully convolutional network's authors released it: a wide margin instead of padding."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from densepred.encoders.vgg import VGGEncoder, VGGName

_MARGIN = 100  # conv1_1's padding


class FCNVGGEncoder(VGGEncoder):
    """The encoder of the released FCN: conv1_1 padded by 100 pixels, poolings that round up, fc6 without padding.

    The margin makes room for fc6, which loses 96 pixels on every side, so that any image, however small or odd, is
    covered by planes that `FCNDecoder` crops at the offsets of the release: it finds them from `spec.origins`. The
    image is not padded to a multiple. `VGGEncoder(fully_connected=True, maps="pool")` has the same parameters and pads
    every convolution instead, for 0.6 of the operations at 500 x 500 pixels; weights fit both.

    Args:
        name: torchvision's name of the network; vgg16 in the release.
        weights: See `VGGEncoder`. The release starts from Caffe's VGG16 and subtracts its mean alone; torchvision's
            weights, and so this encoder, divide by the standard deviation too.
        in_channels: Channels of the image.
        mean: Mean of each channel, of an image in [0, 1]; the margin is filled with it.
        std: As `mean`.
        dropout: Share of the activations of fc6 and of fc7 that is dropped in training.

    Attributes:
        load_report: What became of each tensor of the weights; None without weights.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: the four finer poolings' maps of 64, 128, 256, 512 channels, of ceil((H + 198) / s) cells for s = 2, 4,
            8, 16, and fc7's of 4096 channels and ceil((H + 198) / 32) - 6.

    Raises:
        ConfigurationError: If there is no such network.
        WeightsError: If the weights cannot be found, downloaded or read, or do not fit at all.

    Reference:
        Long, Shelhamer, Darrell. Fully Convolutional Networks for Semantic Segmentation. CVPR 2015. arXiv:1411.4038;
        Shelhamer, Long, Darrell. PAMI 2017. arXiv:1605.06211 (voc-fcn32s, voc-fcn16s, voc-fcn8s of the release).

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     encoder = FCNVGGEncoder()
        ...     [tuple(feature.shape[-2:]) for feature in encoder(torch.zeros(1, 3, 500, 375))]
        [(349, 287), (175, 144), (88, 72), (44, 36), (16, 12)]
        >>> encoder.spec.origins
        (-98.5, -97.5, -95.5, -91.5, 12.5)
    """

    def __init__(
        self,
        name: VGGName = "vgg16",
        weights: str | Path | None = None,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(
            name,
            weights,
            in_channels,
            mean,
            std,
            maps="pool",
            fully_connected=True,
            padded=False,
            dropout=dropout,
        )
        first = next(layer for layer in self.features if isinstance(layer, nn.Conv2d))
        further = _MARGIN - int(first.padding[0])
        first.padding = (_MARGIN, _MARGIN)
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                layer.ceil_mode = True
        self.spec = self.spec._replace(origins=tuple(origin - further for origin in self.spec.origins))

    @property
    def multiple(self) -> int:
        """Any size is right: the margin takes up the difference."""
        return 1
