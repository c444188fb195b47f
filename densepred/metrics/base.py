"""What the metrics share: exact sums that stay on the device, and sizes that must agree."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from densepred.errors import ConfigurationError


class DenseMetric(Metric):
    """A metric of whole pictures that is updated with (prediction, target) and computes a dict of scalars.

    States are sums, so that batches and processes of any size merge exactly: int64 counts and float64 sums, whatever
    precision the network is cast to (float32 where the device knows no float64, as Apple's GPUs). `update` never waits
    for the device; `compute` may.

    Raises:
        ConfigurationError: In `update`, if prediction and target differ in size or are not of the metric's layout.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    sum_dtype = torch.float64

    def add_sum(self, name: str, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.int64) -> None:
        """Adds a state that starts at zero and is summed across batches and processes."""
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        def move(state: Tensor) -> Tensor:
            try:
                # module.to(bfloat16) casts its metrics too, and a bfloat16 sum stops growing at 256
                return fn(state).to(state.dtype)
            except TypeError:
                self.sum_dtype = torch.float32  # the device has no float64
                return fn(state.float())

        return super()._apply(move, exclude_state)

    def report(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The computed scalars as float32 on the metric's device, as loggers want them."""
        return {key: value.float().to(self.device) for key, value in values.items()}

    def add_up(self, values: Tensor, over: tuple[int, ...] | None = None) -> Tensor:
        """A sum in the precision of the states, without a copy of the values in it."""
        return values.sum(over, dtype=self.sum_dtype)

    def require_size(self, prediction: Tensor, target: Tensor, layout: str, *sizes: int | None) -> None:
        """Refuses a prediction that is not of the target's size, or a target that is not of the layout.

        Args:
            prediction: What the network says.
            target: What is true.
            layout: How to name the layout in an error, such as "(B, 1, H, W)".
            *sizes: The size of each dimension of the layout; None where it is free.
        """
        fits = target.ndim == len(sizes) and all(
            size is None or size == found for size, found in zip(sizes, target.shape, strict=True)
        )
        if not fits:
            raise ConfigurationError(
                f"{type(self).__name__}: the target has size {tuple(target.shape)}; expected {layout}."
            )
        if prediction.shape != target.shape:
            raise ConfigurationError(
                f"{type(self).__name__}: the prediction has size {tuple(prediction.shape)} and the target "
                f"{tuple(target.shape)}. Predictions are scored at the target's own size: upsample and crop them first."
            )


class WeightedMean(DenseMetric):
    """The mean of numbers, each with a weight: of the losses of batches, weighted by their samples.

    Both sums are kept exactly across batches and processes; without any weight the mean is NaN.

    Shape:
        value: scalar. weight: a number.

    Example:
        >>> mean = WeightedMean()
        >>> mean.update(torch.tensor(1.0), 3)
        >>> mean.update(torch.tensor(5.0), 1)
        >>> mean.compute()
        tensor(2.)
    """

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("total", dtype=self.sum_dtype)
        self.add_sum("weight")

    def update(self, value: Tensor, weight: int = 1) -> None:
        """Adds a number; one without weight does not count, whatever it is."""
        if weight:
            self.total += value.detach().to(self.total.dtype) * weight
            self.weight += weight

    def compute(self) -> Tensor:
        """The mean so far."""
        return (self.total / self.weight).float()


def count(numbers: Tensor, bins: int) -> Tensor:
    """How often each of 0 .. bins-1 occurs, as int64, without waiting for the device.

    Shape:
        numbers: any, integers, all of them in 0 .. bins-1; returns (bins,).

    Example:
        >>> count(torch.tensor([0, 2, 2]), bins=4)
        tensor([1, 0, 2, 0])
    """
    if numbers.device.type == "cpu":
        return torch.bincount(numbers.flatten(), minlength=bins)
    return scattered_count(numbers, bins)


def scattered_count(numbers: Tensor, bins: int) -> Tensor:
    """`count` for accelerators, where `bincount` would first fetch the largest number and make the host wait.

    Several copies of the bins keep the additions from queueing at the few addresses of frequent classes.
    """
    copies = max(1, min(1024, 2**20 // bins))
    place = torch.arange(numbers.numel(), device=numbers.device) % copies * bins + numbers.flatten()
    counts = torch.zeros(copies * bins, dtype=torch.int64, device=numbers.device)
    return counts.scatter_add_(0, place, torch.ones_like(place)).view(copies, bins).sum(0)
