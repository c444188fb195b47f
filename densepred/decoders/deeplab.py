"""DeepLab v3's decoder: atrous spatial pyramid pooling."""

import torch
from torch import Tensor, nn

from densepred.blocks import Activation, BatchNormOfFew, ConvNormAct, Norm
from densepred.decoders.atrous import Convolutions, conv3x3, scaled_rates
from densepred.decoders.base import Decoder
from densepred.decoders.bilinear import enlarged_to_image
from densepred.features import FeatureSpec


def pooled_convolution(
    in_channels: int, out_channels: int, norm: Norm, activation: Activation, single: bool
) -> ConvNormAct:
    """A 1x1 convolution, norm and activation for a map pooled into few cells.

    Args:
        in_channels: Channels of the pooled map.
        out_channels: Channels after.
        norm: Batch norm is `BatchNormOfFew`.
        activation: Nonlinearity.
        single: Whether the map has a single cell. A layer that would then see one value alone ("instance", "group" with
            one channel a group) is left out: it would make it zero, whatever the image.
    """
    layers = ConvNormAct(in_channels, out_channels, 1, norm=norm, activation=activation)
    if single and isinstance(layers[1], nn.GroupNorm) and layers[1].num_groups == layers[1].num_channels:
        return ConvNormAct(in_channels, out_channels, 1, norm="none", activation=activation)
    if isinstance(layers[1], nn.BatchNorm2d):
        layers[1] = BatchNormOfFew(layers[1].num_features)
    return layers


class ImagePooling(nn.Sequential):
    """The map's mean over the whole image, through a 1x1 convolution, at every cell.

    Args:
        in_channels: Channels of the map.
        out_channels: Channels of its mean.
        norm: Normalisation of the mean; see `pooled_convolution`.
        activation: Nonlinearity after it.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H, W).
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm: Norm = "batch", activation: Activation = "relu"
    ) -> None:
        layers = pooled_convolution(in_channels, out_channels, norm, activation, single=True)
        super().__init__(nn.AdaptiveAvgPool2d(1), *layers)

    def forward(self, feature: Tensor) -> Tensor:
        """The pooled map, repeated over the cells."""
        pooled = feature
        for layer in self:
            pooled = layer(pooled)
        return pooled.expand(-1, -1, *feature.shape[-2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: one map seen at several scales at once.

    A 1x1 convolution, 3x3 convolutions of several dilations and the image's mean run side by side; a 1x1 convolution
    fuses them. The tensors have torchvision's names.

    Args:
        in_channels: Channels of the map.
        width: Channels of each branch and of the result.
        dilations: Dilations of the 3x3 convolutions, in cells.
        convolutions: How the 3x3 convolutions are built; see `conv3x3`.
        norm: Normalisation after each convolution.
        activation: Nonlinearity after it.

    Shape:
        (B, in_channels, H, W) -> (B, width, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        dilations: tuple[int, ...],
        convolutions: Convolutions = "dense",
        norm: Norm = "batch",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                ConvNormAct(in_channels, width, 1, norm=norm, activation=activation),
                *(conv3x3(convolutions, in_channels, width, dilation, norm, activation) for dilation in dilations),
                ImagePooling(in_channels, width, norm, activation),
            ]
        )
        self.project = ConvNormAct(len(self.convs) * width, width, 1, norm=norm, activation=activation)

    def forward(self, feature: Tensor) -> Tensor:
        """The map, seen at several scales."""
        fused: Tensor = self.project(torch.cat([conv(feature) for conv in self.convs], dim=1))
        return fused


def score_layer(in_channels: int, out_channels: int) -> nn.Conv2d:
    """The release's last convolution: 1x1, from a normal distribution of deviation 0.01 cut off at two of them."""
    score = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.trunc_normal_(score.weight, std=0.01, a=-0.02, b=0.02)
    nn.init.zeros_(score.bias)  # type: ignore[arg-type]
    return score


