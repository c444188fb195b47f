"""GridNet's output block."""

from torch import Tensor, nn

from densepred.decoders.base import Decoder
from densepred.features import FeatureSpec
from densepred.initialisers import initialise_as_torch7


class GridNetDecoder(Decoder):
    """Reads the planes off the finest map with two 3x3 transposed convolutions of stride 1, each with batch norm.

    A ReLU stands between them; the last batch norm scales the planes themselves. It is what ends the published GridNet
    (`GridNetEncoder`), and can read any encoder's finest map.

    Args:
        spec: The encoder's maps; only the finest is read.
        out_channels: Number of planes.
        dropout: Probability of dropping an activation of the map; published without.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_0, W_0).

    Reference:
        Fourure, Emonet, Fromont, Muselet, Tremeau, Wolf. Residual Conv-Deconv Grid Network for Semantic Segmentation.
        BMVC 2017. arXiv:1707.07958; as released.

    Example:
        >>> import torch
        >>> decoder = GridNetDecoder(FeatureSpec((16,), (1,)), out_channels=3)
        >>> decoder([torch.zeros(1, 16, 6, 4)]).shape
        torch.Size([1, 3, 6, 4])
    """

    def __init__(self, spec: FeatureSpec, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__(spec, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Sequential(
            *(nn.ConvTranspose2d(spec.channels[0], out_channels, 3, padding=1), nn.BatchNorm2d(out_channels)),
            nn.ReLU(inplace=True),
            *(nn.ConvTranspose2d(out_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels)),
        )
        initialise_as_torch7(self)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        planes: Tensor = self.score(self.dropout(features[0]))
        return planes
