"""FC-DenseNet's way up."""

from typing import get_args

import torch
from torch import Tensor, nn

from densepred.blocks import Activation, Norm
from densepred.decoders.base import Decoder
from densepred.decoders.climbing import rungs
from densepred.dense_block import FC_DENSENETS, DenseBlock, DenseOptions, FCDenseNetName
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import initialise

WIDEST = 256
"""So many channels go up from the coarsest map at most; the widest published bottleneck gives 240."""


class TransitionUp(nn.Module):
    """A transposed convolution that enlarges a map to the next finer one's size.

    Kernel 3 and stride 2 without padding, cropped to the finer map as published. Larger factors s have kernel 2 s - 1;
    factor 1, between the equal maps of a dilated encoder, is a 3x3 convolution.

    Args:
        in_channels: Channels before.
        out_channels: Channels after.
        factor: How many times finer the finer map is.
        bias: Whether it has a bias.

    Shape:
        feature: (B, in_channels, h, w); skip: (B, any, H, W) with H of `factor` * h to `factor` * (h + 1) - 1, or None.
        returns: (B, out_channels, H, W), or `factor` times (h, w).
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int, bias: bool = True) -> None:
        super().__init__()
        kernel_size = max(2 * factor - 1, 3)
        self.factor = factor
        # what goes on the left of an exact multiple in a centre crop; for the published kernel none
        self.crop = (kernel_size - factor) // 2
        # with this much more at the end a finer map whose pooling rounded down is reached too; here too, none
        more = (factor - 1) // 2
        self.conv = nn.ConvTranspose2d(in_channels, out_channels, kernel_size, factor, output_padding=more, bias=bias)
        initialise(self.conv, "kaiming_uniform")

    def forward(self, feature: Tensor, skip: Tensor | None = None) -> Tensor:
        """The map at the finer size."""
        size = (self.factor * feature.shape[-2], self.factor * feature.shape[-1]) if skip is None else skip.shape[-2:]
        enlarged: Tensor = self.conv(feature)
        return enlarged[..., self.crop : self.crop + size[0], self.crop : self.crop + size[1]]


class TiramisuDecoder(Decoder):
    """The way up of FC-DenseNet: transposed convolutions, joined by the encoder's maps and followed by dense blocks.

    A transition up enlarges only the new maps of the block before, not that block's input: the way up would else grow
    as the way down does. Cropped to the next finer map, it is put before that map, and a dense block reads both. The
    last block's input and new maps together give the planes by a 1x1 convolution.

    On `FCDenseNetEncoder` of the same `name` this is the published network. It reads any other encoder of two maps or
    more; the coarsest map itself goes up there.

    Args:
        spec: The encoder's maps; all are read.
        out_channels: Number of planes.
        name: The published network whose numbers are used where none are given.
        layers: Layers of the blocks, coarsest first: one block for each map but the coarsest; each further one doubles
            the size without a skip. By default the published number at the map's stride (103: 12 at stride 16, then 10,
            7, 5, and 4 at stride 1), and no further ones.
        growth: Maps that each layer adds.
        width: Output channels of the first transition up; by default those of the coarsest map, as published, but at
            most 256.
        norm: Normalisation before each convolution.
        activation: Nonlinearity before each convolution.
        dropout: Probability of dropping an activation after each convolution of a block.
        bias: Whether convolutions have a bias; published with.
        batch_statistics: Use the batch's own statistics in evaluation too, as published; of `norm` "batch" alone. Set
            it in the encoder as well. A picture's planes then depend on the others of its batch.
        recompute: In training, compute concatenations, normalisations and nonlinearities again in the backward pass
            instead of keeping them.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_0, W_0), or 2**n times that with n further blocks.

    Raises:
        ConfigurationError: If there is a single map, the layers do not fit the maps, or maps have margins.

    Reference:
        Jégou, Drozdzal, Vazquez, Romero, Bengio. The One Hundred Layers Tiramisu: Fully Convolutional DenseNets for
        Semantic Segmentation. CVPR Workshops 2017. arXiv:1611.09326.
        Pleiss et al. Memory-Efficient Implementation of DenseNets. 2017. arXiv:1707.06990 (`recompute`).

    Example:
        >>> decoder = TiramisuDecoder(FeatureSpec((8, 16, 32), (1, 2, 4)), out_channels=11, layers=(2, 2), growth=4)
        >>> decoder([torch.rand(1, 8, 23, 28), torch.rand(1, 16, 11, 14), torch.rand(1, 32, 5, 7)]).shape
        torch.Size([1, 11, 23, 28])
    """

    reads_origins = True

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        name: FCDenseNetName = "fc_densenet103",
        layers: tuple[int, ...] | None = None,
        growth: int | None = None,
        width: int | None = None,
        norm: Norm = "batch",
        activation: Activation = "relu",
        dropout: float = 0.2,
        bias: bool = True,
        batch_statistics: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__(spec, out_channels)
        if name not in FC_DENSENETS:
            raise ConfigurationError(
                f"TiramisuDecoder: name is {name!r}. Expected one of: {', '.join(get_args(FCDenseNetName))}."
            )
        layers = _layers(spec, name) if layers is None else tuple(layers)
        growth = FC_DENSENETS[name].growth if growth is None else growth
        climb = rungs("TiramisuDecoder", spec, "layers", layers)
        _check(spec, growth)
        options = DenseOptions(norm, activation, dropout, bias, batch_statistics, recompute)
        before = spec.channels[-1]
        after = min(before, WIDEST) if width is None else width
        self.ups, self.blocks = nn.ModuleList(), nn.ModuleList()
        for rung, count in zip(climb, layers, strict=True):
            self.ups.append(TransitionUp(before, after, rung.factor, bias))
            self.blocks.append(DenseBlock(after + rung.skip, count, growth, options))
            last = after + rung.skip + count * growth
            before = after = count * growth
        self.score = nn.Conv2d(last, out_channels, 1, bias=bias)
        initialise(self.score, "kaiming_uniform")

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        *skips, feature = features
        maps: list[Tensor] = []
        new = [feature]
        for i, (up, block) in enumerate(zip(self.ups, self.blocks, strict=True)):
            skip = skips[-1 - i] if i < len(skips) else None
            enlarged = up(torch.cat(new, dim=1), skip)
            maps = [enlarged] if skip is None else [enlarged, skip]
            new = block(maps)
        planes: Tensor = self.score(torch.cat([*maps, *new], dim=1))
        return planes


def _layers(spec: FeatureSpec, name: str) -> tuple[int, ...]:
    """The published number of layers at each map's stride, coarsest first, without the coarsest map."""
    numbers = FC_DENSENETS[name].layers
    return tuple(numbers[min(stride.bit_length(), len(numbers)) - 1] for stride in spec.strides[-2::-1])


def _check(spec: FeatureSpec, growth: int) -> None:
    if any(coarse % fine for fine, coarse in zip(spec.strides, spec.strides[1:], strict=False)):
        raise ConfigurationError(
            f"TiramisuDecoder enlarges each map to the next finer one by a whole number; the encoder's maps have "
            f"strides {spec.strides}. Use UNetDecoder."
        )
    if any(origin != (stride - 1) / 2 for origin, stride in zip(spec.origins, spec.strides, strict=False)):
        raise ConfigurationError(
            "TiramisuDecoder crops to maps that start at the image's corner; this encoder's unpadded convolutions "
            f"leave margins (the first cells are centred on pixels {spec.origins}). Set the encoder's `padded` to "
            "true, or take the decoder that was published with it."
        )
    if growth < 1:
        raise ConfigurationError(f"TiramisuDecoder: growth is {growth}. Expected 1 map or more of each layer.")
