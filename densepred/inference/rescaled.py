"""Rescaled: large or small photos at the size that the network has learnt at."""

from collections.abc import Iterator

from torch import Tensor

from densepred.errors import ConfigurationError
from densepred.inference.evidence import Evidence
from densepred.inference.resizing import resized_evidence, resized_image, short_side_size


class Rescaled(Evidence):
    """Asks at another size: the image is resized to a given shorter side, the evidence back to the image's size.

    A network has learnt things at the size they had in its training images; photos of other cameras come nearer to
    that when they are brought to the same height or width. What it says of depth is believed as it stands: the resized
    photo is taken for one of the camera that the network has learnt from (`TestTimeAugmentation`, whose reference is
    the image's own size, divides depth by the zoom instead).

    Args:
        evidence: Is asked about the resized image.
        short_side: Pixels of the shorter side; the longer one follows, rounded to the nearest pixel.

    Shape:
        image: (B, C, H, W); returns by task name (B, planes, H, W).

    Raises:
        ConfigurationError: If `short_side` is below 1.
    """

    def __init__(self, evidence: Evidence, short_side: int) -> None:
        super().__init__(evidence.tasks)
        if short_side < 1:
            raise ConfigurationError(f"short_side is {short_side}; expected the pixels of the image's shorter side.")
        self.evidence = evidence
        self.short_side = short_side

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Evidence by task name, at the image's own size."""
        return self._back(self.evidence(self._resized(image)), image)

    def answers(self, image: Tensor) -> Iterator[dict[str, Tensor]]:
        """Those about the resized image."""
        for answer in self.evidence.answers(self._resized(image)):
            yield self._back(answer, image)

    def _resized(self, image: Tensor) -> Tensor:
        return resized_image(image, short_side_size((image.shape[-2], image.shape[-1]), self.short_side))

    def _back(self, evidence: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
        return resized_evidence(evidence, self.tasks, (image.shape[-2], image.shape[-1]))
