"""What every loss promises."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from densepred.recipe import Recorded
from densepred.sample import Kind


class Loss(Recorded, nn.Module, ABC):
    """A scalar: the mean over valid pixels; exactly 0, with zero gradient, if none is valid.

    Shape:
        output: (B, C, H, W).
        target: (B, H, W) or (B, C, H, W).
        returns: a scalar.

    Raises:
        ConfigurationError: If output and target differ in size: they would silently be broadcast.
    """

    kind: Kind | None = None
    """The kind of target that it compares; none means any. A task refuses what does not fit its own."""
    exclusive: bool | None = None
    """Of labels: whether they exclude each other (a softmax over the planes) or are answers of every plane (a sigmoid
    of each); none means either."""
    named_weights: dict[str, float] | None = None
    """Its class weights by the classes' names, where they were given so; a task brings them into its classes' order."""
    task: str | None = None
    """The only class of task that learns by it, which brings it along; none means every one of its kind."""
    takes_pixel_weights: bool = False
    """Whether `forward` also takes a weight for each pixel (B, H, W)."""

    @abstractmethod
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Output (B, C, H, W) and target of the same size to a scalar."""
