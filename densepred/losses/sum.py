"""Several losses in one."""

from torch import Tensor, nn

from densepred.errors import ConfigurationError
from densepred.losses.base import Loss


class SumLoss(Loss):
    """Weighted sum of losses of the same output and target, for any task.

    Each is a mean of its own kind, so weights say how much of each there is: cross-entropy starts near ln C, Dice and
    Lovasz-softmax near 1, SILog near 10. What each does with missing pixels holds for the sum.

    Args:
        losses: At least one.
        weights: One factor a loss, at least 0; none means 1 each.

    Shape:
        output, target: what the losses take.

    Raises:
        ConfigurationError: If there is no loss, or weights are negative or not one a loss.

    Example:
        >>> import torch
        >>> from densepred.losses.depth import L1Loss, L2Loss
        >>> near, far = torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 4.0)
        >>> SumLoss([L1Loss(), L2Loss()], weights=[1.0, 0.5])(near, far)  # 3 + 9 / 2
        tensor(7.5000)
    """

    def __init__(self, losses: list[Loss], weights: list[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * len(losses) if weights is None else weights
        if not losses or len(weights) != len(losses):
            raise ConfigurationError(
                f"SumLoss: expected at least one loss and one weight for each; got {len(losses)} losses "
                f"({', '.join(type(loss).__name__ for loss in losses)}) and {len(weights)} weights."
            )
        if not all(0 <= weight < float("inf") for weight in weights):
            raise ConfigurationError(f"SumLoss: weights must be finite and at least 0; got {weights}.")
        self.losses = nn.ModuleList(losses)
        self.weights = weights

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Output and target to a scalar."""
        terms = [weight * loss(output, target) for loss, weight in zip(self.losses, self.weights, strict=True)]
        total: Tensor = sum(terms[1:], terms[0])
        return total
