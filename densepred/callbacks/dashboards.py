"""Panels on dashboards: Weights & Biases with masks to switch on and off, TensorBoard with the sheets."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from densepred.callbacks.sheet import draw_sheet
from densepred.callbacks.shots import Shot, array_of, legends_of, row_of
from densepred.sample import VOID
from densepred.tasks.base import Task
from densepred.tasks.segmentation import Segmentation

Masks = dict[str, dict[str, Any]]


def send_panels(loggers: Sequence[Logger], stage: str, tasks: Sequence[Task], shots: Sequence[Shot], step: int) -> None:
    """Sends every task's pictures, as `panels/<stage>/<task>`, to the loggers that show pictures."""
    for logger in loggers:
        for task in tasks:
            mine = [shot for shot in shots if task.name in shot.pictures]
            if not mine:
                continue
            key = f"panels/{stage}/{task.name}"
            if isinstance(logger, WandbLogger):
                _send_to_wandb(logger, key, task, mine, step)
            elif isinstance(logger, TensorBoardLogger):
                sheet = draw_sheet([row_of(shot, [task]) for shot in mine], "", legends_of(mine, [task]))
                logger.experiment.add_image(key, np.asarray(sheet), step, dataformats="HWC")


def _send_to_wandb(logger: WandbLogger, key: str, task: Task, shots: Sequence[Shot], step: int) -> None:
    names = [shot.name for shot in shots]
    # masks are 8-bit pictures
    if isinstance(task, Segmentation) and len(task.classes) <= VOID:
        images = [array_of(shot.image) for shot in shots]
        logger.log_image(key, images, step, caption=names, masks=[masks_of(shot, task) for shot in shots])
        return
    sheets = [draw_sheet([row_of(shot, [task])], "", legends_of([shot], [task])) for shot in shots]
    logger.log_image(key, [np.asarray(sheet) for sheet in sheets], step, caption=names)


def masks_of(shot: Shot, task: Segmentation) -> Masks:
    """Labels as Weights & Biases wants them: prediction and target, in multilabel mode one of each a class."""
    masks: Masks = {}
    for what, given in (("prediction", shot.predictions), ("target", shot.targets)):
        if (labels := given.get(task.name)) is None:
            continue
        known = task.known(labels)
        if task.mode != "multilabel":
            masks[what] = _mask(labels[0], known[0], dict(enumerate(task.classes)))
            continue
        for index, name in enumerate(task.classes):
            answers = {0: f"not {name}", 1: name}
            masks[f"{what} {name}"] = _mask(labels[0, index], known[0, index], answers)
    return masks


def _mask(labels: Tensor, known: Tensor, names: dict[int, str]) -> dict[str, Any]:
    data = torch.where(known, labels.long(), VOID).numpy()
    return {"mask_data": data, "class_labels": {**names, VOID: "void"}}
