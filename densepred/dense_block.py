"""Dense blocks, as FC-DenseNet stacks them: what its encoder and its decoder share."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from densepred.blocks import Activation, Norm, nonlinearity, normalisation
from densepred.errors import ConfigurationError
from densepred.initialisers import initialise
from densepred.recomputation import recomputed

FCDenseNetName = Literal["fc_densenet56", "fc_densenet67", "fc_densenet103"]


class FCDenseNetNumbers(NamedTuple):
    """What one of the published networks consists of.

    Args:
        layers: Layers of the blocks on the way down, finest first; on the way up they come in reverse.
        bottleneck: Layers of the block between.
        growth: Maps that each layer adds.
    """

    layers: tuple[int, ...]
    bottleneck: int
    growth: int


FC_DENSENETS: dict[str, FCDenseNetNumbers] = {
    "fc_densenet56": FCDenseNetNumbers((4, 4, 4, 4, 4), 4, 12),
    "fc_densenet67": FCDenseNetNumbers((5, 5, 5, 5, 5), 5, 16),
    "fc_densenet103": FCDenseNetNumbers((4, 5, 7, 10, 12), 15, 16),
}
"""The numbers of the published networks."""


class DenseOptions(NamedTuple):
    """What all dense layers of a network have in common.

    Args:
        norm: See `densepred.blocks.normalisation`.
        activation: See `densepred.blocks.nonlinearity`.
        dropout: Probability of dropping an activation after each convolution.
        bias: Whether convolutions have a bias.
        batch_statistics: Whether batch norm uses the batch's statistics in evaluation too.
        recompute: Whether the backward pass computes concatenation, normalisation and nonlinearity again.
    """

    norm: Norm = "batch"
    activation: Activation = "relu"
    dropout: float = 0.2
    bias: bool = True
    batch_statistics: bool = False
    recompute: bool = False


class DenseBatchNorm(nn.BatchNorm2d):
    """Batch norm that may use the batch's own statistics in evaluation too.

    The running averages are kept in either case, so one state dict serves both. Where a channel has a single value,
    which has no variance, they are used even in training, and not updated.

    Args:
        channels: Channels to normalise.
        batch_statistics: Whether evaluation uses the statistics of the batch it is given.

    Shape:
        (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, batch_statistics: bool = False) -> None:
        super().__init__(channels, eps=1e-4)  # lasagne's, in which the networks were published
        self.batch_statistics = batch_statistics

    def forward(self, input: Tensor) -> Tensor:
        """Normalised values."""
        batch_statistics = self.training or self.batch_statistics
        if batch_statistics and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        if batch_statistics and not self.training:
            return F.batch_norm(input, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(input)


class DenseLayer(nn.Module):
    """Normalisation, nonlinearity, convolution, dropout, of several maps put together.

    With `recompute` only the maps themselves and the convolution's result are kept for the backward pass, which
    computes what lies between, cheap but large, again; the convolution is not run again. That is left to the
    compiler under `torch.compile`, which plans its own recomputation.

    Args:
        in_channels: Channels of all maps together.
        out_channels: Channels after.
        kernel_size: Side of the kernel, odd.
        options: See `DenseOptions`.

    Shape:
        maps: a list of (B, C_i, H, W).
        returns: (B, out_channels, H, W).

    Raises:
        ConfigurationError: With "maxout", if the channels cannot be paired.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, options: DenseOptions) -> None:
        super().__init__()
        width = in_channels
        if options.activation == "maxout":
            if in_channels % 2:
                raise ConfigurationError(
                    f"activation 'maxout' pairs channels, but a dense layer here reads {in_channels}. "
                    "Choose even widths and growth, or another activation."
                )
            width //= 2
        self.norm = (
            DenseBatchNorm(in_channels, options.batch_statistics)
            if options.norm == "batch"
            else normalisation(options.norm, in_channels)
        )
        self.activation = nonlinearity(options.activation)
        if isinstance(self.norm, nn.Identity) and isinstance(
            self.activation, nn.ReLU | nn.LeakyReLU | nn.ELU | nn.SiLU
        ):
            self.activation.inplace = False  # it would overwrite a map that other layers read
        self.conv = nn.Conv2d(width, out_channels, kernel_size, padding=kernel_size // 2, bias=options.bias)
        initialise(self.conv, "kaiming_uniform")
        if options.norm == "weight":
            self.conv = weight_norm(self.conv)
        self.dropout = nn.Dropout(options.dropout)
        self.recompute = options.recompute

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The new maps."""
        if self.recompute and self.training and not torch.compiler.is_compiling():
            # dropout stays outside: it is then drawn once, and the convolution, last inside, is never run again
            # (recomputation stops at the last tensor the backward pass needs, which is the convolution's input)
            new = recomputed(self._convolve, self.norm, *maps, random=False)
        else:
            new = self._convolve(*maps)
        dropped: Tensor = self.dropout(new)
        return dropped

    def _convolve(self, *maps: Tensor) -> Tensor:
        stack = maps[0] if len(maps) == 1 else torch.cat(maps, dim=1)
        new: Tensor = self.conv(self.activation(self.norm(stack)))
        return new


class DenseBlock(nn.Module):
    """Layers that each read the block's input and the new maps of all layers before.

    Args:
        in_channels: Channels of the block's input.
        layers: How many layers.
        growth: Maps that each layer adds.
        options: See `DenseOptions`.

    Shape:
        maps: a list of (B, C_i, H, W), the input, in one piece or several.
        returns: a list of `layers` new maps (B, growth, H, W), without the input.

    Reference:
        Huang, Liu, van der Maaten, Weinberger. Densely Connected Convolutional Networks. CVPR 2017. arXiv:1608.06993.
    """

    def __init__(self, in_channels: int, layers: int, growth: int, options: DenseOptions) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DenseLayer(in_channels + i * growth, growth, 3, options) for i in range(layers))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The new maps alone."""
        new: list[Tensor] = []
        for layer in self.layers:
            new.append(layer([*maps, *new]))
        return new
