"""The fully convolutional network's decoder."""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from densepred.blocks import Activation, ConvNormAct, Norm
from densepred.decoders.base import Decoder
from densepred.decoders.bilinear import Upsampling, kernel_size, upsampling_layer
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec, Place


def _score(in_channels: int, out_channels: int) -> nn.Conv2d:
    """A 1x1 convolution that starts at zero."""
    score = nn.Conv2d(in_channels, out_channels, 1)
    nn.init.zeros_(score.weight)
    if score.bias is not None:
        nn.init.zeros_(score.bias)
    return score


class _Skip(nn.Module):
    """Planes upsampled to a finer map, plus that map's own score.

    Args:
        in_channels: Channels of the map.
        out_channels: Number of planes.
        factor: How many times finer the map is.
        scale: Factor on the map.
        upsampling: See `FCNDecoder`.
        crop: Cells of the map above and to the left of the upsampled planes; None where both start at the image's
            corner.
    """

    def __init__(
        self, in_channels: int, out_channels: int, factor: int, scale: float, upsampling: Upsampling, crop: int | None
    ) -> None:
        super().__init__()
        self.scale = scale
        self.crop = crop
        self.mode = "nearest" if upsampling == "nearest" else "bilinear"
        self.upsample = upsampling_layer(upsampling, out_channels, factor, padded=crop is None)
        self.score = _score(in_channels, out_channels)

    def forward(self, planes: Tensor, feature: Tensor) -> Tensor:
        planes = self.upsample(planes)
        if self.crop is not None:
            height, width = planes.shape[-2:]
            feature = feature[..., self.crop : self.crop + height, self.crop : self.crop + width]
        score: Tensor = self.score(feature * self.scale if self.scale != 1 else feature)
        if planes.shape[-2:] != score.shape[-2:]:
            # an encoder that sets its own sizes need not halve them exactly
            planes = F.interpolate(planes, size=score.shape[-2:], mode=self.mode)
        return planes + score


