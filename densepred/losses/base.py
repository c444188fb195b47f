"""What every loss promises."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from densepred.recipe import Recorded


class Loss(Recorded, nn.Module, ABC):
    """A scalar: the mean over valid pixels; exactly 0, with zero gradient, if none is valid.

    Shape:
        output: (B, C, H, W).
        target: (B, H, W) or (B, C, H, W).
        returns: a scalar.

    Raises:
        ConfigurationError: If output and target differ in size: they would silently be broadcast.
    """

    @abstractmethod
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Output (B, C, H, W) and target of the same size to a scalar."""
