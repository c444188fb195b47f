"""DeconvNet's decoder: fully connected layers, then unpooling and transposed convolutions."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from densepred.blocks import Activation, BatchNormOfFew, ConvNormAct, Norm, nonlinearity, normalisation
from densepred.decoders.base import Decoder
from densepred.decoders.unpooling import UnpoolingPath, mirrored_channels, pool, unpooling_factors
from densepred.encoders.loading import LoadReport, fit_tensors
from densepred.encoders.weights import read_state_dict, weights_file
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import initialise, shift_norms

_WINDOW = 7  # cells that fc6 reads a side: all of a 224 x 224 image at stride 32


class TransposedConvNormAct(nn.Sequential):
    """Transposed convolution of stride 1 with bias, normalisation, nonlinearity.

    Args:
        in_channels: Channels before.
        out_channels: Channels after.
        kernel_size: Side of the kernel, odd.
        norm: See `densepred.blocks.normalisation`.
        activation: See `densepred.blocks.nonlinearity`. With "maxout" the convolution has twice the channels.
        padded: Whether the size stays; if not, each side gains kernel_size - 1 cells.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H, W), or (B, out_channels, H + k - 1, W + k - 1) without padding.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        norm: Norm = "batch",
        activation: Activation = "relu",
        padded: bool = True,
    ) -> None:
        width = 2 * out_channels if activation == "maxout" else out_channels
        convolution = nn.ConvTranspose2d(in_channels, width, kernel_size, padding=kernel_size // 2 if padded else 0)
        super().__init__(
            # a transposed convolution's output channels are its weight's second dimension
            weight_norm(convolution, dim=1) if norm == "weight" else convolution,
            normalisation(norm, width),
            nonlinearity(activation),
        )


class FullyConnectedBottleneck(nn.Module):
    """VGG's fc6 and fc7 as convolutions, and a transposed convolution that brings the 7x7 cells back.

    A map below 7 cells a side is padded with zeros, right and bottom, and the result cropped; on a larger one the
    layers slide.

    Args:
        channels: Channels of the map.
        width: Channels of fc6 and fc7.
        norm: Normalisation after each layer. Batch norm uses its running statistics where a channel has a single
            value: at 224 x 224 a batch of one image gives just that (`BatchNormOfFew`).
        activation: Nonlinearity after it.
        dropout: Probability of dropping an activation of fc6 and of fc7.

    Shape:
        (B, channels, H, W) -> (B, channels, H, W).
    """

    def __init__(self, channels: int, width: int, norm: Norm, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.fc6 = ConvNormAct(channels, width, _WINDOW, norm=norm, activation=activation, padded=False, bias=True)
        self.fc7 = ConvNormAct(width, width, 1, norm=norm, activation=activation, bias=True)
        for layer in (self.fc6, self.fc7):
            if isinstance(layer[1], nn.BatchNorm2d):
                layer[1] = BatchNormOfFew(layer[1].num_features)
        self.dropout = nn.Dropout(dropout)
        self.fc6_deconv = TransposedConvNormAct(width, channels, _WINDOW, norm, activation, padded=False)

    def forward(self, feature: Tensor) -> Tensor:
        """The map, each cell informed by all within 6 cells."""
        height, width = feature.shape[-2:]
        # always padded, then cropped: an exported graph has no branch, and is for large and small maps
        larger = F.pad(feature, (0, _WINDOW - 1, 0, _WINDOW - 1))
        feature = larger[..., : torch.sym_max(height, _WINDOW), : torch.sym_max(width, _WINDOW)]
        feature = self.dropout(self.fc7(self.dropout(self.fc6(feature))))
        restored: Tensor = self.fc6_deconv(feature)
        return restored[..., :height, :width]


class DeconvNetDecoder(Decoder):
    """Mirrors the encoder behind two fully connected layers: unpooling, then transposed convolutions.

    The coarsest map is pooled once more, as VGG16's last pooling does; fc6 (7x7) and fc7 see all of a 224 x 224 image
    in one cell; a 7x7 transposed convolution brings the 7x7 cells back. Each step then puts values back to the places
    of the encoder's maxima and makes the sparse map dense by 3x3 transposed convolutions (with bias, batch norm and
    ReLU), as many as VGG16 has there. A 1x1 convolution gives the planes. On `VGGEncoder("vgg16_bn", maps="conv")` this
    is the published network, to its 252 million parameters.

    It reads any encoder, as `SegNetDecoder` does, and any size of image. fc6 has 49 * channels * `bottleneck` weights,
    and the layer that mirrors it as many: on an encoder of 2048 channels give a smaller `bottleneck`, and `depths`.

    The published training has two stages: first crops centred on one object, with all others as background, then crops
    around object proposals, from the weights of the first. Published inference warps the scores of the 50 best
    proposals of an image together by their maximum. Neither crops around objects nor proposals are part of this
    decoder: it sees the images it is given, whole.

    Args:
        spec: The encoder's maps, before the poolings; all are read.
        out_channels: Number of planes.
        bottleneck: Channels of fc6 and fc7.
        depths: Convolutions of each step, coarsest first; by default 3, and 2 in the two finest.
        weights: What fc6 and fc7 start from: "imagenet" for those of torchvision's vgg16_bn, to go with that encoder;
            the path of a file with its keys `classifier.0` and `classifier.3`; None for random ones. Needs 512
            channels of the encoder and the published `bottleneck`.
        norm: Normalisation after each convolution. The bottleneck's map may be a single cell, which "instance", or
            "group" with one channel a group, cannot normalise.
        activation: Nonlinearity after it.
        dropout: Probability of dropping an activation of fc6 and of fc7; the published network drops none.

    Attributes:
        load_report: What became of each tensor of the weights; None without weights.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_0, W_0).

    Raises:
        ConfigurationError: If a stride is no multiple of the finer one, `depths` does not fit the maps, `bottleneck` is
            below 1, or `norm` cannot normalise a single cell.
        WeightsError: If the weights cannot be found, downloaded or read, or do not fit at all.

    Reference:
        Noh, Hong, Han. Learning Deconvolution Network for Semantic Segmentation. ICCV 2015. arXiv:1505.04366.
        Initialised as in the release: N(0, 0.01), shifts 0.001.

    Example:
        >>> import torch
        >>> decoder = DeconvNetDecoder(FeatureSpec((8, 16), (1, 2)), out_channels=3, bottleneck=32)
        >>> decoder([torch.rand(2, 8, 20, 30), torch.rand(2, 16, 10, 15)]).shape
        torch.Size([2, 3, 20, 30])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        bottleneck: int = 4096,
        depths: tuple[int, ...] | None = None,
        weights: str | Path | None = None,
        norm: Norm = "batch",
        activation: Activation = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, out_channels)
        _check(bottleneck, norm)
        steps = [
            nn.Sequential(
                *(TransposedConvNormAct(before, after, 3, norm, activation) for before, after in pairwise(channels))
            )
            for channels in mirrored_channels("DeconvNetDecoder", spec, depths)
        ]
        self.bottleneck = FullyConnectedBottleneck(spec.channels[-1], bottleneck, norm, activation, dropout)
        self.climb = UnpoolingPath(unpooling_factors("DeconvNetDecoder", spec), steps)
        self.score = nn.Conv2d(spec.channels[0], out_channels, 1)
        initialise(self, "gaussian")
        shift_norms(self, 0.001)
        self.load_report: LoadReport | None = None if weights is None else _load(self.bottleneck, weights)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        planes: Tensor = self.score(self.climb(self.bottleneck(pool(features[-1], 2)), features))
        return planes


def _check(bottleneck: int, norm: Norm) -> None:
    if bottleneck < 1:
        raise ConfigurationError(
            f"DeconvNetDecoder: bottleneck is {bottleneck}; expected 1 channel or more (4096 as published). "
            "SegNetDecoder is the network without it."
        )
    layer = normalisation(norm, bottleneck)
    if isinstance(layer, nn.GroupNorm) and layer.num_groups == bottleneck:
        raise ConfigurationError(
            f"DeconvNetDecoder: norm {norm!r} with a bottleneck of {bottleneck} normalises each channel by itself, "
            "which makes a map of a single cell zero, and fc6 leaves a single cell of an image of 224 x 224 or less. "
            "Use batch, layer, weight or none, or group with a bottleneck of more than 32."
        )


def _load(bottleneck: FullyConnectedBottleneck, weights: str | Path) -> LoadReport:
    """torchvision's fc6 and fc7 into the convolutions of that name."""
    file = weights_file(weights, "vgg16_bn")
    # under torchvision's names
    layers = nn.ModuleDict({"classifier": nn.ModuleDict({"0": bottleneck.fc6[0], "3": bottleneck.fc7[0]})})
    report = fit_tensors(
        layers,
        read_state_dict(file),
        str(file),
        "DeconvNetDecoder (fc6, fc7)",
        input_layer="classifier.0.weight",
        classifier=("features.", "classifier.6."),
    )
    report.log()
    return report
