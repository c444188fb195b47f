"""Learned upsampling without skip connections."""

import math
from itertools import pairwise

from torch import Tensor, nn

from densepred.decoders.base import Decoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec


class TransposedConvDecoder(Decoder):
    """Upsamples the coarsest map with learned stride-2 transposed convolutions, without skip connections.

    Each step is a 4x4 transposed convolution of stride 2, batch norm and ReLU, so every output pixel sees the same
    number of kernel taps and no checkerboard is built in. After the last step a 1x1 convolution gives the planes.

    Args:
        spec: The encoder's maps; only the coarsest is read.
        out_channels: Number of planes.
        widths: Output channels of the steps; `len(widths)` steps upsample by `2 ** len(widths)`.
        dropout: Probability of dropping an activation before the last convolution.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_last * 2**n, W_last * 2**n) with n = len(widths).

    Raises:
        ConfigurationError: If the steps would upsample past the image.

    Reference:
        Xiao, Wu, Wei. Simple Baselines for Human Pose Estimation and Tracking. ECCV 2018. arXiv:1804.06208
        (three steps of 256 channels there).

    Example:
        >>> import torch
        >>> decoder = TransposedConvDecoder(FeatureSpec((512,), (32,)), out_channels=21)
        >>> decoder([torch.zeros(1, 512, 4, 5)]).shape
        torch.Size([1, 21, 32, 40])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        widths: tuple[int, ...] = (256, 256, 256),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(spec, out_channels)
        stride = spec.strides[-1]
        if 2 ** len(widths) > stride:
            raise ConfigurationError(
                f"TransposedConvDecoder: {len(widths)} steps upsample by {2 ** len(widths)}, past the image: the "
                f"encoder's coarsest map has stride {stride}. Give at most {int(math.log2(stride))} widths."
            )
        channels = (spec.channels[-1], *widths)
        steps: list[nn.Module] = []
        for before, after in pairwise(channels):
            # bias-free: the batch norm that follows has its own
            steps += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(True)]
        self.steps = nn.Sequential(*steps)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(channels[-1], out_channels, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        planes: Tensor = self.score(self.dropout(self.steps(features[-1])))
        return planes