class FCNDecoder(Decoder):
    """Scores the coarsest map, then adds the scores of finer maps on the way up (FCN-32s, FCN-16s, FCN-8s).

    A 1x1 convolution turns the coarsest map into planes; these are upsampled to each finer map down to
    `finest_stride`, and that map's own 1x1 scores are added. The last upsampling, to the image, is left to the network
    or the task (bilinear, as in the published networks) or done here. All scores start at zero: the first
    cross-entropy is ln(classes), and a network that gains a skip starts where it was. The weights of each stage load
    into the next (32s, 16s, 8s), whose skip is all that is new; its first planes are the old ones, upsampled once.

    On `FCNVGGEncoder` this is the released network, whose unpadded deconvolutions are cropped by 19, by 5 and 27, or by
    5, 9 and 31 cells: numbers that follow from where the maps lie (`FeatureSpec.origins`). On `VGGEncoder(
    fully_connected=True, maps="pool")` it is the same with padded convolutions; it reads any encoder. On a dilated
    encoder there are fewer skips, or none: only maps finer than the coarsest one can be added.

    Args:
        spec: The encoder's maps; the coarsest is read, and the deepest of each finer stride down to `finest_stride`.
        out_channels: Number of planes.
        finest_stride: Stride of the finest skip, and of the planes: 32, 16 or 8.
        upsampling: "bilinear" (fixed, as in the release, where learning made no difference), "learned" (from bilinear,
            a kernel for each plane: the conference version) or "nearest".
        upsample_to_image: Upsample to the image here, by a further layer of the same kind, instead of leaving it to
            the network, which takes memory for planes of full resolution. Maps with margins always are.
        hidden: Channels of a 3x3 convolution with norm and activation before the coarsest score; none by default.
        norm: Of the hidden convolution; see `densepred.blocks.normalisation`.
        activation: Of the hidden convolution; see `densepred.blocks.nonlinearity`.
        dropout: Probability of dropping an activation before the coarsest score.
        skip_scales: Fixed factors on the maps of stride 16 and 8 before their scores; (0.01, 0.0001) for the published
            "at once" training, where the skips are learned together with the rest.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, h, w) at `finest_stride`, or at the coarsest map's stride where that is finer; at
            stride 1 with `upsample_to_image` and from maps with margins.

    Raises:
        ConfigurationError: If the encoder has no map of `finest_stride` although its coarsest is coarser; if there is
            no such upsampling; if the maps' margins leave a border of the image without planes.

    Reference:
        Long, Shelhamer, Darrell. Fully Convolutional Networks for Semantic Segmentation. CVPR 2015. arXiv:1411.4038;
        Shelhamer, Long, Darrell. PAMI 2017. arXiv:1605.06211. Deconvolutions have a kernel for each plane; Caffe's
        blobs hold one for each pair, zero but for these. Without margins the planes' border is repeated where they are
        upsampled, and does not fade.

    Example:
        >>> import torch
        >>> decoder = FCNDecoder(FeatureSpec((256, 512, 512), (8, 16, 32)), out_channels=21)
        >>> decoder([torch.rand(1, 256, 8, 12), torch.rand(1, 512, 4, 6), torch.rand(1, 512, 2, 3)]).shape
        torch.Size([1, 21, 8, 12])
    """

    reads_origins = True

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        finest_stride: Literal[32, 16, 8] = 8,
        upsampling: Upsampling = "bilinear",
        upsample_to_image: bool = False,
        hidden: int | None = None,
        norm: Norm = "batch",
        activation: Activation = "relu",
        dropout: float = 0.0,
        skip_scales: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__(spec, out_channels)
        strides = _skip_strides(spec, finest_stride)
        # the deepest map of each stride: a dilated encoder has several of its coarsest
        self.skip_maps = [max(i for i, s in enumerate(spec.strides) if s == stride) for stride in strides]
        crops, self.crop = _crops(spec, self.skip_maps, upsampling)
        self.hidden = (
            nn.Identity()
            if hidden is None
            else ConvNormAct(spec.channels[-1], hidden, norm=norm, activation=activation)
        )
        self.dropout = nn.Dropout(dropout)
        self.score = _score(spec.channels[-1] if hidden is None else hidden, out_channels)
        scales = dict(zip((16, 8), skip_scales, strict=True))
        # by stride, so that the weights of a 32s load into a 16s and those into an 8s
        self.skips = nn.ModuleDict()
        before = spec.strides[-1]
        for stride, i, crop in zip(strides, self.skip_maps, crops, strict=True):
            scale = scales.get(stride, 1.0)
            self.skips[str(stride)] = _Skip(spec.channels[i], out_channels, before // stride, scale, upsampling, crop)
            before = stride
        self.to_image = nn.ModuleDict()
        if before > 1 and (upsample_to_image or self.crop is not None):
            self.to_image[str(before)] = upsampling_layer(upsampling, out_channels, before, padded=self.crop is None)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        planes: Tensor = self.score(self.dropout(self.hidden(features[-1])))
        for i, skip in zip(self.skip_maps, self.skips.values(), strict=True):
            planes = skip(planes, features[i])
        for upsample in self.to_image.values():
            planes = upsample(planes)
        return planes if self.crop is None else planes[..., self.crop :, self.crop :]


def _skip_strides(spec: FeatureSpec, finest: int) -> list[int]:
    """Strides of the maps to add, coarse to fine."""
    if finest not in (32, 16, 8):
        raise ConfigurationError(f"FCNDecoder: finest_stride is {finest}; expected 32, 16 or 8.")
    coarsest = spec.strides[-1]
    strides = sorted({stride for stride in spec.strides if finest <= stride < coarsest}, reverse=True)
    if finest < coarsest and finest not in strides:
        possible = [stride for stride in (32, 16, 8) if stride in spec.strides or stride >= coarsest]
        raise ConfigurationError(
            f"FCNDecoder: finest_stride {finest} needs a map of that stride; the encoder's maps have strides "
            f"{spec.strides}. Set finest_stride to one of {possible or 'none: choose another decoder'}."
        )
    return strides


def _crops(spec: FeatureSpec, skips: list[int], upsampling: Upsampling) -> tuple[list[int | None], int | None]:
    """Cells that each skip's map, and at last the planes, begin before what is added to them, and the image."""
    if not spec.origins:
        return [None] * len(skips), None
    crops: list[int | None] = []
    place = Place(spec.origins[-1], spec.strides[-1])
    if place.origin == (place.stride - 1) / 2:
        raise ConfigurationError(
            f"FCNDecoder: the encoder's coarsest map, of stride {place.stride}, has its first cell centred on pixel "
            f"{place.origin}: it has no margin, and may end before the image does. Set the encoder's `padded` to true, "
            "or take the decoder that was published with it."
        )
    for i in skips:
        factor = place.stride // spec.strides[i]
        place = place.enlarged(kernel_size(upsampling, factor), factor)
        crops.append(_cells((place.origin - spec.origins[i]) / place.stride, spec))
    place = place.enlarged(kernel_size(upsampling, place.stride), place.stride)
    return crops, _cells(-place.origin, spec)


def _cells(number: float, spec: FeatureSpec) -> int:
    if number < 0 or number != int(number):
        raise ConfigurationError(
            f"FCNDecoder: the encoder's maps of strides {spec.strides} have first cells centred on pixels "
            f"{spec.origins}. Its upsampled planes begin {abs(number):g} cells "
            f"{'inside' if number < 0 else 'before'} what they should cover, and a crop of whole cells cannot mend "
            "that. Set the encoder's `padded` to true, or take FCNVGGEncoder, whose margin is wide enough."
        )
    return int(number)


class TorchvisionFCNDecoder(FCNDecoder):
    """torchvision's `FCNHead`: 3x3 convolution to a quarter of the channels, batch norm, ReLU, dropout, scores.

    With `ResNetEncoder("resnet50", output_stride=8)` the network is `torchvision.models.segmentation.fcn_resnet50`,
    and with `auxiliary=TorchvisionFCNDecoder` too its auxiliary classifier. `load_torchvision_segmentation` loads its
    weights.

    Args:
        spec: The encoder's maps; only the coarsest is read.
        out_channels: Number of planes.
        dropout: Probability of dropping an activation before the scores.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_last, W_last); from maps with margins, planes of stride 1.

    Reference:
        torchvision.models.segmentation.fcn.FCNHead (scores start at zero here, at random there).
    """

    def __init__(self, spec: FeatureSpec, out_channels: int, dropout: float = 0.1) -> None:
        super().__init__(spec, out_channels, finest_stride=32, hidden=max(spec.channels[-1] // 4, 1), dropout=dropout)
