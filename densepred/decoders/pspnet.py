"""The pyramid scene parsing network's decoder."""

import torch
from torch import Tensor, nn

from densepred.blocks import Activation, ConvNormAct, Norm
from densepred.decoders.base import Decoder
from densepred.decoders.bilinear import enlarged_to_image, resized
from densepred.decoders.deeplab import pooled_convolution
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import initialise


def pool_into_bins(feature: Tensor, bins: int) -> Tensor:
    """Means of the map over `bins` x `bins` windows that cover it, as `adaptive_avg_pool2d` gives them.

    Window i of a side of n cells begins at cell floor(i * n / bins) and ends before ceil((i + 1) * n / bins). The
    means are products with matrices made from the sizes: adaptive pooling has no deterministic gradient on CUDA, and
    neither ONNX nor MPS has it where the windows differ in size.

    Shape:
        feature: (B, C, H, W); returns (B, C, bins, bins).

    Example:
        >>> pool_into_bins(torch.tensor([[1.0, 2.0, 6.0]] * 3).view(1, 1, 3, 3), 2)[0, 0]
        tensor([[1.5000, 4.0000],
                [1.5000, 4.0000]])
    """
    rows, columns = (_windows(n, bins, feature) for n in feature.shape[-2:])
    return rows @ (feature @ columns.mT)


def _windows(cells: int, bins: int, like: Tensor) -> Tensor:
    """(bins, cells): 1 / (cells of window i) where the cell is in it, else 0."""
    i = torch.arange(bins, device=like.device)[:, None]
    cell = torch.arange(cells, device=like.device)
    inside = (cell >= i * cells // bins) & (cell < -(-(i + 1) * cells // bins))
    return inside.to(like.dtype) / inside.sum(dim=1, keepdim=True)


class PyramidPooling(nn.Module):
    """A map beside its own means over ever smaller windows: what is here, in view of the whole.

    For each number of bins the map is pooled into bins x bins means, goes through a 1x1 convolution, normalisation and
    nonlinearity, and comes back to its size (bilinear).

    Args:
        in_channels: Channels of the map.
        width: Channels of each pooled map.
        bins: Windows a side of each pooled map.
        norm: Normalisation of the pooled maps. Batch norm of a single value (one bin, a batch of one image in training)
            uses its running statistics (`BatchNormOfFew`); layers that would always see a single value are left out.
        global_norm: Another one for the pooled map of one bin.
        activation: Nonlinearity of the pooled maps.
        align_corners: How the pooled maps come back; see `FPNDecoder`.

    Shape:
        (B, in_channels, H, W) -> (B, in_channels + len(bins) * width, H, W), in the order of `bins`, the map first.

    Reference:
        Zhao, Shi, Qi, Wang, Jia. Pyramid Scene Parsing Network. CVPR 2017. arXiv:1612.01105.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        bins: tuple[int, ...] = (1, 2, 3, 6),
        norm: Norm = "batch",
        global_norm: Norm | None = None,
        activation: Activation = "relu",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.bins = bins
        self.align_corners = align_corners
        self.branches = nn.ModuleList(
            pooled_convolution(
                in_channels, width, (global_norm if count == 1 else None) or norm, activation, single=count == 1
            )
            for count in bins
        )
        self.channels = in_channels + len(bins) * width

    def forward(self, feature: Tensor) -> Tensor:
        """The map and, beside it, its pooled versions."""
        pooled = [branch(pool_into_bins(feature, bins)) for bins, branch in zip(self.bins, self.branches, strict=True)]
        return torch.cat([feature, *(resized(values, feature, self.align_corners) for values in pooled)], dim=1)


class PSPNetDecoder(Decoder):
    """Pyramid pooling of one map, a convolution that fuses it, and scores.

    Meant for a dilated encoder (`output_stride: 8`), as published. The auxiliary loss of the paper, weight 0.4, is the
    network's own: `auxiliary: TorchvisionFCNDecoder` reads the map before the coarsest, as there.

    Args:
        spec: The encoder's maps; one is read.
        out_channels: Number of planes.
        width: Channels after the fusion. Each pooled map has the encoder map's channels divided by `len(bins)`.
        bins: Windows a side of each pooled map.
        norm: Normalisation; see `PyramidPooling` for that of few values.
        activation: Nonlinearity.
        dropout: Probability of dropping a channel of an image before the scores.
        map_index: Which map is read, counted from the finest, or from the coarsest if negative. What the encoder has
            beyond it is computed in vain.
        fuse_kernel: Side of the fusing convolution's kernel.
        score_kernel: Side of the scoring convolution's kernel.
        global_norm: Normalisation of the globally pooled map; by default `norm`.
        align_corners: Resize with the centres of the corner cells on top of each other, and up to the image's own size,
            as segmentation_models_pytorch does; see `FPNDecoder`.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, h, w) at the stride of the map read; at stride 1 with `align_corners`.

    Raises:
        ConfigurationError: If there is no such map, a kernel is even, or `bins` is empty or has a number below 1.

    Reference:
        Zhao, Shi, Qi, Wang, Jia. Pyramid Scene Parsing Network. CVPR 2017. arXiv:1612.01105. The release aligns
        corners; scores start near zero here.
        With `map_index=2, fuse_kernel=1, score_kernel=3, global_norm="none", align_corners=True` on
        `ResNetEncoder("resnet34")` it is segmentation_models_pytorch's `PSPNet("resnet34")`, which reads stride 8.

    Example:
        >>> decoder = PSPNetDecoder(FeatureSpec((16,), (8,)), out_channels=21, width=8)
        >>> decoder([torch.rand(1, 16, 9, 12)]).shape
        torch.Size([1, 21, 9, 12])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        width: int = 512,
        bins: tuple[int, ...] = (1, 2, 3, 6),
        norm: Norm = "batch",
        activation: Activation = "relu",
        dropout: float = 0.1,
        map_index: int = -1,
        fuse_kernel: int = 3,
        score_kernel: int = 1,
        global_norm: Norm | None = None,
        align_corners: bool = False,
    ) -> None:
        super().__init__(spec, out_channels)
        _check(spec, bins, map_index, {"fuse_kernel": fuse_kernel, "score_kernel": score_kernel})
        self.map_index = map_index
        self.align_corners = align_corners
        channels = spec.channels[map_index]
        self.pooling = PyramidPooling(
            channels, max(channels // len(bins), 1), bins, norm, global_norm, activation, align_corners
        )
        self.fuse = ConvNormAct(self.pooling.channels, width, fuse_kernel, norm=norm, activation=activation)
        self.dropout = nn.Dropout2d(dropout)
        self.score = nn.Conv2d(width, out_channels, score_kernel, padding=score_kernel // 2)
        initialise(self.score, "gaussian")

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        planes: Tensor = self.score(self.dropout(self.fuse(self.pooling(features[self.map_index]))))
        return enlarged_to_image(planes, self.spec.strides[self.map_index]) if self.align_corners else planes


def _check(spec: FeatureSpec, bins: tuple[int, ...], map_index: int, kernels: dict[str, int]) -> None:
    maps = len(spec.strides)
    if not -maps <= map_index < maps:
        raise ConfigurationError(
            f"PSPNetDecoder: map_index is {map_index}; the encoder yields {maps} maps, of strides {spec.strides}. "
            f"Give {-maps} to {maps - 1}."
        )
    if not bins or min(bins) < 1:
        raise ConfigurationError(f"PSPNetDecoder: bins are {bins}; expected numbers above 0, such as 1, 2, 3, 6.")
    for option, kernel in kernels.items():
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigurationError(f"PSPNetDecoder: {option} is {kernel}; expected an odd number.")
