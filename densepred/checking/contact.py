"""The contact sheet: samples of every split with their targets, as they are read."""

from collections.abc import Iterator

from PIL import Image
from torch import Tensor

from densepred.callbacks.sheet import draw_sheet
from densepred.callbacks.shots import Shot, legends_of, rgb, row_of
from densepred.checking.inspection import Inspection, repeated_splits
from densepred.data.listing import evenly
from densepred.palettes import voc_palette
from densepred.sample import Kind, valid_depth
from densepred.tasks.base import Task
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.regression import Regression
from densepred.tasks.segmentation import Segmentation

PICTURES = 6
"""Side by side, about: three samples with one target, two with two or three."""


def contact_sheet(found: Inspection, samples: int, palettes: dict[str, list[list[int]]]) -> Image.Image | None:
    """Samples evenly spread over the splits; None if none can be drawn.

    Args:
        found: Whose samples.
        samples: How many, half of them for training.
        palettes: Colours of classes by key of labels; those of Pascal VOC for the others.
    """
    tasks = list(_tasks(found, palettes))
    shots = list(_shots(found, samples, tasks))
    if not shots:
        return None
    rows = [row_of(shot, tasks) for shot in shots]
    return draw_sheet(
        rows, found.datamodule, legends_of(shots, tasks), across=max(1, round(PICTURES / (1 + len(tasks))))
    )


def _tasks(found: Inspection, palettes: dict[str, list[list[int]]]) -> Iterator[Task]:
    """Tasks that know how to draw the targets."""
    kinds = {key: kind for dataset in found.datasets.values() for key, kind in dataset.kinds.items()}
    counted = dict.fromkeys(key for numbers in found.splits.values() for key in numbers.sums)
    for key in counted:
        if kinds[key] is Kind.LABEL:
            names = found.classes.get(key) or ["class_0"]
            overlapping = any(key in numbers.overlapping for numbers in found.splits.values())
            names = names if overlapping or len(names) > 1 else [*names, "(other)"]
            colours = palettes.get(key, voc_palette(len(names)))
            fits = len(colours) == len(names)
            yield Segmentation(
                names, key, mode="multilabel" if overlapping else "multiclass", palette=colours if fits else None
            )
        elif kinds[key] is Kind.DEPTH:
            yield Depth(key)
        elif kinds[key] is Kind.NORMALS:
            yield Normals(key)
        elif kinds[key] is Kind.WEIGHT:
            yield Regression(1, key)


def _shots(found: Inspection, samples: int, tasks: list[Task]) -> Iterator[Shot]:
    for split, count in _shares(found, samples).items():
        dataset = found.datasets[split]
        for index in evenly([str(place) for place in found.splits[split].usable], count):
            yield _shot(split, dataset[int(index)], tasks)


def _shares(found: Inspection, samples: int) -> dict[str, int]:
    """How many of each split: half for training, the rest dealt to the others."""
    again = repeated_splits(found)
    there = {
        split: len(numbers.usable) for split, numbers in found.splits.items() if numbers.usable and split not in again
    }
    others = max(1, len(there) - ("train" in there))
    wanted = {split: (samples + 1) // 2 if split == "train" else max(1, samples // 2 // others) for split in there}
    return {split: min(there[split], wanted[split]) for split in there}


def _shot(split: str, sample: dict[str, Tensor | str], tasks: list[Task]) -> Shot:
    planes = {key: value for key, value in sample.items() if isinstance(value, Tensor)}
    targets = {task.name: planes[task.name][None] for task in tasks if task.name in planes}
    pictures = {task.name: {"": task.render(targets[task.name])[0]} for task in tasks if task.name in targets}
    image = planes["image"]
    words = [f"{split}: {sample.get('name', '')}", f"{image.shape[-2]} x {image.shape[-1]}"]
    # each depth is drawn on its own scale
    words += [_range(targets[task.name]) for task in tasks if isinstance(task, Depth) and task.name in targets]
    return Shot(", ".join(filter(None, words)), rgb(image), {}, targets, pictures)


def _range(depth: Tensor) -> str:
    known = depth[valid_depth(depth)]
    return f"{known.min():.2g} to {known.max():.2g} m" if len(known) else ""
