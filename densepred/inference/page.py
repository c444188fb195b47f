"""The page of `densepred demo`: a photo in, pictures of labels, depth and normals out."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from densepred.errors import ConfigurationError, UserError
from densepred.inference.options import InferenceOptions
from densepred.inference.prediction import Prediction
from densepred.inference.predictor import Predictor, pictures_in
from densepred.inference.rescaled import Rescaled
from densepred.tasks.segmentation import Segmentation

LEGEND_SHARE = 0.001
"""Classes that cover less of a picture than this are not in its legend."""


def serve(predictor: Predictor, title: str, host: str, port: int, examples: Path | None = None) -> None:
    """Serves the page until it is stopped.

    Raises:
        ConfigurationError: If gradio is not installed, or the port cannot be had.
    """
    built = build(predictor, title, examples)
    try:
        built.launch(server_name=host, server_port=port, share=False, show_error=True)
    except OSError as error:
        raise ConfigurationError(
            f"--host {host} --port {port}: not free, or not this machine's. Give another --port."
        ) from error


def build(predictor: Predictor, title: str, examples: Path | None = None) -> Any:
    """The page, a `gradio.Blocks`; it asks nothing of any other machine.

    Raises:
        ConfigurationError: If gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it is read when gradio is imported
    try:
        gradio: Any = import_module("gradio")
    except ImportError as error:
        raise ConfigurationError(
            f"The page needs gradio, which is not installed ({error}). Run: pip install 'densepred[demo]'"
        ) from error
    names = [task.name for task in predictor.tasks]

    def answer(path: str | None, opacity: float, short_side: float | None, flip: bool) -> list[Any]:
        if path is None:
            return [*[None] * (1 + 2 * len(names)), ""]
        try:
            prediction = asked(predictor, Path(path), int(short_side) if short_side else None, flip)
        except UserError as error:
            raise gradio.Error(str(error).replace(str(Path(path).parent) + os.sep, ""), duration=None) from error
        return [_rows(prediction.shown_image()), *shown(prediction, opacity), told(prediction)]

    with gradio.Blocks(title=f"densepred: {title}", analytics_enabled=False) as page:
        gradio.Markdown(f"## densepred\n{title}: {', '.join(names)}")
        with gradio.Row():
            with gradio.Column(scale=1):
                # not gradio's own image: read_photo knows orientation and 16 bits, and says what is wrong
                photo = gradio.File(type="filepath", file_types=["image"], label="drop a photo here", height=140)
                opacity = gradio.Slider(0, 1, 0.5, step=0.05, label="opacity of the overlays")
                short_side = gradio.Number(0, label="shorter side, pixels (0: as trained)", precision=0)
                flip = gradio.Checkbox(False, label="average with the mirror image")
                ask = gradio.Button("Predict", variant="primary")
                notes = gradio.Markdown()
                if examples is not None:
                    gradio.Examples([str(one) for one in pictures_in(examples)], photo, cache_examples=False)
            with gradio.Column(scale=3):
                panels: list[Any] = [gradio.Image(label="photo", height=280)]
                for name in names:
                    with gradio.Row():
                        panels += [
                            gradio.Image(label=label, height=280, format="png")
                            for label in (name, f"{name} over the photo")
                        ]
        given, results = [photo, opacity, short_side, flip], [*panels, notes]
        ask.click(answer, given, results, api_name="predict")
        photo.change(answer, given, results, api_name=False)
    return page


def asked(predictor: Predictor, path: Path, short_side: int | None, flip: bool) -> Prediction:
    """What the network says to a picture under the page's options.

    Raises:
        DataError: If the picture cannot be read.
        ConfigurationError: If the shorter side is none.
    """
    if short_side is not None and short_side < 32:
        raise ConfigurationError(f"The shorter side is {short_side}; expected at least 32 pixels, or nothing.")
    evidence, notes = predictor.evidence, predictor.notes
    if isinstance(evidence, Rescaled):  # as trained: the page's own size takes its place
        short_side, notes = short_side or evidence.short_side, () if short_side else notes
        evidence = evidence.evidence
    options = InferenceOptions(short_side=short_side, flip=flip)
    with_options = Predictor(options.applied(evidence), predictor.channels, predictor.device, notes)
    return with_options(path)


def shown(prediction: Prediction, opacity: float) -> list[np.ndarray]:
    """Each task's picture, and the same over the photo."""
    pictures = [
        picture
        for task in prediction.tasks
        for picture in (prediction.picture(task.name), prediction.overlay(task.name, opacity))
    ]
    return [_rows(picture) for picture in pictures]


def told(prediction: Prediction) -> str:
    """The legend of the labels with each class's share, the range of depth, and what was done to the photo."""
    lines: list[str] = []
    for task in prediction.tasks:
        values = prediction[task.name]
        if isinstance(task, Segmentation) and values.ndim == 2:
            lines += _legend(prediction, task)
        elif task.name == "depth":
            lines.append(f"depth: {values.min().item():.2f} m (dark) to {values.max().item():.2f} m (bright)")
    return "\n\n".join([*lines, *prediction.notes])


def _legend(prediction: Prediction, task: Segmentation) -> list[str]:
    labels, picture = prediction[task.name], prediction.picture(task.name)
    counts = labels.long().flatten().bincount()
    lines = []
    for index in counts.argsort(descending=True).tolist():
        share = counts[index].item() / labels.numel()
        if share < LEGEND_SHARE:
            continue
        row, column = (labels == index).nonzero()[0].tolist()
        red, green, blue = picture[:, row, column].tolist()
        lines.append(f'<span style="color:rgb({red},{green},{blue})">&#9632;</span> {task.classes[index]} {share:.1%}')
    return [" &nbsp; ".join(lines)]


def _rows(picture: Tensor) -> np.ndarray:
    rows: np.ndarray = picture.permute(1, 2, 0).numpy()
    return rows
