"""The dense prediction transformer's decoder."""

from itertools import pairwise
from typing import Literal, cast, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from densepred.blocks import Activation, ConvNormAct, Norm, nonlinearity
from densepred.decoders.base import Decoder
from densepred.decoders.fpn import pyramid_start
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec

DPTHead = Literal["segmentation", "depth"]


class DPTDecoder(Decoder):
    """Makes a pyramid of a vision transformer's maps and fuses it from coarse to fine with residual units (RefineNet).

    The four maps of a plain vision transformer have one stride, that of its patches. They are reassembled at a quarter,
    a half, once and twice that stride (transposed convolutions; a strided one), so 4, 8, 16 and 32 for patches of 16;
    other numbers of maps end at twice the stride too. Maps of an encoder whose strides already differ are taken as they
    are, from `finest_stride` on. Each is brought to `width` channels; from the coarsest on, a residual unit is applied
    to it, the coarser result is added, another unit follows, and the result is enlarged twice.

    Args:
        spec: The encoder's maps.
        out_channels: Number of planes.
        width: Channels of the fused maps.
        reassemble_widths: Channels of the reassembled maps of a plain vision transformer, finest first; by default 96,
            192, 384, 768, those for ViT-Base (256, 512, 1024, 1024 for ViT-Large).
        finest_stride: Maps of a finer stride are not read; where all are finer, the coarsest is.
        head: "segmentation" for a 3x3 convolution, dropout and scores at half the finest stride; "depth" for a 3x3
            convolution to half the width, enlargement to a quarter of the finest stride, a 3x3 convolution to 32
            channels and a 1x1 convolution. Neither goes past the image's own size.
        norm: Normalisation in the units and the head ("none" for the published depth network).
        activation: Nonlinearity in the units and the head.
        dropout: Probability of dropping an activation before the last convolution.
        align_corners: Enlarge with the centres of the corner cells on top of each other, and up to the image's own
            size, as published. Each enlargement then moves what lies near the border by up to half a cell.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, h, w) at half (head "segmentation") or a quarter ("depth") of the pyramid's finest
            stride, such as 2 or 1; with `align_corners` at stride 1.

    Raises:
        ConfigurationError: If there is no such head, if `reassemble_widths` has not one number a map or is given for
            maps that are not reassembled, if `finest_stride` is not positive, or if `align_corners` is set although
            the planes' stride is not a whole number (patches of 14).

    Reference:
        Ranftl, Bochkovskiy, Koltun. Vision Transformers for Dense Prediction. ICCV 2021. arXiv:2103.13413. The class
        token is not read ("ignore" there). The 1x1 convolution after each enlargement is applied before it, which is
        the same for less. With `align_corners` the same as segmentation_models_pytorch's `DPT` of that readout, but for
        a first residual unit on the coarsest map there, which the release has not.

    Example:
        >>> import torch
        >>> decoder = DPTDecoder(FeatureSpec((8, 8, 8, 8), (16, 16, 16, 16)), out_channels=3, width=8)
        >>> decoder([torch.rand(1, 8, 4, 6) for _ in range(4)]).shape
        torch.Size([1, 3, 32, 48])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        width: int = 256,
        reassemble_widths: tuple[int, ...] | None = None,
        finest_stride: int = 4,
        head: DPTHead = "segmentation",
        norm: Norm = "batch",
        activation: Activation = "relu",
        dropout: float = 0.1,
        align_corners: bool = False,
    ) -> None:
        super().__init__(spec, out_channels)
        if head not in get_args(DPTHead):
            raise ConfigurationError(f"DPTDecoder: head is {head!r}. Expected one of: {', '.join(get_args(DPTHead))}.")
        self.align_corners = align_corners
        self.start = pyramid_start(type(self).__name__, spec, finest_stride)
        channels, strides = spec.channels[self.start :], [float(stride) for stride in spec.strides[self.start :]]
        self.reassemble = nn.ModuleList(nn.Identity() for _ in channels)
        if len(strides) > 1 and len(set(strides)) == 1:
            factors = [2.0 ** (len(strides) - 2 - i) for i in range(len(strides))]
            widths = _reassemble_widths(reassemble_widths, len(strides))
            self.reassemble = nn.ModuleList(map(_reassembled, channels, widths, factors))
            channels, strides = widths, [stride / factor for stride, factor in zip(strides, factors, strict=True)]
        elif reassemble_widths is not None:
            raise ConfigurationError(
                f"DPTDecoder: reassemble_widths is for maps of one stride; these have strides {spec.strides}. Leave it "
                "out."
            )
        self.entries = nn.ModuleList(nn.Conv2d(before, width, 3, padding=1, bias=False) for before in channels)
        last = len(channels) - 1
        self.fusions = nn.ModuleList(_Fusion(width, norm, activation, i < last) for i in range(len(channels)))
        self.factors = [max(round(coarse / fine), 1) for fine, coarse in pairwise(strides)]
        self.enlargement = 2 if strides[0] >= 2 else 1
        self.stride = strides[0] / self.enlargement
        self.head = _Head(width, out_channels, head, norm, activation, dropout, self.stride >= 2, align_corners)
        self.stride /= self.head.enlargement
        if align_corners and self.stride != int(self.stride):
            raise ConfigurationError(
                f"DPTDecoder: align_corners needs planes of whole stride; from maps of stride {spec.strides[-1]} they "
                f"have {self.stride}. Set align_corners to false."
            )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        levels = [
            entry(reassemble(feature))
            for entry, reassemble, feature in zip(self.entries, self.reassemble, features[self.start :], strict=True)
        ]
        fused = self.fusions[-1](levels[-1])
        for i in range(len(levels) - 2, -1, -1):
            fused = self._enlarged(fused, self.factors[i])
            # a strided map of an odd number of cells goes beyond the finer one: cut, so that cells stay in place
            rows, columns = levels[i].shape[-2:]
            fused = fused[..., :rows, :columns]
            if fused.shape[-2:] != levels[i].shape[-2:]:
                fused = F.interpolate(fused, size=(rows, columns), mode="bilinear", align_corners=self.align_corners)
            fused = self.fusions[i](levels[i], fused)
        planes: Tensor = self.head(self._enlarged(fused, self.enlargement))
        return self._enlarged(planes, int(self.stride)) if self.align_corners else planes

    def _enlarged(self, planes: Tensor, factor: int) -> Tensor:
        return _enlarged(planes, factor, self.align_corners)


def _enlarged(planes: Tensor, factor: int, align_corners: bool) -> Tensor:
    if factor == 1:
        return planes
    return F.interpolate(planes, scale_factor=float(factor), mode="bilinear", align_corners=align_corners)


def _reassemble_widths(given: tuple[int, ...] | None, maps: int) -> tuple[int, ...]:
    if given is None:
        return tuple(96 * 2 ** min(i, 3) for i in range(maps))
    if len(given) != maps:
        raise ConfigurationError(
            f"DPTDecoder: reassemble_widths has {len(given)} numbers for {maps} maps. Give one for each."
        )
    return tuple(given)


def _reassembled(channels: int, width: int, factor: float) -> nn.Module:
    """A map at `factor` times its size."""
    resample: nn.Module = nn.Identity()
    if factor > 1:
        resample = nn.ConvTranspose2d(width, width, int(factor), int(factor))
    elif factor < 1:
        resample = nn.Conv2d(width, width, 3, stride=int(1 / factor), padding=1)
    return nn.Sequential(nn.Conv2d(channels, width, 1), resample)


class _ResidualUnit(nn.Module):
    """Two 3x3 convolutions, each after the nonlinearity, beside the identity."""

    def __init__(self, width: int, norm: Norm, activation: Activation) -> None:
        super().__init__()
        inner = width // 2 if activation == "maxout" else width
        self.convs = nn.Sequential(
            _not_in_place(activation),
            ConvNormAct(inner, width, norm=norm, activation="none"),
            _not_in_place(activation),
            ConvNormAct(inner, width, norm=norm, activation="none"),
        )

    def forward(self, feature: Tensor) -> Tensor:
        residual: Tensor = self.convs(feature)
        return feature + residual


def _not_in_place(activation: Activation) -> nn.Module:
    """The nonlinearity, leaving its input alone: the identity beside it still needs it."""
    layer = nonlinearity(activation)
    if hasattr(layer, "inplace"):
        cast(nn.ReLU, layer).inplace = False
    return layer


class _Fusion(nn.Module):
    """A level joined with the coarser ones; the coarsest has none to join."""

    def __init__(self, width: int, norm: Norm, activation: Activation, joins: bool) -> None:
        super().__init__()
        self.before = _ResidualUnit(width, norm, activation) if joins else nn.Identity()
        self.after = _ResidualUnit(width, norm, activation)
        self.project = nn.Conv2d(width, width, 1)

    def forward(self, level: Tensor, coarser: Tensor | None = None) -> Tensor:
        feature = self.before(level)
        if coarser is not None:
            feature = feature + coarser
        fused: Tensor = self.project(self.after(feature))
        return fused


class _Head(nn.Module):
    """Fused maps to planes."""

    def __init__(
        self,
        width: int,
        out_channels: int,
        kind: DPTHead,
        norm: Norm,
        activation: Activation,
        dropout: float,
        may_enlarge: bool,
        align_corners: bool,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.enlargement = 2 if kind == "depth" and may_enlarge else 1
        if kind == "depth":
            self.first: nn.Module = nn.Conv2d(width, width // 2, 3, padding=1)
            self.second: nn.Module = ConvNormAct(width // 2, 32, norm=norm, activation=activation)
        else:
            self.first = ConvNormAct(width, width, norm=norm, activation=activation)
            self.second = nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(32 if kind == "depth" else width, out_channels, 1)

    def forward(self, fused: Tensor) -> Tensor:
        enlarged = _enlarged(self.first(fused), self.enlargement, self.align_corners)
        planes: Tensor = self.score(self.dropout(self.second(enlarged)))
        return planes
