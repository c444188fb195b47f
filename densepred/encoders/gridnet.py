"""GridNet: a grid of residual streams."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from densepred.encoders.base import Encoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import initialise_as_torch7


class GridNetEncoder(Encoder):
    """A grid of maps: rows are residual streams of one resolution each, columns carry between them, down and then up.

    Each row keeps its resolution: full, 1/2, 1/4, ... From one node to the next in its row leads the identity plus a
    residual branch. The first half of the columns also adds, to every node, what comes from the finer row above (a
    convolution of stride 2), the second half what comes from the coarser row below (a transposed one). A path from the
    image to the output may so go down and up anywhere: residual networks, encoder-decoders and U-Nets are paths of it.
    Branches are pre-activated: batch norm, ReLU, 3x3 convolution, twice. The first column is the way down alone.

    Lest the finest row alone be learned, `TotalDropout` drops residual branches as a whole in training. The vertical
    ones always stay, so every row is reached even where all the others are dropped.

    With `GridNetDecoder` it is the published network; `PointwiseDecoder` and others read its map too. The release's
    training script has 126 maps in the fourth row, a slip: its other parts and the paper say 128.

    Differs from the release: batch norm's scales start at 1, as is usual now, not at random between 0 and 1.

    Args:
        in_channels: Channels of the image.
        mean: Mean of each channel, of an image in [0, 1]; by default 0: the image goes through a batch norm.
        std: As `mean`; by default 1.
        widths: Maps of each row, finest first; a row has half the resolution of the one above.
        columns: Columns that lead down, and as many that lead up.
        dropout: Probability that a residual branch is dropped in training.

    Shape:
        image: (B, in_channels, H, W), uint8 or floating point in [0, 1].
        returns: one map (B, widths[0], H, W).

    Raises:
        ConfigurationError: If there is no row or column, or a width below 1.

    Reference:
        Fourure, Emonet, Fromont, Muselet, Tremeau, Wolf. Residual Conv-Deconv Grid Network for Semantic Segmentation.
        BMVC 2017. arXiv:1707.07958. Initialised as in the release: U(-a, a), a = 1 / sqrt(9 * input maps).

    Example:
        >>> encoder = GridNetEncoder(widths=(4, 8, 16), columns=2)
        >>> encoder.spec, encoder.multiple
        (FeatureSpec(channels=(4,), strides=(1,)), 4)
        >>> [tuple(feature.shape) for feature in encoder(torch.zeros(1, 3, 36, 48))]
        [(1, 4, 36, 48)]
    """

    def __init__(
        self,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        widths: tuple[int, ...] = (16, 32, 64, 128, 256),
        columns: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(
            in_channels, (0.0,) * in_channels if mean is None else mean, (1.0,) * in_channels if std is None else std
        )
        widths = tuple(widths)
        if not widths or min(*widths, columns) < 1:
            raise ConfigurationError(
                f"GridNetEncoder: widths {widths}, columns {columns}; expected a row and a column at least, and "
                "numbers of 1 or more."
            )
        self.widths = widths
        self.stem = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            *(nn.Conv2d(in_channels, widths[0], 3, padding=1), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)),
            *(nn.Conv2d(widths[0], widths[0], 3, padding=1), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)),
        )
        # the first column that leads down has no residual branches, the first that leads up ordinary convolutions
        self.downs = nn.ModuleList(_Down(widths, dropout if i else None) for i in range(columns))
        self.ups = nn.ModuleList(_Up(widths, dropout, transposed=i > 0) for i in range(columns))
        self.spec = FeatureSpec((widths[0],), (1,))
        initialise_as_torch7(self)

    @property
    def multiple(self) -> int:
        """The coarsest row's stride."""
        return 1 << (len(self.widths) - 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """A raw image to the last node of the finest row."""
        rows = [self.stem(self.normalise(image))]
        for column in (*self.downs, *self.ups):
            rows = column(rows)
        return rows[:1]


class TotalDropout(_DropoutNd):
    """Zeroes everything with probability p in training: one draw for the whole batch. Never rescales.

    What is kept is the same in training and in evaluation, so the sum that a branch is added to is on average smaller
    in training, as published. It is dropout in the eyes of whoever looks for it (Monte Carlo dropout, for one).

    Args:
        p: Probability of zeroing.

    Reference:
        Fourure et al. Residual Conv-Deconv Grid Network for Semantic Segmentation. BMVC 2017. arXiv:1707.07958.

    Example:
        >>> TotalDropout(1.0)(torch.ones(2)), TotalDropout(1.0).eval()(torch.ones(2))
        (tensor([0., 0.]), tensor([1., 1.]))
    """

    def forward(self, values: Tensor) -> Tensor:
        """All of it or nothing."""
        if not self.training or self.p == 0:
            return values
        # multiplied, not left out: every parameter has a gradient at every step, which distributed training expects
        return values * (torch.rand((), device=values.device) >= self.p).to(values.dtype)


def _branch(before: int, after: int, first: nn.Module, second: nn.Module) -> list[nn.Module]:
    return [
        *(nn.BatchNorm2d(before), nn.ReLU(inplace=True), first),
        *(nn.BatchNorm2d(after), nn.ReLU(inplace=True), second),
    ]


def _horizontal(width: int, dropout: float, transposed: bool = False) -> nn.Module:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    first, second = (kind(width, width, 3, padding=1) for _ in range(2))
    return nn.Sequential(*_branch(width, width, first, second), TotalDropout(dropout))


class _Down(nn.Module):
    """A column that leads down; without residual branches, the first, it makes the rows of the finest one."""

    def __init__(self, widths: tuple[int, ...], dropout: float | None) -> None:
        super().__init__()
        self.across = nn.ModuleList() if dropout is None else nn.ModuleList(_horizontal(w, dropout) for w in widths)
        self.verticals = nn.ModuleList(
            nn.Sequential(
                *_branch(
                    *(finer, coarser),
                    nn.Conv2d(finer, coarser, 3, stride=2, padding=1),
                    nn.Conv2d(coarser, coarser, 3, padding=1),
                )
            )
            for finer, coarser in pairwise(widths)
        )

    def forward(self, rows: list[Tensor]) -> list[Tensor]:
        kept = [row + across(row) for row, across in zip(rows, self.across, strict=True)] if self.across else rows
        nodes = kept[:1]
        for i, vertical in enumerate(self.verticals, start=1):
            from_above = vertical(nodes[-1])
            nodes.append(kept[i] + from_above if self.across else from_above)
        return nodes


class _Up(nn.Module):
    """A column that leads up."""

    def __init__(self, widths: tuple[int, ...], dropout: float, transposed: bool) -> None:
        super().__init__()
        self.across = nn.ModuleList(_horizontal(width, dropout, transposed) for width in widths)
        self.verticals = nn.ModuleList(
            nn.Sequential(
                *_branch(
                    *(coarser, finer),
                    nn.ConvTranspose2d(coarser, finer, 3, stride=2, padding=1, output_padding=1),
                    nn.ConvTranspose2d(finer, finer, 3, padding=1),
                )
            )
            for finer, coarser in pairwise(widths)
        )

    def forward(self, rows: list[Tensor]) -> list[Tensor]:
        node = rows[-1] + self.across[-1](rows[-1])
        nodes = [node]
        for i in range(len(rows) - 2, -1, -1):
            height, width = rows[i].shape[-2:]
            # of an odd row the coarser one has a cell that is half outside
            node = rows[i] + self.across[i](rows[i]) + self.verticals[i](node)[..., :height, :width]
            nodes.insert(0, node)
        return nodes
