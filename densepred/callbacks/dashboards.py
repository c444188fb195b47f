"""Pictures and diagnostics on dashboards: Weights & Biases, and TensorBoard without an account."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from densepred.callbacks.confusion_picture import confusion_picture
from densepred.callbacks.sheet import draw_sheet
from densepred.callbacks.shots import Shot, array_of, legends_of, row_of
from densepred.reports.diagnostics import CLASS_COLUMNS, angle_chart, class_rows, confusion_chart, distance_chart
from densepred.reports.layout import layout
from densepred.reports.page import fragment
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


def send_diagnostics(
    loggers: Sequence[Logger],
    stage: str,
    tasks: Sequence[Task],
    found: dict[str, dict[str, Any]],
    shots: dict[str, list[Shot]],
    step: int,
) -> None:
    """Sends what `Diagnostics` found of each task: `worst/<stage>/<task>` and `diagnostics/<stage>/<task>...`."""
    for logger in loggers:
        if not isinstance(logger, WandbLogger | TensorBoardLogger):
            continue
        for task in tasks:
            mine, end = found[task.name], f"{stage}/{task.name}"
            if isinstance(logger, WandbLogger):
                _diagnostics_to_wandb(logger, end, mine, step)
            else:
                _diagnostics_to_tensorboard(logger, end, mine, step)
            if shown := shots.get(task.name):
                sheet = np.asarray(draw_sheet([row_of(shot, [task]) for shot in shown], "", legends_of(shown, [task])))
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"worst/{end}", [sheet], step, caption=[mine["error"]])
                else:
                    logger.experiment.add_image(f"worst/{end}", sheet, step, dataformats="HWC")


def _diagnostics_to_wandb(logger: WandbLogger, end: str, found: dict[str, Any], step: int) -> None:
    import wandb

    sent: dict[str, Any] = {}
    charts: list[str] = []
    if "confusion" in found:
        sent[f"iou/{end}"] = wandb.Table(columns=list(CLASS_COLUMNS), data=class_rows(found))
        charts.append(confusion_chart(found))
    if "angles" in found:
        counts = np.asarray(found["angles"])
        sent[f"angles/{end}"] = wandb.Histogram(np_histogram=(counts, np.arange(181)), num_bins=180)
        charts.append(angle_chart(found))
    if "by_distance" in found:
        charts.append(distance_chart(found))
    if charts:
        sent[f"diagnostics/{end}"] = wandb.Html(fragment("".join(charts)), inject=False)
    if sent:
        logger.log_metrics(sent, step)


def _diagnostics_to_tensorboard(logger: TensorBoardLogger, end: str, found: dict[str, Any], step: int) -> None:
    writer = logger.experiment
    if "confusion" in found:
        writer.add_text(f"iou/{end}", markdown_table(CLASS_COLUMNS, class_rows(found)), step)
        for tag, matrix, names in _confusions(found):
            picture = np.asarray(confusion_picture(matrix, names))
            writer.add_image(f"confusion/{end}{tag}", picture, step, dataformats="HWC")
    if "angles" in found:
        counts = np.asarray(found["angles"], dtype=np.float64)
        middles = np.arange(180) + 0.5
        writer.add_histogram_raw(
            f"angles/{end}", 0.0, 180.0, int(counts.sum()), float(counts @ middles), float(counts @ middles**2),
            np.arange(1.0, 181.0).tolist(), counts.tolist(), step,
        )  # fmt: skip
    if "by_distance" in found:
        numbers = found["by_distance"]
        for begin, end_, value in zip(numbers["edges"][:-1], numbers["edges"][1:], numbers["relative"], strict=True):
            if np.isfinite(value):
                writer.add_scalar(f"by_distance/{end}/{begin:g}_to_{end_:g}_m", value, step)


def _confusions(found: dict[str, Any]) -> Iterable[tuple[str, list[list[int]], list[str]]]:
    """Every matrix with the end of its tag and the names of its rows; in multilabel mode one a class."""
    if found["mode"] != "multilabel":
        return [("", found["confusion"][0], found["classes"])]
    return [
        (f"/{name}", matrix, ["no", "yes"]) for name, matrix in zip(found["classes"], found["confusion"], strict=True)
    ]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as TensorBoard's text page reads it.

    Example:
        >>> print(markdown_table(["class", "IoU"], [["wall", 0.5], ["a|b", None]]))
        | class | IoU |
        |---|---|
        | wall | 0.5000 |
        | a\\|b | – |
    """
    lines = [header, *([_cell(value) for value in row] for row in rows)]
    texts = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([texts[0], "|" + "---|" * len(header), *texts[1:]])


def _cell(value: Any) -> str:
    text = "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")


def send_texts(loggers: Sequence[Logger], texts: dict[str, str]) -> None:
    """Sends files of the run, as they are, to TensorBoard's text page; Weights & Biases has a place of its own."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for tag, text in texts.items():
                # four spaces: Markdown's own for text as it is
                logger.experiment.add_text(tag, "".join(f"    {line}\n" for line in text.splitlines()), 0)


def send_layout(loggers: Sequence[Logger], keys: Iterable[str]) -> None:
    """Tells TensorBoard which curves stand together, on its Custom Scalars page."""
    sections = layout(keys)
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            plots = {
                name: {plot.title: ["Multiline", list(plot.keys)] for plot in of_section}
                for name, of_section in sections.items()
            }
            logger.experiment.add_custom_scalars(plots)
