"""Samples with all that is known about them as pictures, without any prediction."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from densepred.callbacks.sheet import Legend
from densepred.callbacks.shots import Shot, legends_of, rgb
from densepred.metrics.segmentation import Mode
from densepred.palettes import colour_table
from densepred.sample import VOID, Kind, valid_depth, valid_segmentation
from densepred.tasks.base import Task
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.pictures import Scale, fixed_scale, heat
from densepred.tasks.regression import Regression
from densepred.tasks.segmentation import Segmentation

Sample = Mapping[str, Any]

STEPS = 6
"""Colours of a scale in the legend."""
DIRECTIONS = {
    "right": (1, 0, 0),
    "left": (-1, 0, 0),
    "up": (0, -1, 0),
    "down": (0, 1, 0),
    "towards the camera": (0, 0, -1),
}


def drawing_tasks(
    samples: Sequence[Sample],
    kinds: Mapping[str, Kind],
    classes: Mapping[str, list[str]],
    options: Iterable[Mapping[str, Any]] = (),
    palettes: Mapping[str, list[list[int]]] | None = None,
) -> list[Task]:
    """A task for every target of the samples, that knows how to draw it.

    Args:
        samples: Tensors by key, as a data set serves them.
        kinds: What kind each key is.
        classes: Names of classes by key, as a datamodule knows them.
        options: `name` and `palette` of a run's tasks of labels, where it has some.
        palettes: Colours of classes by key for the others, as a datamodule knows them; those of Pascal VOC where there
            are none, or not one a class.
    """
    keys = dict.fromkeys(key for sample in samples for key, value in sample.items() if isinstance(value, Tensor))
    colours = dict(palettes or {})
    colours |= {given["name"]: given["palette"] for given in options if given.get("palette") is not None}
    tasks: list[Task] = []
    for key in keys:
        kind = kinds[key]
        if kind is Kind.LABEL:
            labels = [sample[key] for sample in samples if key in sample]
            tasks.append(_label_task(key, labels, classes.get(key), colours.get(key)))
        elif kind is Kind.DEPTH:
            tasks.append(Depth(key))
        elif kind is Kind.NORMALS:
            tasks.append(Normals(key))
        elif kind is Kind.WEIGHT:
            planes = next(len(sample[key]) for sample in samples if key in sample)
            tasks.append(Regression(planes, key))
    return tasks


def target_shots(named: Sequence[tuple[str, Sample]], tasks: Sequence[Task]) -> tuple[list[Shot], list[Legend]]:
    """Samples as shots without predictions, and what their colours mean.

    Depth, and weights of one plane, have one scale for all samples, so that a depth that a zoom has changed shows it.

    Args:
        named: What stands above each sample, and the sample.
        tasks: Of `drawing_tasks`.
    """
    scales = {task.name: _scale([sample[task.name] for _, sample in named if task.name in sample], task)
              for task in tasks if _scaled(task)}  # fmt: skip
    shots = [_shot(name, sample, tasks, scales) for name, sample in named]
    legends = {legend.heading: legend for legend in legends_of(shots, tasks)}
    for task in tasks:
        if task.name in scales:
            legends[task.name] = _scale_legend(task, scales[task.name])
        elif isinstance(task, Normals):
            legends[task.name] = _direction_legend(task)
    return shots, [legends[task.name] for task in tasks if task.name in legends]


def depth_range(sample: Sample, tasks: Sequence[Task]) -> str:
    """The nearest and farthest depth of a sample, in words; empty where none is known."""
    depths = [sample[task.name] for task in tasks if isinstance(task, Depth) and task.name in sample]
    known = torch.cat([depth[valid_depth(depth)] for depth in depths]) if depths else torch.empty(0)
    return f"{known.min():.3g} to {known.max():.3g} m" if len(known) else ""


def _label_task(
    key: str, labels: Sequence[Tensor], names: list[str] | None, palette: list[list[int]] | None
) -> Segmentation:
    known = [label[valid_segmentation(label)] for label in labels]
    top = max((int(values.max()) for values in known if len(values)), default=0)
    overlapping = labels[0].ndim == 3
    mode: Mode = "multilabel" if overlapping else "multiclass"
    classes: int | list[str] = names or (len(labels[0]) if overlapping else min(max(top + 1, 2), VOID))
    count = classes if isinstance(classes, int) else len(classes)
    if not overlapping and count < 2:
        classes = [*(names or []), "(other)"]  # one name of two: binary data
    fits = palette is not None and len(palette) == count
    return Segmentation(classes, key, mode=mode, palette=palette if fits else None)


def _scaled(task: Task) -> bool:
    return isinstance(task, Depth) or (isinstance(task, Regression) and task.out_channels == 1)


def _known(task: Task, planes: Tensor) -> Tensor:
    return valid_depth(planes) if isinstance(task, Depth) else planes.isfinite()


def _scale(targets: Sequence[Tensor], task: Task) -> Scale:
    """From the first to the last percent of what is known in all samples: one far pixel must not darken the rest."""
    known = [planes[_known(task, planes)].flatten() for planes in targets]
    # torch's quantile takes no more than 16 million numbers
    values = torch.cat([part[:: max(1, len(part) // 20_000)] for part in known]) if known else torch.empty(0)
    if not len(values):
        return fixed_scale(0.0, 1.0)
    low, high = torch.quantile(values.float(), torch.tensor([0.01, 0.99])).tolist()
    return fixed_scale(low, high if high > low else low + 1)


def _shot(name: str, sample: Sample, tasks: Sequence[Task], scales: Mapping[str, Scale]) -> Shot:
    targets = {task.name: sample[task.name][None] for task in tasks if task.name in sample}
    pictures = {}
    for task in tasks:
        if task.name in targets:
            target, scale = targets[task.name], scales.get(task.name)
            drawn = task.render(target) if scale is None else heat(target, _known(task, target), scale)
            pictures[task.name] = {"": drawn[0]}
    return Shot(name, rgb(sample["image"]), {}, targets, pictures)


def _scale_legend(task: Task, scale: Scale) -> Legend:
    low, high = float(scale.low), float(scale.high)
    unit = " m" if isinstance(task, Depth) else ""
    table = colour_table("viridis")
    entries = []
    for step in range(STEPS):
        share = step / (STEPS - 1)
        red, green, blue = table[round(255 * share)]
        entries.append((f"{low + share * (high - low):.3g}{unit}", (red, green, blue)))
    return Legend(task.name, entries)


def _direction_legend(task: Normals) -> Legend:
    vectors = torch.tensor(list(DIRECTIONS.values()), dtype=torch.float32).T.view(1, 3, 1, -1)
    colours = task.render(vectors)[0, :, 0].T.tolist()
    return Legend(task.name, [(name, (r, g, b)) for name, (r, g, b) in zip(DIRECTIONS, colours, strict=True)])
