"""Which curves stand together: one layout for the page, for Weights & Biases and for TensorBoard."""

from collections.abc import Iterable
from dataclasses import dataclass

STAGES = ("train", "val", "test")
_BALANCE = {"weight": "factor of each task", "gradient_norm": "gradient of each task at the encoder"}


@dataclass(frozen=True)
class Plot:
    """Curves over one pair of axes.

    Attributes:
        title: What stands above.
        keys: Of the logged numbers.
    """

    title: str
    keys: tuple[str, ...]


def layout(keys: Iterable[str]) -> dict[str, list[Plot]]:
    """Plots by section: losses, a section a task, optimiser, balance of tasks, machine, and whatever else was logged.

    Args:
        keys: Of the numbers that a run logs, as in `metrics.csv`; test metrics, single numbers, have no curve.

    Example:
        >>> plots = layout(["train/loss", "val/loss", "val/depth/rmse", "lr-SGD/encoder", "speed/images_per_second"])
        >>> {name: [plot.title for plot in of_section] for name, of_section in plots.items()}
        {'Loss': ['loss'], 'depth': ['rmse'], 'Optimiser': ['learning rate'], 'Machine': ['images per second']}
    """
    grouped: dict[tuple[str, str], list[str]] = {}
    for key in dict.fromkeys(keys):
        if not key.startswith("test/"):
            grouped.setdefault(_place(key), []).append(key)
    first = {"Loss": 0, "Optimiser": 2, "Balance": 3, "Machine": 4, "Other": 5}
    sections: dict[str, list[Plot]] = {}
    for (section, title), found in sorted(grouped.items(), key=lambda item: first.get(item[0][0], 1)):
        sections.setdefault(section, []).append(Plot(title, tuple(sorted(found, key=_training_first))))
    for plots in sections.values():
        plots.sort(key=lambda plot: plot.title != "loss")  # the sum before its parts
    return sections


def _place(key: str) -> tuple[str, str]:
    """Section and plot of a key."""
    stage, _, rest = key.partition("/")
    parts = rest.split("/")
    if key.startswith("lr-"):
        return "Optimiser", "learning rate"
    if stage in STAGES and parts[-1] == "loss":
        return "Loss", "loss" if len(parts) == 1 else f"{parts[0]} loss"
    if stage in STAGES and len(parts) == 1:
        return "Optimiser", rest.replace("_", " ")
    if stage == "train" and parts[-1] in _BALANCE:
        return "Balance", _BALANCE[parts[-1]]
    if stage in STAGES:
        # classes share a plot: val/segmentation/iou/wall
        return parts[0], parts[1].replace("_", " ") + (" by class" if len(parts) > 2 else "")
    if stage in ("speed", "memory"):
        return "Machine", rest.replace("_", " ") if stage == "speed" else "memory in GiB"
    return "Other", key


def _training_first(key: str) -> tuple[int, str]:
    stage = key.partition("/")[0]
    return (STAGES.index(stage) if stage in STAGES else len(STAGES), key)
