"""Depth as a row of ordered questions: is it deeper than this?"""

import torch
from torch import Tensor
from torch.nn import functional as F

from densepred.blocks import full_precision
from densepred.errors import ConfigurationError
from densepred.losses.base import Loss
from densepred.sample import Kind, valid_depth


def spacing_increasing_edges(bins: int, min_depth: float, max_depth: float) -> Tensor:
    """Edges of bins that grow with depth (spacing-increasing discretisation, SID), in metres.

    Depth is shifted so that `min_depth` becomes 1, divided evenly in its logarithm, and shifted back:
    t_i = (max_depth + s)^(i / bins) - s with s = 1 - min_depth.

    Shape:
        returns: (bins + 1,), from `min_depth` to `max_depth`.

    Example:
        >>> spacing_increasing_edges(3, min_depth=1.0, max_depth=8.0)
        tensor([1., 2., 4., 8.])
    """
    shift = 1 - min_depth
    even = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    return ((max_depth + shift) ** even - shift).float()


def ordinal_depth(output: Tensor, min_depth: float, max_depth: float) -> Tensor:
    """Answers to depth: the middle of the bin that so many questions answered with yes lead to, in metres.

    Args:
        output: A logit for each question.
        min_depth: Where the first bin begins.
        max_depth: Where the last bin ends.

    Shape:
        output: (B, K, H, W); returns (B, 1, H, W).

    Example:
        >>> ordinal_depth(torch.tensor([2.0, -1.0, -2.0]).view(1, 3, 1, 1), min_depth=1.0, max_depth=8.0).item()
        3.0
    """
    bins = output.shape[1]
    edges = spacing_increasing_edges(bins, min_depth, max_depth).to(full_precision(output))
    passed = (output >= 0).sum(1, keepdim=True).clamp(max=bins - 1)
    return ((edges[1:] + edges[:-1]) / 2)[passed]


class OrdinalLoss(Loss):
    """Ordinal regression of depth: K questions "is it deeper than the end of bin k?", answered one by one.

    Bins grow with depth (`spacing_increasing_edges`). With p_k the sigmoid of plane k and l the bin of the true depth,
    a pixel's loss is the sum over k < l of -ln p_k plus the sum over k >= l of -ln (1 - p_k): a cross-entropy a
    question, where an answer far off is wrong in many. The loss is the mean over valid pixels (of sums over questions,
    so planes of zeros give K ln 2). True depth outside the range counts as the first or last bin.

    `Depth(bins=K)` has the planes, this loss and its way back to metres (`ordinal_depth`). The paper has a softmax over
    two planes for each question; a sigmoid of one is the same function.

    Missing depth (0, negative or not finite) gives exactly zero gradient; without any valid pixel the loss is 0. It is
    computed in float32 under autocast.

    Args:
        min_depth: Metres where the first bin begins.
        max_depth: Metres where the last bin ends.

    Shape:
        output: (B, K, H, W), a logit a question; K of at least 2.
        target: (B, 1, H, W), metres.

    Raises:
        ConfigurationError: If the range is empty, or the output is not K planes of the target's size.

    Reference:
        Fu, Gong, Wang, Batmanghelich, Tao. Deep Ordinal Regression Network for Monocular Depth Estimation. CVPR 2018.
        arXiv:1806.02446 (DORN).

    Example:
        >>> loss = OrdinalLoss(min_depth=1.0, max_depth=8.0)
        >>> loss(torch.zeros(1, 3, 1, 2), torch.tensor([[[[3.0, 0.0]]]])).exp()
        tensor(8.)
    """

    kind = Kind.DEPTH

    def __init__(self, min_depth: float = 1e-3, max_depth: float = 10.0) -> None:
        super().__init__()
        if not 0 < min_depth < max_depth < float("inf"):
            raise ConfigurationError(
                f"OrdinalLoss: expected 0 < min_depth < max_depth (metres); got {min_depth} and {max_depth}."
            )
        self.min_depth = min_depth
        self.max_depth = max_depth

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Logits of the questions and true depth, in metres, to a scalar."""
        bins = output.shape[1]
        if target.shape != (output.shape[0], 1, *output.shape[2:]) or bins < 2:
            raise ConfigurationError(
                f"OrdinalLoss: expected planes (B, K, H, W), one a bin, of at least 2, and depth (B, 1, H, W); got "
                f"{tuple(output.shape)} and {tuple(target.shape)}. Give the task its number of bins: Depth(bins=80)."
            )
        valid = valid_depth(target)
        ends = spacing_increasing_edges(bins, self.min_depth, self.max_depth).to(target.device)[1:]
        deeper = full_precision(target) >= ends.view(-1, 1, 1)
        # beyond the end is still in the last bin
        deeper = torch.cat([deeper[:, :-1], torch.zeros_like(deeper[:, -1:])], 1)
        logits = torch.where(valid, full_precision(output), 0)
        loss = F.binary_cross_entropy_with_logits(logits, deeper.to(logits.dtype), reduction="none").sum(
            1, keepdim=True
        )
        return torch.where(valid, loss, 0).sum() / valid.sum().clamp(min=1)
