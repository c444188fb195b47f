"""A batch's images asked about one size at a time, each without the padding that made them a batch."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from densepred.inference.evidence import Evidence
from densepred.inference.resizing import Size, resized_evidence, resized_image
from densepred.tasks.base import Batch


class SeenAt(Evidence):
    """Asks about the image at the size that networks saw in training, and brings the evidence back to its own.

    Args:
        evidence: Is asked about the resized image.
        seen: From the image's (height, width) to that at which it is seen.
    """

    def __init__(self, evidence: Evidence, seen: Callable[[Size], Size]) -> None:
        super().__init__(evidence.tasks)
        self.evidence = evidence
        self.seen = seen

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Evidence by task name, at the image's own size."""
        return self._back(self.evidence(self._resized(image)), image)

    def answers(self, image: Tensor) -> Iterator[dict[str, Tensor]]:
        """Those about the resized image."""
        for answer in self.evidence.answers(self._resized(image)):
            yield self._back(answer, image)

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Predictions at the image's own size; asked directly where it is seen at that."""
        own = (image.shape[-2], image.shape[-1])
        return self.evidence.predict(image) if self.seen(own) == own else super().predict(image)

    def _resized(self, image: Tensor) -> Tensor:
        return resized_image(image, self.seen((image.shape[-2], image.shape[-1])))

    def _back(self, evidence: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
        return resized_evidence(evidence, self.tasks, (image.shape[-2], image.shape[-1]))


class Unpadded:
    """Predictions of a batch, each image's as if it were asked about alone.

    A network that sees a smaller image with the padding of its batch answers otherwise near the edges, so a number
    would depend on the batch size. Images of one size are asked about together.

    Args:
        evidence: Is asked.

    Shape:
        batch: As `Collate` makes it, with `size` (B, 2) where images differ.
        returns: by task name (B, ..., H, W) of the batch's size; 0 outside of the image, where every target is missing.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Predictions by task name."""
        image = batch["image"]
        if "size" not in batch:
            return self.evidence.predict(image)
        whole = (image.shape[-2], image.shape[-1])
        found: dict[str, Tensor] = {}
        for (height, width), members in _by_size(batch["size"]).items():
            chosen = torch.tensor(members, device=image.device)
            for name, value in self.evidence.predict(image[chosen, :, :height, :width]).items():
                if name not in found:
                    found[name] = value.new_zeros((len(image), *value.shape[1:-2], *whole))
                found[name][chosen, ..., :height, :width] = value
        return found


def _by_size(sizes: Tensor) -> dict[Size, list[int]]:
    groups: dict[Size, list[int]] = {}
    for index, (height, width) in enumerate(sizes.tolist()):
        groups.setdefault((int(height), int(width)), []).append(index)
    return groups
