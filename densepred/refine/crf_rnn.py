"""CRF as RNN: the dense CRF's mean field as a layer that is trained with the network."""

import torch
from torch import Tensor, nn

from densepred.errors import ConfigurationError
from densepred.refine.dense_crf import DenseCRF, Normalisation


class CRFAsRNN(DenseCRF):
    """A dense CRF whose kernel weights and label compatibility are learned, through all iterations.

    In each iteration the messages of both kernels are multiplied by a matrix (labels x labels) each, summed, multiplied
    by the compatibility matrix and subtracted from the scores. It starts as the Potts model: diagonals `smooth_weight`
    and `weight`, and minus the identity. The kernels' widths are fixed.

    As `refine` of a network it is trained with it, end to end. Its matrices want far larger steps than the network that
    it stands behind: `lr_scales: {"refine.*_weights": 10000, "refine.compatibility": 1000}` are the authors'.

    Args:
        classes: Number of labels.
        smooth: See `DenseCRF`.
        smooth_weight: Diagonal that the smoothness kernel's matrix starts with.
        near: See `DenseCRF`.
        colour: See `DenseCRF`.
        weight: Diagonal that the appearance kernel's matrix starts with.
        iterations: In training.
        test_iterations: In evaluation mode.
        normalisation: See `DenseCRF`.

    Shape:
        As `DenseCRF`; `refined` gives scores to train on.

    Raises:
        ConfigurationError: As `DenseCRF`; if there are fewer than 2 labels, or iterations are negative.

    Reference:
        Zheng, Jayasumana, Romera-Paredes, Vineet, Su, Du, Huang, Torr. Conditional Random Fields as Recurrent Neural
        Networks. ICCV 2015. arXiv:1502.03240 (3 * classes^2 parameters).

    Example:
        >>> sum(p.numel() for p in CRFAsRNN(21).parameters())
        1323
    """

    def __init__(
        self,
        classes: int,
        smooth: float = 3.0,
        smooth_weight: float = 3.0,
        near: float = 160.0,
        colour: float = 3.0,
        weight: float = 5.0,
        iterations: int = 5,
        test_iterations: int = 10,
        normalisation: Normalisation = "after",
    ) -> None:
        if classes < 2 or test_iterations < 0:
            raise ConfigurationError(
                f"CRFAsRNN: classes is {classes}, test_iterations {test_iterations}; expected at least 2 labels, and 0 "
                "iterations or more."
            )
        # the matrices weigh the kernels
        super().__init__(smooth, 1.0, near, colour, 1.0, iterations, normalisation)
        self.labels = classes
        self.test_iterations = test_iterations
        self.smooth_weights = nn.Parameter(smooth_weight * torch.eye(classes))
        self.appearance_weights = nn.Parameter(weight * torch.eye(classes))
        self.compatibility = nn.Parameter(-torch.eye(classes))

    def joined(self, messages: list[Tensor]) -> Tensor:
        """What is added to the scores, from the kernels' messages (rows, labels)."""
        smooth, appearance = messages
        weighted = smooth @ self.smooth_weights.t() + appearance @ self.appearance_weights.t()
        return -(weighted @ self.compatibility.t())

    def steps(self) -> int:
        """Iterations of the present mode."""
        return self.iterations if self.training else self.test_iterations
