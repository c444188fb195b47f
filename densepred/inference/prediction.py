"""What came out for one image: values by task, probabilities on request, pictures for people."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from densepred.errors import ConfigurationError
from densepred.tasks.base import Task


@dataclass(frozen=True)
class Prediction:
    """The answers for one image, at its own size, on the CPU.

    Args:
        image: The image (C, H, W) as the network got it: upright, uint8 or float32 in [0, 1].
        values: By task name: labels (H, W), metres (1, H, W), unit vectors (3, H, W).
        tasks: What was predicted; they draw the pictures.
        name: The image's file name; empty without one.
        notes: What was done to the image, for people.
        evidence: On request, by task name (planes, H, W): probabilities of the classes, logarithms of metres, mean
            vectors.
        uncertainty: On request, by task name and measure (1, H, W), see `Uncertainty`.
        focal_on_film: Of the camera, as the photo's EXIF data tell, see `film_focal`; 0 where they don't.

    Example:
        >>> from densepred.tasks.depth import Depth
        >>> image = torch.zeros(3, 2, 2, dtype=torch.uint8)
        >>> prediction = Prediction(image, {"depth": torch.ones(1, 2, 2)}, [Depth()])
        >>> prediction["depth"].mean().item()
        1.0
    """

    image: Tensor
    values: dict[str, Tensor]
    tasks: Sequence[Task] = field(repr=False)
    name: str = ""
    notes: tuple[str, ...] = ()
    evidence: dict[str, Tensor] = field(default_factory=dict, repr=False)
    uncertainty: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    focal_on_film: float = 0.0

    def __getitem__(self, task: str) -> Tensor:
        """The values of one task."""
        return self.values[task]

    def probabilities(self, task: str | None = None) -> Tensor:
        """Probabilities of the classes (planes, H, W), of the first task that has some by default.

        Raises:
            ConfigurationError: If they were not asked for when predicting, or the task has none.
        """
        having = [one.name for one in self.tasks if one.distribution is not None]
        wanted = task or (having[0] if having else None)
        if wanted not in having:
            raise ConfigurationError(f"Of {wanted or 'these tasks'} there are no probabilities.")
        if wanted not in self.evidence:
            raise ConfigurationError("Probabilities were not kept: predict with evidence=True.")
        return self.evidence[wanted]

    def picture(self, task: str) -> Tensor:
        """One task's values in colours, uint8 RGB (3, H, W)."""
        return self._task(task).render(self.values[task][None])[0]

    def overlay(self, task: str, opacity: float = 0.5) -> Tensor:
        """One task's colours over the image, uint8 RGB (3, H, W)."""
        mixed = (1 - opacity) * self.shown_image().float() + opacity * self.picture(task).float()
        return mixed.round().to(torch.uint8)

    def render(self) -> Tensor:
        """The image and every task's picture beside it, uint8 RGB (3, H, pictures * W and gaps)."""
        pictures = [self.shown_image(), *(self.picture(task.name) for task in self.tasks)]
        gap = max(2, self.image.shape[-1] // 100)
        spaced = [F.pad(picture, (0, gap), value=255) for picture in pictures[:-1]]
        return torch.cat([*spaced, pictures[-1]], dim=-1)

    def shown_image(self) -> Tensor:
        """The image as uint8 RGB (3, H, W); of more than three channels the first three."""
        image = self.image if self.image.shape[0] >= 3 else self.image[:1].expand(3, -1, -1)
        image = image[:3]
        return image if image.dtype == torch.uint8 else (image * 255).round().to(torch.uint8)

    def _task(self, name: str) -> Task:
        return next(task for task in self.tasks if task.name == name)
