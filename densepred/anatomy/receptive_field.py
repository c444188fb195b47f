"""How much of the image a cell of each map sees: what it can see, and what it looks at."""

import copy
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from densepred.anatomy.stages import trace
from densepred.network import DenseNetwork

_HEIGHTS = (512, 4096)
_WIDTH = 32


def theoretical_receptive_fields(network: DenseNetwork) -> list[int | None]:
    """Side of the square of pixels that a cell of each stage depends on; None where it is the whole image.

    Found on a copy of the network in which everything passes everything on: kernels of equal positive weights, pooling
    by the mean, and positive activations. There the gradient of a cell with respect to the image is positive exactly
    at the pixels that it depends on, whatever the connections. The image is a narrow, tall strip, and rows are counted;
    the same number is meant for columns. A stage that sees the edges of a strip of 4096 rows is taken to see all, as
    one with global pooling or attention does.

    Args:
        network: Any; it is left as it is. The stages are those of `densepred.anatomy.stages.trace` in evaluation mode.
    """
    passing = _passing(network)
    sides: list[int | None] = []
    for height in _HEIGHTS:
        # small, so that bounded activations stay on the slope at zero
        size = network.padded_size(height, _WIDTH)
        image = torch.full((1, network.encoder.in_channels, *size), 1e-9, dtype=torch.float64)
        image.requires_grad_()
        with _Passing():
            seen = [_rows(stage.tensor, image) for stage in trace(passing, image)]
        sides = [last - first + 1 if first > 0 and last < size[0] - 1 else None for first, last in seen]
        if None not in sides:
            break
    return sides


def _rows(tensor: Tensor, image: Tensor) -> tuple[int, int]:
    (gradient,) = torch.autograd.grad(_middle(tensor), image, retain_graph=True)
    rows = gradient.abs().amax((0, 1, 3)).nonzero()
    return int(rows.min()), int(rows.max())


def _middle(tensor: Tensor) -> Tensor:
    return tensor[:, :, tensor.shape[-2] // 2, tensor.shape[-1] // 2].sum()


def _passing(network: DenseNetwork) -> DenseNetwork:
    passing = copy.deepcopy(network).double().eval()
    for module in passing.modules():
        for name, parameter in module.named_parameters(recurse=False):
            with torch.no_grad():
                if name == "bias":
                    parameter.zero_()
                else:
                    parameter.fill_(1 / max(parameter[0].numel(), 1) if parameter.ndim > 1 else 1.0)
        for name, buffer in module.named_buffers(recurse=False):
            if name in ("running_mean", "mean"):
                buffer.zero_()
            elif name in ("running_var", "std"):
                buffer.fill_(1)
    return passing


class _Passing(TorchFunctionMode):
    """Pools by the mean where the network pools by the largest, and normalises without subtracting.

    The largest of equal values, and values less their own mean, have gradients that miss what they depend on.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        match getattr(func, "__name__", ""):
            case "max_pool2d":
                return _mean_pool(func, *args, **kwargs)
            case "layer_norm":
                dims = tuple(range(-len(args[1]), 0))
                return args[0] + args[0].mean(dims, keepdim=True)
            case "instance_norm":
                return args[0] + args[0].mean((2, 3), keepdim=True)
            case "group_norm":
                grouped = args[0].unflatten(1, (args[1], -1))
                return (grouped + grouped.mean((2, 3, 4), keepdim=True)).flatten(1, 2)
        return func(*args, **kwargs)


def _mean_pool(
    func: Any,
    values: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    options = (kernel_size, stride, padding, dilation, ceil_mode)
    height, width = func(values.detach(), *options).shape[-2:]
    channels = values.shape[1]
    ones = torch.ones(channels, 1, *_pair(kernel_size)).to(values)
    # beyond the right and the bottom for ceil_mode, whose last windows hang over the edge
    over = [size for side in reversed(_pair(padding)) for size in (side, side + (64 if ceil_mode else 0))]
    pooled = F.conv2d(
        F.pad(values, over), ones / ones[0].numel(), stride=stride or kernel_size, dilation=dilation, groups=channels
    )
    return pooled[..., :height, :width]


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


def effective_receptive_fields(network: DenseNetwork, image: Tensor) -> list[float]:
    """Side of the square that would hold the pixels that the middle cell of each stage looks at, with these weights.

    A pixel counts where its gradient, averaged over the images and summed over the cell's channels, is at least
    1 - 0.9545 of the largest: two standard deviations of a Gaussian. The side is the square root of their number.

    Args:
        network: With the weights that matter: a pretrained encoder looks at more than a random one.
        image: (B, C, H, W), floating point, sizes that are multiples of the encoder's `multiple`; noise by default in
            the paper.

    Reference:
        Luo, Li, Urtasun, Zemel. Understanding the Effective Receptive Field in Deep Convolutional Neural Networks.
        NIPS 2016. arXiv:1701.04128.
    """
    training = network.training
    image = image.detach().clone().requires_grad_()
    sides = []
    for stage in trace(network.eval(), image):
        (gradient,) = torch.autograd.grad(_middle(stage.tensor), image, retain_graph=True)
        strength = gradient.abs().mean((0, 1))
        counted = strength >= (1 - 0.9545) * strength.max()
        sides.append(math.sqrt(int(counted.sum())) if bool(strength.max() > 0) else 0.0)
    network.train(training)
    return sides
