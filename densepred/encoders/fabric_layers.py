"""The convolution of one link of a fabric, dense or sparse, with or without a gate."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.encoders.fabric_links import Channels, Link
from densepred.initialisers import gaussian_

# Louizos et al.'s numbers: temperature, and the interval beyond [0, 1] that is cut off at its ends
_BETA, _GAMMA, _ZETA = 2 / 3, -0.1, 1.1


class HardConcreteGate(nn.Module):
    """A factor between 0 and 1 that is exactly 0 or 1 with a probability that can be learned.

    In training z = min(1, max(0, s (zeta - gamma) + gamma)) with s = sigmoid((log u - log(1 - u) + log alpha) / beta),
    u uniform; in evaluation u = 1/2 and beta = 1. It is open (z > 0) with probability
    sigmoid(log alpha - beta log(-gamma / zeta)), which is differentiable.

    Args:
        openness: log alpha at the start; at 2, the gate is open with probability 0.97.

    Shape:
        returns: a scalar.

    Reference:
        Louizos, Welling, Kingma. Learning Sparse Neural Networks through L0 Regularization. ICLR 2018.
        arXiv:1712.01312 (beta 2/3, gamma -0.1, zeta 1.1).

    Example:
        >>> gate = HardConcreteGate(openness=-3.0).eval()
        >>> gate().item(), round(gate.open_probability().item(), 3)
        (0.0, 0.198)
    """

    def __init__(self, openness: float = 2.0) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.tensor(openness))

    def forward(self) -> Tensor:
        """A value; another one at each call in training."""
        if not self.training:
            return self.settled()
        # not from 0 to 1, which have no logit
        u = torch.empty_like(self.log_alpha).uniform_(1e-6, 1 - 1e-6)
        return _stretched((torch.logit(u) + self.log_alpha) / _BETA)

    def settled(self) -> Tensor:
        """The value in evaluation."""
        return _stretched(self.log_alpha)

    def open_probability(self) -> Tensor:
        """The probability that the gate is not 0 in training."""
        return torch.sigmoid(self.log_alpha - _BETA * math.log(-_GAMMA / _ZETA))


def _stretched(logit: Tensor) -> Tensor:
    return (torch.sigmoid(logit) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)


class FabricLink(nn.Module):
    """A 3x3 convolution to the same scale, to the next coarser one (stride 2) or to the next finer one.

    To a finer scale a map is enlarged by zeros, each value at the top left of its 2x2 cells, and then convolved. This
    is a transposed convolution of stride 2, which leaves out the multiplications by zero.

    Args:
        link: The two nodes.
        channels: Channels of both.
        kind: "dense", or "sparse": output channel i reads channels i - 1, i, i + 1 alone; the first and the last read
            two. With 3 channels or fewer all are read, as in the release. It is computed as there, by a convolution
            whose other weights are zero, which is faster than one of groups: it saves weights, not operations.
        gate: Whether the output is multiplied by a `HardConcreteGate`.

    Shape:
        (B, channels, H, W) -> (B, channels, h, w): h = H, H / 2 or 2 H.
    """

    def __init__(self, link: Link, channels: int, kind: Channels, gate: bool = False) -> None:
        super().__init__()
        self.step = link.target.scale - link.source.scale
        self.channels = channels
        self.sparse = kind == "sparse" and channels > 3
        shape = (3 * channels - 2, 3, 3) if self.sparse else (channels, channels, 3, 3)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(channels))
        if kind == "sparse":
            # Caffe's "xavier" over the whole matrix of channels, which the release masks afterwards
            bound = math.sqrt(3 / (9 * channels))
            nn.init.uniform_(self.weight, -bound, bound)
        else:
            gaussian_(self.weight)
        self.gate = HardConcreteGate() if gate else None

    def kernel(self) -> Tensor:
        """The weights of all pairs of channels (out, in, 3, 3)."""
        if not self.sparse:
            return self.weight
        # out channel by out channel; zeros where the first has none before it and the last none after it
        before, own, after = F.pad(self.weight.flatten(1), (0, 0, 1, 1)).view(-1, 3, 9).permute(1, 2, 0).unbind()
        every = torch.diag_embed(own) + torch.diag_embed(before[:, 1:], -1) + torch.diag_embed(after[:, :-1], 1)
        return every.permute(1, 2, 0).reshape(self.channels, self.channels, 3, 3)

    def forward(self, values: Tensor) -> Tensor:
        """The source's map to a term of the target's sum."""
        weight = self.kernel()
        if self.step < 0:
            # a transposed convolution lays its kernel mirrored, and its weights are (in, out)
            weight = weight.flip(-2, -1).transpose(0, 1)
            term = F.conv_transpose2d(values, weight, self.bias, 2, 1, output_padding=1)
        else:
            term = F.conv2d(values, weight, self.bias, 1 + self.step, 1)
        return term if self.gate is None else self.gate().to(term.dtype) * term

    @torch.no_grad()
    def openness(self) -> float:
        """The gate's value in evaluation; 1 where there is none."""
        return 1.0 if self.gate is None else self.gate.settled().item()
