"""The VGG trunk of DeepLab v1 and v2."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from densepred.encoders.vgg import VGGEncoder, VGGMaps, VGGName


class DeepLabVGGEncoder(VGGEncoder):
    """VGG as DeepLab's release has it: overlapping poolings, stride 8, the fifth block dilated.

    Poolings 1 to 3 take the maximum of 3x3 cells at stride 2; pooling 4 and 5 do at stride 1, and the block between
    them is dilated by 2. An average of 3x3 cells follows (the release's pool5a, easily missed). The tensors have
    torchvision's names, so any VGG's state dict loads; the poolings are not those it was trained with, as published.

    Args:
        name: torchvision's name of the network; vgg16 in the papers.
        weights: "imagenet" for torchvision's IMAGENET1K_V1; the path of any file with torchvision's keys; None for
            torchvision's random initialisation. What was loaded, missing and skipped is logged and kept in
            `load_report`. fc6 and fc7 are the decoder's: see `LargeFOVDecoder`.
        in_channels: Channels of the image. Other than 3, the pretrained first convolution is adapted by
            `adapt_input_channels`: grey images keep their response.
        mean: Mean of each channel, of an image in [0, 1]; by default that of torchvision's IMAGENET1K_V1 weights.
        std: As `mean`.
        maps: "pool" for the maps after each pooling, which DeepLab reads, or "conv" for those before it.
        average: Whether the average follows the fifth pooling (v1); the branches of v2 read the fifth pooling itself.

    Attributes:
        load_report: What became of each tensor of the weights; None without weights.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: maps of 64, 128, 256, 512, 512 channels at 1/2, 1/4, 1/8, 1/8, 1/8 of the size ("pool") or 1, 1/2, 1/4,
            1/8, 1/8 ("conv"), rounded up: an image of 321 pixels gives 161, 81, 41, 41, 41.

    Raises:
        ConfigurationError: If there is no such network or kind of maps.
        WeightsError: If the weights cannot be found, downloaded or read, or do not fit at all.

    Reference:
        Chen, Papandreou, Kokkinos, Murphy, Yuille. Semantic Image Segmentation with Deep Convolutional Nets and Fully
        Connected CRFs. ICLR 2015. arXiv:1412.7062 (DeepLab-LargeFOV's prototxt; mean-only normalisation there).
        Chen et al. DeepLab. PAMI 2018. arXiv:1606.00915.

    Example:
        >>> DeepLabVGGEncoder("vgg11").spec
        FeatureSpec(channels=(64, 128, 256, 512, 512), strides=(2, 4, 8, 8, 8))
    """

    def __init__(
        self,
        name: VGGName = "vgg16",
        weights: str | Path | None = None,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        maps: VGGMaps = "pool",
        average: bool = True,
    ) -> None:
        super().__init__(name, weights, in_channels, mean, std, output_stride=8, maps=maps)
        for index, stride in zip(self.pools, (2, 2, 2, 1, 1), strict=True):
            self.features[index] = nn.MaxPool2d(3, stride, padding=1)
        if average:
            last = self.pools[-1]
            # zeros outside count, as in Caffe
            self.features[last] = nn.Sequential(self.features[last], nn.AvgPool2d(3, stride=1, padding=1))
