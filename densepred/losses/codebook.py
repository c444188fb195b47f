"""The loss of normals that are classified over a codebook."""

from collections.abc import Sequence

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.codebook import Codebook
from densepred.errors import ConfigurationError
from densepred.losses.base import Loss
from densepred.losses.masked import mean_over_valid
from densepred.sample import Kind, valid_normals


class CodebookLoss(Loss):
    """Cross-entropy between scores of codewords and true normals, encoded as shares of codewords.

    With the encoding q of the true normal, the mean over valid pixels of -sum_k q_k log softmax(output)_k: each pixel,
    or cell, has a softmax of its own. The task `CodebookNormals` learns by it.

    Missing normals (the zero vector, or one that is not finite) give exactly zero gradient; without any valid pixel the
    loss is 0. Computed in float32 under autocast.

    Args:
        codebook: See `Codebook`.
        soft: Barycentric weights as targets; otherwise the nearest codeword alone is right. The loss of a perfect
            answer is the entropy of the weights, and 0 with the nearest.

    Shape:
        output: (B, K, H, W), scores (logits).
        target: (B, 3, H, W), unit vectors.

    Raises:
        ConfigurationError: If the output has not a plane a codeword, or another size than the target.

    Reference:
        Wang, Fouhey, Gupta. Designing Deep Networks for Surface Normal Estimation. CVPR 2015. arXiv:1411.4958. (Their
        release sums over the cells of an image; this is the mean, as of all losses here.)

    Example:
        >>> loss = CodebookLoss([[1.0, 0, 0], [0, 1, 0], [0, 0, -1], [-1, 0, 0]], soft=False)
        >>> right = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
        >>> loss(torch.zeros(1, 4, 1, 1), right)  # ln 4
        tensor(1.3863)
    """

    kind = Kind.NORMALS
    task = "CodebookNormals"

    def __init__(self, codebook: int | str | Sequence[Sequence[float]] = 40, soft: bool = True) -> None:
        super().__init__()
        self.codebook = Codebook(codebook)
        self.init_args["codebook"] = codebook if isinstance(codebook, int) else self.codebook.values
        self.soft = soft

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Scores and true normals to a scalar."""
        expected = (target.shape[0], len(self.codebook), *target.shape[2:])
        if output.shape != expected or target.shape[1] != 3:
            raise ConfigurationError(
                f"CodebookLoss: expected a score for each of {len(self.codebook)} codewords and true normals of three "
                f"planes; got {tuple(output.shape)} and {tuple(target.shape)}. Learn it with the task CodebookNormals."
            )
        valid = valid_normals(target)
        shares = self.codebook.encode(target, self.soft)
        scores = torch.where(valid[:, None], full_precision(output), 0)
        loss = -(shares * scores.log_softmax(1)).sum(1)
        return mean_over_valid(loss, valid)
