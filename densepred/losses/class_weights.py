"""Class weights from how often classes occur: computed, and read from the file of `densepred check-data`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from densepred.errors import ConfigurationError
from densepred.sample import valid_segmentation

ClassWeights = list[float] | dict[str, float] | str
"""What `class_weights` takes: a number a class; numbers by the classes' names; or the file of `densepred check-data`,
FILE for its median-frequency weights, or FILE#inverse_frequency (see `read_class_weights`)."""

SCHEMES = ("median_frequency", "inverse_frequency")
KEY = "class_weights"
"""Under which that file holds them, by target and scheme."""


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


def read_class_weights(source: str) -> dict[str, float]:
    """Class weights by name, from the JSON that `densepred check-data` writes.

    Args:
        source: FILE for median-frequency weights, FILE#inverse_frequency for the others; of a data set with several
            kinds of labels FILE#TARGET/SCHEME.

    Raises:
        ConfigurationError: If there is no such file, or no such weights in it; it says what to run.
    """
    file, _, choice = source.partition("#")
    target, _, scheme = choice.rpartition("/")
    found = _read_json(Path(file)).get(KEY)
    if not isinstance(found, dict) or not found:
        raise ConfigurationError(
            f"{KEY}: {file} holds no class weights. Expected the JSON of `densepred check-data` on a data set with "
            "labels. To give the weights themselves write a list of them."
        )
    target = target or (next(iter(found)) if len(found) == 1 else "segmentation")
    scheme = scheme or SCHEMES[0]
    weights = found.get(target, {}).get(scheme)
    if not isinstance(weights, dict):
        there = ", ".join(f"{file}#{name}/{kind}" for name, kinds in found.items() for kind in kinds)
        raise ConfigurationError(f"{KEY}: there are no {scheme} weights of {target!r} in {file}. There are: {there}.")
    return {str(name): float(weight) for name, weight in weights.items()}


def _read_json(path: Path) -> dict[str, Any]:
    wanted = f"{KEY}: expected a file that `densepred check-data` writes"
    try:
        content = json.loads(path.expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{wanted}, but there is no {path}. Write it with: densepred check-data --config CONFIG --output "
            f"{path.with_suffix('')} (CONFIG being the run's own)."
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{wanted}, but {path} cannot be read: {error}. Run it again.") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{wanted}, but {path} is another one. Run it again, or give a list of weights.")
    return content


def with_weights_read(options: Any) -> Any:
    """The same configuration with files of class weights replaced by what they hold, so that it needs them no more.

    Args:
        options: Nested mappings and lists, as a configuration is made of; changed in place.

    Raises:
        ConfigurationError: As `read_class_weights`.
    """
    if isinstance(options, list):
        for item in options:
            with_weights_read(item)
    elif hasattr(options, "items"):
        # of jsonargparse's own mapping the names are whole paths: init_args.loss.init_args.class_weights
        for name, value in list(options.items()):
            if name.rpartition(".")[2] == KEY and isinstance(value, str):
                options[name] = read_class_weights(value)
            else:
                with_weights_read(value)
    return options


def in_order(weights: Mapping[str, float], classes: Sequence[str], where: str) -> dict[str, float]:
    """Weights by name in the order of the classes. (Their own says nothing: YAML is written in alphabetical order.)

    Raises:
        ConfigurationError: If they are for other classes.

    Example:
        >>> in_order({"road": 1.0, "sky": 2.0}, ["sky", "road"], "Task")
        {'sky': 2.0, 'road': 1.0}
    """
    if set(weights) != set(classes):
        raise ConfigurationError(
            f"{where}: the {KEY} are for {len(weights)} classes ({', '.join(weights)}), the task has {len(classes)} "
            f"({', '.join(classes)}). Give a weight for each of these: `densepred check-data` on the run's own data "
            "computes them."
        )
    return {name: weights[name] for name in classes}
