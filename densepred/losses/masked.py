"""What losses with missing pixels share: no autocast, sizes that must agree, and the mean over what is valid.

The rule that makes a missing pixel's gradient exactly zero, whatever stands there (0, NaN, infinity): select with
`torch.where` *before* the first operation that output or target enter. A factor of zero afterwards is not enough, since
0 * NaN and 0 * inf are NaN, forward and backward.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from densepred.errors import ConfigurationError


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Matrix products in the precision of their factors, on the device of `like`."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def require_same_size(loss: str, output: Tensor, target: Tensor) -> None:
    """Refuses two tensors that would silently be broadcast against each other.

    Args:
        loss: Who asks, for the error.
        output: What the network says.
        target: What is true.

    Raises:
        ConfigurationError: If the sizes differ.
    """
    if output.shape != target.shape:
        raise ConfigurationError(
            f"{loss}: expected output and target of one size; the output has {tuple(output.shape)}, the target "
            f"{tuple(target.shape)}. Upsample the output to the target, and check the task's number of planes."
        )


def mean_over_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` where `valid`; 0 where nothing is. `values` must be 0 elsewhere. Never waits for the device.

    Example:
        >>> mean_over_valid(torch.tensor([3.0, 0.0, 5.0]), torch.tensor([True, False, True]))
        tensor(4.)
    """
    return values.sum() / valid.sum().clamp(min=1)
