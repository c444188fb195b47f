"""A budget for many images together: how sure each exit must be so that they cost so much on average."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from densepred.errors import ConfigurationError
from densepred.inference.anytime import anytime_in
from densepred.inference.evidence import Evidence


def exit_shares(exits: int, base: float) -> tuple[float, ...]:
    """Which share of the images is to leave at each exit: proportional to `base ** k`.

    A base below 1 favours early exits, 1 treats all alike, above 1 it favours late ones.

    Args:
        exits: How many there are.
        base: Above 0.

    Reference:
        Huang, Chen, Li, Wu, van der Maaten, Weinberger. Multi-Scale Dense Networks for Resource Efficient Image
        Classification. ICLR 2018. arXiv:1703.09844 (budgeted batch classification; the release sweeps 1/20 ... 39/20).

    Example:
        >>> exit_shares(3, 0.5)
        (0.5714285714285714, 0.2857142857142857, 0.14285714285714285)
    """
    # the largest is 1, so that none overflows
    powers = [base ** (k - (exits - 1 if base > 1 else 0)) for k in range(exits)]
    return tuple(power / sum(powers) for power in powers)


def shares_for(budget: float, costs: Sequence[float]) -> tuple[float, ...]:
    """Shares of `exit_shares` for which images cost the budget on average.

    Args:
        budget: In the unit of the costs.
        costs: Of an image that leaves at each exit, ascending.

    Raises:
        ConfigurationError: If the budget is not between the first and the last exit's cost.

    Example:
        >>> [round(share, 3) for share in shares_for(15.0, (10.0, 20.0))]
        [0.5, 0.5]
    """
    if not costs[0] <= budget <= costs[-1]:
        raise ConfigurationError(
            f"The budget is {budget / 1e6:.1f} MMAC an image on average; the network's exits cost "
            f"{costs[0] / 1e6:.1f} to {costs[-1] / 1e6:.1f}. Give a number between."
        )
    low, high = -50.0, 50.0  # logarithms of the base
    for _ in range(80):
        middle = (low + high) / 2
        shares = exit_shares(len(costs), math.exp(middle))
        mean = sum(share * cost for share, cost in zip(shares, costs, strict=True))
        low, high = (middle, high) if mean < budget else (low, middle)
    return exit_shares(len(costs), math.exp(high))


def thresholds_for(sure: Tensor, shares: Sequence[float]) -> tuple[float, ...]:
    """How sure each exit but the last must be so that the planned share of the images leaves there.

    At each exit, of the images that are left, the surest ones leave, as many as planned; the least sure of these is
    the threshold. Those as sure as that leave with them. An exit that no image is planned to leave at has infinity.

    Args:
        sure: How sure each exit but the last is of each image.
        shares: Of all images, for each exit.

    Shape:
        sure: (images, exits - 1).

    Example:
        >>> sure = torch.tensor([[0.9, 0.9], [0.5, 0.75], [0.25, 0.5], [0.3, 0.6]])
        >>> thresholds_for(sure, (0.25, 0.5, 0.25))
        (0.8999999761581421, 0.6000000238418579)
    """
    left = torch.ones(len(sure), dtype=torch.bool)
    found = []
    for column, share in zip(sure.unbind(1), shares[:-1], strict=True):
        # rounded, as the release does down: a share of 0.25 of four images may be 0.9999999 of one
        count = min(math.floor(len(sure) * share + 1e-6), int(left.sum()))
        threshold = float(column[left].sort(descending=True).values[count - 1]) if count else math.inf
        found.append(threshold)
        left &= column < threshold
    return tuple(found)


def calibrated(evidence: Evidence, images: Iterable[Tensor], macs: float) -> tuple[float, ...]:
    """Thresholds with which images like these cost so many operations on average; no labels are needed.

    Args:
        evidence: Around one network whose thresholds are infinite (`InferenceOptions(confidence=(math.inf,))`), so that
            every exit is asked.
        images: Batches (B, C, H, W), as they are when predicting.
        macs: Multiply-accumulate operations of an answer, on average.

    Raises:
        ConfigurationError: If there are several networks, or no image; if the budget is out of the exits' reach.
    """
    members = anytime_in(evidence)
    if len(members) != 1:
        raise ConfigurationError(f"Thresholds are calibrated for one network at a time; there are {len(members)}.")
    network = members[0]
    network.noted.clear()
    network.seen.clear()
    with torch.inference_mode():
        for image in images:
            evidence(image)
    if not network.noted:
        raise ConfigurationError("There is no image to calibrate thresholds on.")
    every = [network.costs(size).on_the_way for size in network.seen.elements()]
    costs = [sum(column) / len(every) for column in zip(*every, strict=True)]
    return thresholds_for(torch.tensor(network.noted), shares_for(macs, costs))
