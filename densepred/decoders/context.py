"""Yu and Koltun's context module."""

from typing import Literal

from torch import Tensor, nn

from densepred.decoders.base import Decoder
from densepred.errors import ConfigurationError
from densepred.features import FeatureSpec
from densepred.initialisers import identity_

Context = Literal["basic", "large"]


class ContextModule(nn.Sequential):
    """3x3 convolutions of growing dilation on planes, each with ReLU, then a 1x1 convolution: context at full stride.

    It starts as the identity on what is not negative, that is, as a ReLU.

    Args:
        channels: Planes in and out.
        dilations: One for each 3x3 convolution.
        large: Twice as many channels as planes, then as many times more as the dilation has grown, instead of as many
            as there are planes.
        spread: See `ContextDecoder`.
        pad_once: See `ContextDecoder`.

    Shape:
        (B, channels, H, W) -> (B, channels, H, W).
    """

    def __init__(
        self, channels: int, dilations: tuple[int, ...], large: bool, spread: float = 0.01, pad_once: bool = False
    ) -> None:
        widths = [channels * (2 * max(dilations[: i + 1]) if large else 1) for i in range(len(dilations))]
        layers: list[nn.Module] = []
        for i, (before, width, dilation) in enumerate(
            zip((channels, *widths[:-1]), widths, dilations, strict=True),
        ):
            padding = dilation if not pad_once else 0 if i else sum(dilations)
            layers += [nn.Conv2d(before, width, 3, padding=padding, dilation=dilation), nn.ReLU(inplace=True)]
        layers.append(nn.Conv2d(widths[-1], channels, 1))
        super().__init__(*layers)
        for layer in self:
            if isinstance(layer, nn.Conv2d):
                identity_(layer.weight, channels, spread * channels / layer.out_channels)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


class ContextDecoder(Decoder):
    """Scores the coarsest map, then looks around each cell with a pyramid of dilations (Dilation8).

    A 1x1 convolution turns the coarsest map into planes. The context module, seven 3x3 convolutions of dilations 1, 1,
    2, 4, 8, 16, 1 and a 1x1, gives each cell a view of 67 x 67 cells and loses no resolution. It starts as the
    identity: its first output is the ReLU of the scores (negative ones are lost; the last layer can still give them).

    With `DilatedVGGEncoder` these are the published networks. They were trained in stages: the front-end alone
    (`context: null`); then the context module on what the front-end gives, with a higher learning rate; then both with
    a low one. The tensors of the front-end keep their names, so each stage can start from the weights of the one
    before, and the first planes are then the ReLU of that one's.

    ======================================= ===========================================
    Dilation8 (VOC)                         context: large
    Dilation8 (CamVid)                      context: basic
    Dilation7 (KITTI)                       basic, dilations: [1, 1, 2, 4, 8, 1]
    Dilation10 (Cityscapes)                 basic, dilations: [1, 1, 2, 4, 8, 16, 32, 64, 1]
    ======================================= ===========================================

    Args:
        spec: The encoder's maps; only the coarsest is read.
        out_channels: Number of planes.
        context: "basic" with as many channels as planes; "large" with 2, 2, 4, 8, 16, 32, 32 times as many; None for
            the scores alone.
        dilations: Dilations of the 3x3 convolutions, in cells.
        dropout: Probability of dropping an activation before the scores. (The front-end drops after fc6 and fc7.)
        spread: Standard deviation of the random part of the context module's weights; where a layer has k times as many
            channels as planes, a k-th of it. 0 for the identity alone.
        pad_once: Pad by the sum of the dilations before the first convolution of the context module, and not again, as
            the released VOC network does when it predicts; the training code pads each convolution, as here by default.
            Only cells near the border tell the difference.

    Shape:
        features: a list of (B, C_i, H_i, W_i), finest first.
        returns: (B, out_channels, H_last, W_last).

    Raises:
        ConfigurationError: If `context` or a dilation is not what is expected.

    Reference:
        Yu, Koltun. Multi-Scale Context Aggregation by Dilated Convolutions. ICLR 2016. arXiv:1511.07122. The release
        enlarges the probabilities bilinearly (a fixed transposed convolution in Dilation10), here the network or the
        task enlarges the planes.

    Example:
        >>> import torch
        >>> decoder = ContextDecoder(FeatureSpec((512,), (8,)), out_channels=21)
        >>> decoder([torch.randn(1, 512, 9, 12)]).shape
        torch.Size([1, 21, 9, 12])
        >>> sum(p.numel() for p in decoder.context.parameters())
        28392
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        context: Context | None = "basic",
        dilations: tuple[int, ...] = (1, 1, 2, 4, 8, 16, 1),
        dropout: float = 0.0,
        spread: float = 0.01,
        pad_once: bool = False,
    ) -> None:
        super().__init__(spec, out_channels)
        _check(context, dilations)
        self.dropout = nn.Dropout(dropout)
        self.score = nn.Conv2d(spec.channels[-1], out_channels, 1)
        nn.init.normal_(self.score.weight, 0, 0.001)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]
        self.context: nn.Module = nn.Identity()
        if context is not None:
            self.context = ContextModule(out_channels, tuple(dilations), context == "large", spread, pad_once)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Maps, finest first, to planes."""
        planes: Tensor = self.context(self.score(self.dropout(features[-1])))
        return planes


def _check(context: str | None, dilations: tuple[int, ...]) -> None:
    if context not in (None, "basic", "large"):
        raise ConfigurationError(f"ContextDecoder: context is {context!r}. Expected one of: basic, large, null.")
    if not dilations or min(dilations) < 1:
        raise ConfigurationError(
            f"ContextDecoder: dilations are {tuple(dilations)}. Give one number of at least 1 for each 3x3 "
            "convolution, such as 1, 1, 2, 4, 8, 16, 1; set context to null for none."
        )
