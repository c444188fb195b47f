"""How wrong a prediction is at every pixel, in each task's own measure."""

from functools import singledispatch

import torch
from torch import Tensor

from densepred.blocks import full_precision
from densepred.metrics.normals import angle_degrees
from densepred.tasks.base import Task
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation


@singledispatch
def pixel_errors(task: Task, prediction: Tensor, target: Tensor) -> Tensor:
    """The error at every pixel, NaN where the target is not known. A task of your own: `pixel_errors.register`.

    Labels: 1 where wrong (multilabel: the share of wrong answers); depth: |p - t| / t; normals: degrees; anything
    else: the mean absolute difference of its planes.

    Shape:
        prediction, target: (B, ..., H, W), as the sample says; returns (B, H, W).
    """
    known = task.known(target).expand_as(target)
    return torch.where(known, full_precision((prediction - target).abs()), torch.nan).nanmean(1)


@pixel_errors.register
def _(task: Segmentation, prediction: Tensor, target: Tensor) -> Tensor:
    errors = torch.where(task.known(target), (prediction.long() != target.long()).float(), torch.nan)
    return errors.nanmean(1) if task.mode == "multilabel" else errors


@pixel_errors.register
def _(task: Depth, prediction: Tensor, target: Tensor) -> Tensor:
    prediction, target = full_precision(prediction), full_precision(target)
    known = task.known(target)
    return torch.where(known, (prediction - target).abs() / torch.where(known, target, 1), torch.nan)[:, 0]


@pixel_errors.register
def _(task: Normals, prediction: Tensor, target: Tensor) -> Tensor:
    return torch.where(task.known(target)[:, 0], angle_degrees(prediction, target), torch.nan)


@singledispatch
def error_name(task: Task) -> str:
    """What the mean of `pixel_errors` over an image is called."""
    return "mean absolute error"


@error_name.register
def _(task: Segmentation) -> str:
    return "share of wrong pixels"


@error_name.register
def _(task: Depth) -> str:
    return "mean relative error"


@error_name.register
def _(task: Normals) -> str:
    return "mean angle in degrees"