class DeepLabV3Decoder(Decoder):
    """Atrous spatial pyramid pooling on the coarsest map, then a 1x1 convolution.

    The rates are given for a map of stride 16 and scaled to the encoder's own, so that they span the same pixels: they
    double at stride 8, as published. Meant for `output_stride` 16 or 8.

    A batch of one image trains: image pooling then normalises by its running statistics (`BatchNormOfFew`), as the
    statistics of one value do not exist.

    Args:
        spec: The encoder's maps; only the coarsest is read.
        out_channels: Number of planes.
        rates: Dilations of the 3x3 branches at stride 16.
        width: Channels of each branch and after the fusion.
        dropout: Probability of dropping an activation after the fusion.
        refine: Add a 3x3 convolution with norm and activation before the last one (torchvision does).
        norm: Normalisation after each convolution.
        activation: Nonlinearity after it.
        align_corners: Enlarge the planes to the image's own size with the centres of the corner cells in the corner
            pixels, as the release and segmentation_models_pytorch do. It fits images of 8 n + 1 pixels, such as the
            release's 513; on the multiples that the network pads to it moves what lies near the border by up to half a
            cell.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_last, W_last); at stride 1 with `align_corners`.

    Raises:
        ConfigurationError: If there are no rates, or one below 1.

    Reference:
        Chen, Papandreou, Schroff, Adam. Rethinking Atrous Convolution for Semantic Image Segmentation. 2017.
        arXiv:1706.05587. The multi-grid is the encoder's: `ResNetEncoder(multi_grid=(1, 2, 4))`.
        With `refine=True, align_corners=True` on `ResNetEncoder("resnet34", output_stride=8, multi_grid=(1, 1, 1))` it
        is segmentation_models_pytorch's `DeepLabV3("resnet34")`.

    Example:
        >>> decoder = DeepLabV3Decoder(FeatureSpec((512,), (8,)), out_channels=21, width=8)
        >>> decoder([torch.rand(2, 512, 5, 6)]).shape
        torch.Size([2, 21, 5, 6])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        rates: tuple[int, ...] = (6, 12, 18),
        width: int = 256,
        dropout: float = 0.1,
        refine: bool = False,
        norm: Norm = "batch",
        activation: Activation = "relu",
        align_corners: bool = False,
    ) -> None:
        super().__init__(spec, out_channels)
        dilations = scaled_rates(rates, 16, spec)
        self.aspp = ASPP(spec.channels[-1], width, dilations, norm=norm, activation=activation)
        self.dropout = nn.Dropout(dropout)
        self.refine = ConvNormAct(width, width, 3, norm=norm, activation=activation) if refine else nn.Identity()
        self.score = score_layer(width, out_channels)
        self.align_corners = align_corners

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        planes: Tensor = self.score(self.refine(self.dropout(self.aspp(features[-1]))))
        return enlarged_to_image(planes, self.spec.strides[-1]) if self.align_corners else planes


class TorchvisionDeepLabV3Decoder(DeepLabV3Decoder):
    """torchvision's `DeepLabHead`: rates 12, 24, 36 at stride 8, dropout 0.5, a further 3x3 convolution.

    With `ResNetEncoder("resnet50", output_stride=8)` the network is
    `torchvision.models.segmentation.deeplabv3_resnet50`, and with `auxiliary=TorchvisionFCNDecoder` too its auxiliary
    classifier. `load_torchvision_segmentation` loads its weights.

    Args:
        spec: The encoder's maps; only the coarsest is read.
        out_channels: Number of planes.
        dropout: Probability of dropping an activation after the fusion.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_last, W_last).

    Reference:
        torchvision.models.segmentation.deeplabv3.DeepLabHead (the last convolution starts smaller here).
    """

    def __init__(self, spec: FeatureSpec, out_channels: int, dropout: float = 0.5) -> None:
        super().__init__(spec, out_channels, dropout=dropout, refine=True)
