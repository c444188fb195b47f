"""Test-time augmentation: several sizes and the mirror image, and the mean of what is said of them."""

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from densepred.errors import ConfigurationError
from densepred.inference.evidence import Evidence, Merge, Mixture
from densepred.inference.resizing import Size, resized_evidence, resized_image, scaled_size, short_side_size


class TestTimeAugmentation(Evidence):
    """Asks about the image at several sizes, and about the mirror image of each, and joins the answers.

    The image is resized bilinearly (averaged where it shrinks), sides rounded to the nearest pixel; evidence is resized
    back bilinearly. What was said of a mirror image is flipped back, normals turned around with it. Depth said of an
    image enlarged by s is multiplied by s: at the same camera, what looks s times as large is s times as near. Sizes
    that are equal after rounding count once. With `Tiled` evidence the sizes are asked about crop by crop.

    Args:
        evidence: Is asked each time.
        scales: Factors of the image's size.
        flip: Ask about mirror images too.
        short_sides: Further sizes, as pixels of the shorter side.
        merge: How answers on labels are joined, see `Mixture`; of depth logarithms are averaged, of normals vectors.

    Shape:
        image: (B, C, H, W); returns by task name (B, planes, H, W).

    Raises:
        ConfigurationError: If there is no size, or one that is not above 0; while it runs, where a size is too small
            for the network.

    Reference:
        Chen, Papandreou, Kokkinos, Murphy, Yuille. DeepLab. TPAMI 2018. arXiv:1606.00915 (several sizes, maximum);
        Chen, Papandreou, Schroff, Adam. Rethinking Atrous Convolution for Semantic Image Segmentation. 2017.
        arXiv:1706.05587 (sizes 0.5 to 1.75 and mirror images, mean of probabilities).
    """

    __test__ = False  # pytest takes every class that begins with Test for one of its own

    def __init__(
        self,
        evidence: Evidence,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        short_sides: Sequence[int] = (),
        merge: Merge = "mean",
    ) -> None:
        super().__init__(evidence.tasks)
        if not (scales or short_sides) or min((*scales, *short_sides)) <= 0:
            raise ConfigurationError(
                f"Test-time augmentation wants at least one size, all above 0; got scales {list(scales)} and "
                f"short_sides {list(short_sides)}."
            )
        Mixture(self.tasks, merge)  # refuses what is no merge before the first image
        self.evidence = evidence
        self.scales = tuple(scales)
        self.flip = flip
        self.short_sides = tuple(short_sides)
        self.merge = merge

    def sizes(self, size: Size) -> list[Size]:
        """The sizes that are asked about, for an image of that size."""
        wanted = [scaled_size(size, scale) for scale in self.scales]
        wanted += [short_side_size(size, side) for side in self.short_sides]
        return list(dict.fromkeys(wanted))

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """The joint evidence of all sizes and mirror images."""
        mixture = Mixture(self.tasks, self.merge)
        for view, mirrored in self._views(image):
            mixture.add(self._back(self._asked(view), view, mirrored, image))
        return mixture.mean()

    def answers(self, image: Tensor) -> Iterator[dict[str, Tensor]]:
        """Those about each size and mirror image."""
        for view, mirrored in self._views(image):
            for answer in self.evidence.answers(view):
                yield self._back(answer, view, mirrored, image)

    @property
    def averages(self) -> bool:
        """Whether it is the plain mean of its `answers`."""
        return self.merge == "mean" and super().averages

    def _views(self, image: Tensor) -> Iterator[tuple[Tensor, bool]]:
        for size in self.sizes((image.shape[-2], image.shape[-1])):
            view = resized_image(image, size)
            yield view, False
            if self.flip:
                yield view.flip(-1), True

    def _asked(self, view: Tensor) -> dict[str, Tensor]:
        try:
            return self.evidence(view)
        except ConfigurationError as error:
            height, width = view.shape[-2:]
            raise ConfigurationError(f"Test-time augmentation, at {height} x {width}: {error}") from error

    def _back(self, evidence: dict[str, Tensor], view: Tensor, mirrored: bool, image: Tensor) -> dict[str, Tensor]:
        (height, width), (tall, wide) = image.shape[-2:], view.shape[-2:]
        zoom = math.sqrt(tall / height * wide / width)
        if mirrored:
            evidence = {task.name: task.unflipped(evidence[task.name]) for task in self.tasks}
        evidence = resized_evidence(evidence, self.tasks, (height, width))
        return {task.name: task.unzoomed(evidence[task.name], zoom) for task in self.tasks}
