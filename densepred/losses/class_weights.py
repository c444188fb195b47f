"""Class weights from how often classes occur."""

from collections.abc import Iterable, Sequence
from statistics import median

import torch
from torch import Tensor

from densepred.errors import ConfigurationError
from densepred.sample import valid_segmentation


def count_labels(label_maps: Iterable[Tensor], classes: int) -> tuple[list[int], list[int]]:
    """How often each class occurs in a set: its pixels, and the known pixels of the images that contain it.

    Missing pixels (255 in uint8, negative in wider integers), and labels that are no class, don't count.

    Args:
        label_maps: Labels (H, W) of the images, of any integer dtype.
        classes: How many classes there are.

    Example:
        >>> count_labels([torch.tensor([[0, 0, 1, 255]]), torch.tensor([[0, 0]])], classes=2)
        ([4, 1], [5, 3])
    """
    counts = torch.zeros(classes, dtype=torch.int64)
    image_counts = torch.zeros(classes, dtype=torch.int64)
    for labels in label_maps:
        known = labels[valid_segmentation(labels, classes) & (labels < classes)]
        found = torch.bincount(known.flatten().long().cpu(), minlength=classes)
        counts += found
        image_counts += (found > 0) * found.sum()
    return counts.tolist(), image_counts.tolist()


def median_frequency_weights(counts: Sequence[int], image_counts: Sequence[int]) -> list[float]:
    """Weights that make classes count alike: the median frequency divided by the class's own.

    A class's frequency is its number of pixels divided by the number of pixels of all images that contain it. The
    median is over the classes that occur; a class that doesn't gets weight 0.

    Args:
        counts: Pixels of each class, from `count_labels`.
        image_counts: Pixels of all images that contain the class.

    Returns:
        One weight a class, for `class_weights` of `Segmentation` and of the losses.

    Raises:
        ConfigurationError: If the lists don't fit together, or no class occurs.

    Reference:
        Eigen, Fergus. Predicting Depth, Surface Normals and Semantic Labels with a Common Multi-Scale Convolutional
        Architecture. ICCV 2015. arXiv:1411.4734.

    Example:
        >>> median_frequency_weights([16, 64, 8, 0], [128, 128, 128, 0])
        [1.0, 0.25, 2.0, 0.0]
    """
    if len(counts) != len(image_counts) or any(a > b for a, b in zip(counts, image_counts, strict=False)):
        raise ConfigurationError(
            "median_frequency_weights: expected the pixels of each class, and those of all images that contain it; "
            f"got {list(counts)} and {list(image_counts)}."
        )
    frequencies = [count / of if count else 0.0 for count, of in zip(counts, image_counts, strict=True)]
    return _inverse("median_frequency_weights", frequencies, median([f for f in frequencies if f] or [0.0]))


def inverse_frequency_weights(counts: Sequence[int]) -> list[float]:
    """Weights inversely proportional to how often a class occurs: all pixels / (classes that occur * its pixels).

    Weighted so, every class has the same part in the loss (`class_weight="balanced"` in scikit-learn). A class that
    does not occur gets weight 0.

    Args:
        counts: Pixels of each class, from `count_labels`.

    Returns:
        One weight a class, for `class_weights` of `Segmentation` and of the losses.

    Raises:
        ConfigurationError: If no class occurs.

    Example:
        >>> inverse_frequency_weights([30, 60, 0])
        [1.5, 0.75, 0.0]
    """
    occurring = sum(count > 0 for count in counts)
    return _inverse("inverse_frequency_weights", counts, sum(counts) / max(1, occurring))


def _inverse(who: str, frequencies: Sequence[float], typical: float) -> list[float]:
    if typical <= 0:
        raise ConfigurationError(f"{who}: none of the {len(frequencies)} classes occurs. Count the labels first.")
    return [typical / frequency if frequency else 0.0 for frequency in frequencies]
