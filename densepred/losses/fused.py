"""Upsampling and cross-entropy in one, without logits of full resolution."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from densepred.errors import ConfigurationError
from densepred.losses.bands import Bands
from densepred.losses.masked import full_precision
from densepred.losses.segmentation import known_labels


def upsampled_cross_entropy(planes: Tensor, target: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Cross-entropy of planes upsampled (bilinear) to the labels' size: the same number and gradient, much cheaper.

    Equal to `cross_entropy(F.interpolate(planes, target.shape[1:], mode="bilinear"), target, class_weights)`. That
    writes the logits of full resolution, their softmax and both gradients to memory. Here a band of rows at a time is
    upsampled; softmax minus one-hot, the gradient of the logits, is made in its place, and goes straight back through
    the transposed interpolation. The gradient is thus known at the end of the forward pass, at the size of `planes`.

    Missing labels give exactly zero gradient; without any valid pixel the loss is 0. Computed in float32 under
    autocast, without device synchronisation, and, unlike torch's backward of bilinear interpolation on CUDA,
    deterministically. It cannot be differentiated twice.

    Args:
        planes: Logits at any stride, which cover exactly what the labels cover.
        target: Labels, of any integer dtype.
        class_weights: One factor a class.

    Shape:
        planes: (B, C, h, w).
        target: (B, H, W).
        returns: a scalar.

    Raises:
        ConfigurationError: If the labels are not one map an image.
        DataError: If a label is neither a class nor missing (see `CrossEntropyLoss`).

    Example:
        >>> upsampled_cross_entropy(torch.zeros(1, 4, 1, 1), torch.tensor([[[3, 255], [0, 1]]])).exp()
        tensor(4.)
    """
    if target.ndim != 3 or target.shape[0] != planes.shape[0]:
        raise ConfigurationError(
            f"upsampled_cross_entropy: planes of size {tuple(planes.shape)} want labels of size "
            f"({planes.shape[0]}, H, W); got {tuple(target.shape)}."
        )
    known, alarm = known_labels(target, planes.shape[1])
    planes = full_precision(planes)
    weights = None if class_weights is None else class_weights.to(planes)
    with torch.autocast(planes.device.type, enabled=False):
        loss: Tensor = _UpsampledCrossEntropy.apply(planes, target, known, weights)
    return loss + alarm


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, planes: Tensor, target: Tensor, known: Tensor, class_weights: Tensor | None) -> Tensor:
        height, width = target.shape[1:]
        bands = Bands(planes.detach(), (height, width))
        gradient = torch.empty_like(planes) if ctx.needs_input_grad[0] else None
        losses, totals = [], []
        for images in bands.groups:
            wide = bands.widen(images)
            wide_gradient = torch.zeros_like(wide) if gradient is not None else None
            for block, band in bands.over(wide):
                index = target[images, block.pixels].transpose(0, 1).unsqueeze(2)
                weight = known[images, block.pixels].transpose(0, 1).unsqueeze(2)
                index = torch.where(weight, index, 0).long()
                factor = 1.0 if class_weights is None else class_weights[index]
                weight = weight.to(band.dtype) * factor
                losses.append(_softmax_minus_one_hot_(band, index, weight))
                totals.append(weight.sum())
                if wide_gradient is not None:
                    wide_gradient.flatten(1)[block.cells].addmm_(block.weights.T, band.flatten(1))
            if gradient is not None and wide_gradient is not None:
                gradient[images] = bands.narrow(wide_gradient)
        total = torch.stack(totals).sum()
        total = torch.where(total > 0, total, 1)
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(total))
        return torch.stack(losses).sum() / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None, None


def _softmax_minus_one_hot_(logits: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Turns logits (r, G, C, W) in place into the gradient of their weighted cross-entropy, which is returned.

    Shape:
        index: (r, G, 1, W), the true class.
        weight: (r, G, 1, W), 0 where it is missing.
    """
    logits.sub_(logits.amax(2, keepdim=True))
    true = logits.gather(2, index)
    total = logits.exp_().sum(2, keepdim=True)
    loss = (total.log() - true).mul_(weight).sum()
    logits.mul_(weight / total)
    # scatter_ of distinct places is deterministic, scatter_add_ is refused where determinism is asked for
    logits.scatter_(2, index, logits.gather(2, index) - weight)
    return loss
