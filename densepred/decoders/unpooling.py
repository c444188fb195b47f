"""Max-unpooling: values go back to where an encoder's maxima were."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from densepred.blocks import resize_like
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec


def pool(feature: Tensor, factor: int) -> Tensor:
    """The largest value of each window of `factor` x `factor` cells; windows over the border count too.

    Shape:
        (B, C, H, W) -> (B, C, ceil(H / factor), ceil(W / factor)).
    """
    pooled: Tensor = F.max_pool2d(feature, factor, ceil_mode=True)
    return pooled


def unpool(feature: Tensor, guide: Tensor, factor: int) -> Tensor:
    """Puts each value where `guide` has the maximum of that window, and zeros elsewhere.

    The maxima's places (the "switches") are found by pooling `guide` again: the encoder's own, where it max-pools this
    map. Of equal maxima the first in reading order counts. No gradient flows into `guide`.

    Args:
        feature: Values, one for each window of `guide`; resized to that if the encoder's maps don't halve exactly.
        guide: The map whose maxima say where.
        factor: Side of the windows; with 1 there is nothing to do.

    Shape:
        feature: (B, C, ceil(H / factor), ceil(W / factor)); guide: (B, C, H, W).
        returns: (B, C, H, W).

    Example:
        >>> import torch
        >>> guide = torch.tensor([[1.0, 5.0], [2.0, 3.0]]).view(1, 1, 2, 2)
        >>> unpool(torch.tensor(7.0).view(1, 1, 1, 1), guide, 2)
        tensor([[[[0., 7.],
                  [0., 0.]]]])
    """
    if factor == 1:
        return resize_like(feature, guide)
    _, switches = F.max_pool2d_with_indices(guide, (factor, factor), ceil_mode=True)
    feature = resize_like(feature, switches)
    # not F.max_unpool2d: on CUDA it is refused under deterministic algorithms, although no two values share a place
    cells = feature.new_zeros(guide.shape).flatten(2)
    return cells.scatter(2, switches.flatten(2), feature.flatten(2)).view(guide.shape)


def unpooling_factors(owner: str, spec: FeatureSpec) -> list[int]:
    """How far each map is pooled, coarsest first: to the next coarser map, and by 2 after the coarsest.

    Raises:
        ConfigurationError: If a stride is no multiple of the one before.

    Example:
        >>> unpooling_factors("SegNetDecoder", FeatureSpec((8, 16, 16), (4, 8, 8)))
        [2, 1, 2]
    """
    for finer, coarser in pairwise(spec.strides):
        if coarser % finer:
            raise ConfigurationError(
                f"{owner}: unpooling needs strides that are multiples of the finer one's; the encoder's are "
                f"{spec.strides}. Use UNetDecoder or FPNDecoder, which resize."
            )
    return [2, *(coarser // finer for finer, coarser in reversed(list(pairwise(spec.strides))))]


def mirrored_channels(owner: str, spec: FeatureSpec, depths: Sequence[int] | None) -> list[list[int]]:
    """Channels along the convolutions of each step, coarsest step first: VGG16's, the other way round.

    A step keeps the channels of the map whose switches it used, and its last convolution gives those of the next finer
    map, as that map's switches need them.

    Args:
        owner: Name of the decoder, for errors.
        spec: The encoder's maps.
        depths: Convolutions of each step, coarsest first; by default 3, and 2 in the two finest.

    Raises:
        ConfigurationError: If there is not one depth for each map, or one is below 1.

    Example:
        >>> mirrored_channels("SegNetDecoder", FeatureSpec((64, 128, 256), (1, 2, 4)), None)
        [[256, 256, 256, 128], [128, 128, 64], [64, 64, 64]]
    """
    maps = len(spec.channels)
    if depths is None:
        depths = [3] * max(maps - 2, 0) + [2] * min(maps, 2)
    if len(depths) != maps or min(depths) < 1:
        raise ConfigurationError(
            f"{owner}: depths is {tuple(depths)}; expected {maps} numbers of at least 1, one for each of the encoder's "
            f"maps (strides {spec.strides}), coarsest first."
        )
    after = (spec.channels[0], *spec.channels[:-1])
    steps = zip(reversed(spec.channels), reversed(after), depths, strict=True)
    return [[channels] * depth + [finer] for channels, finer, depth in steps]


class UnpoolingPath(nn.Module):
    """Unpools by the maxima of each of the encoder's maps, coarsest first, and convolves after each unpooling.

    Args:
        factors: How far each map is unpooled, coarsest first (`unpooling_factors`).
        steps: What follows each unpooling.

    Shape:
        feature: (B, C_n, h, w), the coarsest map once more pooled; guides: the encoder's maps, finest first.
        returns: (B, C, H_0, W_0), the finest map's size.
    """

    def __init__(self, factors: Sequence[int], steps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.factors = list(factors)
        self.steps = nn.ModuleList(steps)

    def forward(self, feature: Tensor, guides: list[Tensor]) -> Tensor:
        """Climbs to the finest map."""
        for step, guide, factor in zip(self.steps, reversed(guides), self.factors, strict=True):
            feature = step(unpool(feature, guide, factor))
        return feature
