"""Takes strides away from convolutions and dilates what follows, so that maps keep their size."""

from collections.abc import Iterable

from torch import nn

from densepred.errors import ConfigurationError


def dilate(modules: Iterable[nn.Module], owner: str) -> None:
    """Takes the strides out of blocks that follow each other; at the cells the strides kept, responses stay the same.

    A convolution that had the stride is dilated as the maps before it are, those that follow in its block and in the
    blocks after it twice as much. Parallel branches of a block may each have the stride.

    Args:
        modules: The blocks, in order; the first is the first to lose its stride.
        owner: How to name the network in an error.

    Raises:
        ConfigurationError: If a block pools, cuts or is otherwise not made of centred convolutions of odd size.

    Example:
        >>> block = nn.Sequential(nn.Conv2d(1, 1, 3, stride=2, padding=1), nn.Conv2d(1, 1, 3, padding=1))
        >>> dilate([block], "net")
        >>> [(layer.stride, layer.dilation) for layer in block]
        [((1, 1), (1, 1)), ((1, 1), (2, 2))]
    """
    dilation = 1
    for module in modules:
        dilation = _dilate(module, dilation, owner)


def _dilate(module: nn.Module, before: int, owner: str) -> int:
    after = before
    for layer in module.modules():
        if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
            raise _refusal(owner, "pooling")
        if not isinstance(layer, nn.Conv2d):
            continue
        sides = list(zip(layer.kernel_size, layer.padding, strict=True))
        if any(side % 2 == 0 or padding != side // 2 for side, padding in sides):
            raise _refusal(owner, "convolutions that are not centred on a cell")
        rate = after
        if layer.stride != (1, 1):
            rate, after = before, 2 * before
        layer.stride = (1, 1)
        layer.dilation = tuple(rate if side > 1 else 1 for side in layer.kernel_size)
        layer.padding = tuple(rate * (side // 2) for side in layer.kernel_size)
    return after


def _refusal(owner: str, means: str) -> ConfigurationError:
    return ConfigurationError(
        f"output_stride: {owner} makes its coarse maps by {means}, which cannot be dilated. Set output_stride to 32, "
        "or take ResNetEncoder, VGGEncoder, or a MobileNet, EfficientNet, MNASNet, RegNet or ShuffleNet."
    )
