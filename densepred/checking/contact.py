"""The contact sheet: samples of every split with their targets, as they are read."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from densepred.callbacks.sheet import draw_sheet
from densepred.callbacks.shots import row_of
from densepred.callbacks.targets import depth_range, drawing_tasks, target_shots
from densepred.checking.inspection import Inspection, repeated_splits
from densepred.data.listing import evenly

PICTURES = 6
"""Side by side, about: three samples with one target, two with two or three."""


def contact_sheet(found: Inspection, samples: int, options: Sequence[Mapping[str, Any]]) -> Image.Image | None:
    """Samples evenly spread over the splits; None if none can be drawn.

    Args:
        found: Whose samples.
        samples: How many, half of them for training.
        options: Names and palettes of a run's tasks of labels, where there are some.
    """
    drawn = list(_samples(found, samples))
    if not drawn:
        return None
    kinds = {key: kind for dataset in found.datasets.values() for key, kind in dataset.kinds.items()}
    tasks = drawing_tasks([sample for _, sample in drawn], kinds, found.classes, options)
    titles = [_title(split, sample, depth_range(sample, tasks)) for split, sample in drawn]
    shots, legends = target_shots([(title, sample) for title, (_, sample) in zip(titles, drawn, strict=True)], tasks)
    across = max(1, round(PICTURES / (1 + len(tasks))))
    return draw_sheet([row_of(shot, tasks) for shot in shots], found.datamodule, legends, across)


def _samples(found: Inspection, samples: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for split, count in _shares(found, samples).items():
        for index in evenly([str(place) for place in found.splits[split].usable], count):
            yield split, found.datasets[split][int(index)]


def _shares(found: Inspection, samples: int) -> dict[str, int]:
    """How many of each split: half for training, the rest dealt to the others."""
    again = repeated_splits(found)
    there = {
        split: len(numbers.usable)
        for split, numbers in found.splits.items()
        if numbers.usable and split not in again
    }  # fmt: skip
    others = max(1, len(there) - ("train" in there))
    wanted = {split: (samples + 1) // 2 if split == "train" else max(1, samples // 2 // others) for split in there}
    return {split: min(there[split], wanted[split]) for split in there}


def _title(split: str, sample: Mapping[str, Any], depth: str) -> str:
    height, width = sample["image"].shape[-2:]
    return ", ".join(filter(None, (f"{split}: {sample.get('name', '')}", f"{height} x {width}", depth)))
