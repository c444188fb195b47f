"""A decoder with a head at each of the encoder's exits."""

from typing import cast

from torch import Tensor, nn

from densepred.blocks import resize_like
from densepred.decoders.base import Decoder
from densepred.features import FeatureSpec


class AnytimeDecoder(Decoder):
    """A small head at each exit of the encoder, so that there is an answer after every block of it.

    A head scores every map by a 1x1 convolution and adds the scores up from the coarsest to the finest one, enlarged
    bilinearly on the way; it costs `out_channels` numbers for each channel that it reads. The answer is that of the
    last exit. In training all exits answer, and the losses of all are added up, as MSDNet's are; when predicting,
    whoever is short of time or sure already takes the answer of an earlier one (`densepred.inference.anytime`). On an
    encoder without exits there is one head, on its maps.

    This is the dense counterpart of MSDNet's classifiers, with the scores of the fully convolutional networks; it is
    not published by MSDNet's authors.

    Args:
        spec: The encoder's maps, and what of them is there at each exit.
        out_channels: Number of planes.
        dropout: Probability of dropping an activation of the maps.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_0, W_0), the last exit's.

    Reference:
        Huang, Chen, Li, Wu, van der Maaten, Weinberger. Multi-Scale Dense Networks for Resource Efficient Image
        Classification. ICLR 2018. arXiv:1703.09844 (exits, the sum of their losses);
        Long, Shelhamer, Darrell. Fully Convolutional Networks for Semantic Segmentation. CVPR 2015. arXiv:1411.4038
        (the heads).

    Example:
        >>> import torch
        >>> decoder = AnytimeDecoder(FeatureSpec((8, 16), (1, 2), exits=((4, 8), (8, 16))), out_channels=3)
        >>> maps = [torch.rand(1, 8, 6, 4), torch.rand(1, 16, 3, 2)]
        >>> decoder(maps).shape, decoder.at_exit(maps, 0).shape
        (torch.Size([1, 3, 6, 4]), torch.Size([1, 3, 6, 4]))
    """

    def __init__(self, spec: FeatureSpec, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__(spec, out_channels)
        channels = spec.exits or (spec.channels,)
        self.heads = nn.ModuleList(_TopDown(each, out_channels, dropout) for each in channels)

    @property
    def exits(self) -> int:
        """How many heads there are."""
        return len(self.heads)

    def forward(self, features: list[Tensor]) -> Tensor:
        """The last exit's planes."""
        return self.at_exit(features, self.exits - 1)

    def at_exit(self, features: list[Tensor], exit: int) -> Tensor:
        """Planes of one exit, from its maps or from those of a later one, of which it reads its part."""
        return cast(Tensor, self.heads[exit](features))


class _TopDown(nn.Module):
    """Scores of all maps, added up from coarse to fine."""

    def __init__(self, channels: tuple[int, ...], out_channels: int, dropout: float) -> None:
        super().__init__()
        self.channels = channels
        self.dropout = nn.Dropout(dropout)
        self.scores = nn.ModuleList(
            # one bias is enough for a sum
            nn.Conv2d(width, out_channels, 1, bias=i == 0)
            for i, width in enumerate(channels)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        planes: Tensor | None = None
        for width, score, feature in zip(self.channels[::-1], list(self.scores)[::-1], features[::-1], strict=True):
            here = score(self.dropout(feature[:, :width]))
            planes = here if planes is None else here + resize_like(planes, here)
        return cast(Tensor, planes)
