"""The smallest decoder."""

from torch import Tensor, nn

from densepred.decoders.base import Decoder
from densepred.features import FeatureSpec


class PointwiseDecoder(Decoder):
    """Reads the planes off the finest map with a 1x1 convolution.

    For networks that come back to a fine map by themselves (FRRN, GridNet, convolutional neural fabrics); on an
    ordinary encoder it is a probe of what its finest map knows.

    Args:
        spec: The encoder's maps; only the finest is read.
        out_channels: Number of planes.
        dropout: Probability of dropping an activation of the map.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_0, W_0).

    Example:
        >>> import torch
        >>> decoder = PointwiseDecoder(FeatureSpec((8, 16), (1, 2)), out_channels=3)
        >>> decoder([torch.zeros(1, 8, 6, 4), torch.zeros(1, 16, 3, 2)]).shape
        torch.Size([1, 3, 6, 4])
    """

    def __init__(self, spec: FeatureSpec, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__(spec, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(spec.channels[0], out_channels, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        planes: Tensor = self.score(self.dropout(features[0]))
        return planes
