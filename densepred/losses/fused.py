"""Upsampling and cross-entropy in one, without logits of full resolution."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from densepred.blocks import full_precision
from densepred.errors import ConfigurationError
from densepred.losses.bands import Bands
from densepred.losses.masked import without_autocast
from densepred.losses.segmentation import cross_entropy, known_labels, known_weights


def upsampled_cross_entropy(
    planes: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    pixel_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of planes upsampled (bilinear) to the labels' size: the same number and gradient, much cheaper.

    Equal to `cross_entropy(F.interpolate(planes, target.shape[1:], mode="bilinear"), target, ...)`. That writes the
    logits of full resolution, their softmax and both gradients to memory. Here a band of rows at a time is upsampled;
    softmax minus truth, the gradient of the logits, is made in its place, and goes straight back through the transposed
    interpolation. The gradient is thus known at the end of the forward pass, at the size of `planes`. Planes that have
    the labels' size already take torch's way, but for those on the CPU that lie by pixels (channels last), which torch
    would rearrange.

    Missing labels give exactly zero gradient; without any valid pixel the loss is 0. Computed in float32 under
    autocast, without device synchronisation, and, unlike torch's backward of bilinear interpolation on CUDA,
    deterministically. It cannot be differentiated twice.

    Args:
        planes: Logits at any stride, which cover exactly what the labels cover.
        target: Labels, of any integer dtype.
        class_weights: One factor a class.
        label_smoothing: Share of the truth that is spread over all classes.
        pixel_weights: One factor a pixel; none means equal weights.

    Shape:
        planes: (B, C, h, w).
        target, pixel_weights: (B, H, W).
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
    if planes.shape[2:] == target.shape[1:] and (planes.device.type != "cpu" or planes.is_contiguous()):
        # there is nothing to save
        return cross_entropy(planes, target, class_weights, label_smoothing, pixel_weights)
    known, alarm = known_labels(target, planes.shape[1])
    planes = full_precision(planes)
    weights = None if class_weights is None else class_weights.to(planes)
    # 1 where a label is known, or its pixel's weight
    share = known if pixel_weights is None else known_weights("upsampled_cross_entropy", pixel_weights, known, planes)
    with without_autocast(planes):
        loss: Tensor = _UpsampledCrossEntropy.apply(planes, target, known, share, weights, label_smoothing)
    return loss + alarm


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        planes: Tensor,
        target: Tensor,
        known: Tensor,
        share: Tensor,
        class_weights: Tensor | None,
        smoothing: float,
    ) -> Tensor:
        bands = Bands(planes.detach(), (target.shape[1], target.shape[2]))
        gradient = torch.empty_like(planes) if ctx.needs_input_grad[0] else None
        sums = [
            _group(bands, images, target, known, share, class_weights, smoothing, gradient) for images in bands.groups
        ]
        loss, total = torch.stack(sums).sum(0).unbind()
        # not clamp: class weights may be small
        total = torch.where(total > 0, total, 1)
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(total))
        return loss / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None, None, None, None


def _group(
    bands: Bands,
    images: slice,
    target: Tensor,
    known: Tensor,
    share: Tensor,
    class_weights: Tensor | None,
    smoothing: float,
    gradient: Tensor | None,
) -> Tensor:
    """Summed loss and summed weight (2,) of some images, whose gradient is written into `gradient`."""
    wide = bands.widen(images)
    wide_gradient = None if gradient is None else torch.zeros_like(wide)
    sums = []
    for block, band in bands.over(wide):
        index, valid, weight = (
            labels[images, block.pixels].transpose(0, 1).unsqueeze(2) for labels in (target, known, share)
        )
        index = torch.where(valid, index, 0).long()
        weight = weight.to(band.dtype)
        spread = _spread(weight, class_weights, smoothing, band) if smoothing else None
        weight = weight * (1.0 if class_weights is None else class_weights[index])
        loss = _softmax_minus_truth_(band, index, weight * (1 - smoothing), spread)
        sums.append(torch.stack([loss, weight.sum()]))
        if wide_gradient is not None:
            bands.collect(block, band, wide_gradient)
    if gradient is not None and wide_gradient is not None:
        gradient[images] = bands.narrow(wide_gradient)
    return torch.stack(sums).sum(0)


def _spread(weight: Tensor, class_weights: Tensor | None, smoothing: float, band: Tensor) -> Tensor:
    """The smoothed part of the truth: how much of every class a pixel of this weight is (r, G, C, W)."""
    share = smoothing / band.shape[2]
    if class_weights is None:
        return (weight * share).expand_as(band)
    return weight * share * class_weights.view(-1, 1)


def _softmax_minus_truth_(logits: Tensor, index: Tensor, weight: Tensor, spread: Tensor | None) -> Tensor:
    """Turns logits (r, G, C, W) in place into the gradient of their weighted cross-entropy, which is returned.

    Shape:
        index: (r, G, 1, W), the true class.
        weight: (r, G, 1, W), how much of it there is, 0 where it is missing.
        spread: (r, G, C, W), how much of every class there is besides.
    """
    logits.sub_(logits.amax(2, keepdim=True))
    true = logits.gather(2, index)
    smoothed: Tensor | float = 0.0 if spread is None else (logits * spread).sum()
    total = logits.exp_().sum(2, keepdim=True)
    loss = (total.log() - true).mul_(weight).sum()
    mass = weight
    if spread is not None:
        spread_mass = spread.sum(2, keepdim=True)
        loss += (total.log() * spread_mass).sum() - smoothed
        mass = weight + spread_mass
    logits.mul_(mass / total)
    # scatter_ of distinct places is deterministic, scatter_add_ is refused where determinism is asked for
    logits.scatter_(2, index, logits.gather(2, index) - weight)
    if spread is not None:
        logits.sub_(spread)
    return loss
