"""Fully connected layers that answer for a patch of the image at once."""

from collections.abc import Sequence

from torch import Tensor, nn

from densepred.decoders.base import Decoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec

_CHANNELS, _HIDDEN = 36_864, 4_096  # as published


class PatchDecoder(Decoder):
    """Fully connected layers on each cell of the coarsest map, which answer for a grid of cells x cells inside it.

    A hidden layer with ReLU and dropout, where there is one, then a layer with `cells * cells * out_channels` values,
    laid out as planes that are `cells` times as fine as the map. Nothing is shared between the places of a patch, so
    that each knows where it is in it. They are 1x1 convolutions of the map: on the windows of `WangLocalEncoder`
    (cells 13, hidden 4096) and the whole image of `WangGlobalEncoder` (cells 20, no hidden layer) they are the
    published networks, on other encoders a decoder without neighbours.

    Some tasks have one answer a cell instead, such as 300 room layouts of the whole image, or 37 kinds of edges of a
    window: those whose number of planes is in `single`. Each task has a decoder of its own, hidden layer included,
    unless it is shared.

    The values of a patch are ordered with its width outermost, then its height, the planes innermost, as published.

    Args:
        spec: The encoder's maps; only the coarsest is read.
        out_channels: Number of planes.
        cells: Places of a patch along each side.
        hidden: Units of the hidden layer; none without.
        dropout: Probability of dropping a unit of the hidden layer, or of the map where there is none.
        single: Numbers of planes that have one answer a patch.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, cells * H_last, cells * W_last).

    Raises:
        ConfigurationError: If `cells` or `hidden` is below 1.

    Reference:
        Wang, Fouhey, Gupta. Designing Deep Networks for Surface Normal Estimation. CVPR 2015. arXiv:1411.4958.
        Initialised as the authors' code: hidden layer N(0, 0.005) with biases of 0.1, last layer N(0, 0.01) without,
        of the 36,864 channels and 4,096 units there; of fewer the deviations are larger by the root of the ratio.

    Example:
        >>> import torch
        >>> decoder = PatchDecoder(FeatureSpec((16,), (13,)), out_channels=40, cells=13, hidden=8)
        >>> decoder([torch.zeros(1, 16, 15, 20)]).shape
        torch.Size([1, 40, 195, 260])
    """

    reads_patches = True

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        cells: int = 13,
        hidden: int | None = None,
        dropout: float = 0.0,
        single: Sequence[int] = (),
    ) -> None:
        super().__init__(spec, out_channels)
        if cells < 1 or (hidden is not None and hidden < 1):
            raise ConfigurationError(
                f"PatchDecoder: cells is {cells} and hidden {hidden}; expected 1 or more, and hidden may be left out."
            )
        self.cells = 1 if out_channels in single else cells
        channels = spec.channels[-1]
        self.hidden: nn.Module = nn.Identity()
        if hidden is not None:
            layer = nn.Conv2d(channels, hidden, 1)
            nn.init.normal_(layer.weight, std=0.005 * (_CHANNELS / channels) ** 0.5)
            nn.init.constant_(layer.bias, 0.1)  # type: ignore[arg-type]
            self.hidden = nn.Sequential(layer, nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(hidden or channels, self.cells**2 * out_channels, 1)
        published = _CHANNELS if hidden is None else _HIDDEN
        nn.init.normal_(self.score.weight, std=0.01 * (published / (hidden or channels)) ** 0.5)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        values = self.score(self.dropout(self.hidden(features[-1])))
        batch, _, height, width = values.shape
        cells = self.cells
        patches = values.view(batch, cells, cells, self.out_channels, height, width)
        # (B, x inside, y inside, plane, row, column) to (B, plane, row, y inside, column, x inside)
        planes: Tensor = patches.permute(0, 3, 4, 2, 5, 1).reshape(
            batch, self.out_channels, cells * height, cells * width
        )
        return planes
