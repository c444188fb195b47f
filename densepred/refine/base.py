"""What every refiner promises."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from densepred.errors import ConfigurationError
from densepred.recipe import Recorded


class Refiner(Recorded, nn.Module, ABC):
    """Turns scores of labels into better ones at the image's size, seeing the image again.

    As `refine` of a network it stands behind the decoder, in training and in evaluation: losses, metrics and
    predictions see what it makes of the upsampled planes, and gradients flow through it. Afterwards, on probabilities
    of any network, it is `InferenceOptions(crf=...)`.

    Shape:
        scores: (B, labels, H, W), logits.
        image: (B, any channels, H, W), uint8, or floating point in [0, 1].
        returns: logits (B, labels, H, W), at least float32.
    """

    labels: int | None = None
    """How many labels it is made for; None where any number will do."""

    @abstractmethod
    def refined(self, scores: Tensor, image: Tensor) -> Tensor:
        """Scores whose softmax the refined probabilities are."""

    def planes(self, planes: Tensor, image: Tensor) -> Tensor:
        """A task's planes at the image's size, refined; a single plane is the score of label 1 against label 0."""
        if planes.shape[1] > 1:
            return self.refined(planes, image)
        refined = self.refined(torch.cat([torch.zeros_like(planes), planes], dim=1), image)
        return refined[:, 1:] - refined[:, :1]

    def check(self, task: str, planes: int) -> None:
        """Refuses a task of another number of labels.

        Raises:
            ConfigurationError: Naming both.
        """
        labels = max(planes, 2)
        if self.labels not in (None, labels):
            raise ConfigurationError(
                f"refine: {type(self).__name__} is made for {self.labels} labels, the task {task!r} has {labels}. "
                f"Give it {labels}."
            )
