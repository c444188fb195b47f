"""A sampled ray distance to the surfaces that it crosses."""

import torch
from torch import Tensor
from torch.nn import functional as F

from densepred.errors import ConfigurationError

WINDOW = 5


def smoothed(values: Tensor, window: int = WINDOW) -> Tensor:
    """The last axis convolved with a Hann window of unit sum; the ends are repeated beyond themselves.

    The window's own ends are 0, so that one of 5 is (0, 1, 2, 1, 0) / 4.

    Shape:
        values: (..., P). returns: the same.

    Raises:
        ConfigurationError: If the window is even, or below 3.

    Example:
        >>> smoothed(torch.tensor([0.0, 0, 4, 0, 0, 0]))
        tensor([0., 1., 2., 1., 0., 0.])
    """
    if window < 3 or window % 2 == 0:
        raise ConfigurationError(f"smoothed: the window is {window}; expected an odd number of samples, 3 or more.")
    weights = torch.hann_window(window, periodic=False, dtype=values.dtype, device=values.device)
    flat = F.pad(values.reshape(-1, 1, values.shape[-1]), (window // 2, window // 2), mode="replicate")
    return F.conv1d(flat, (weights / weights.sum()).view(1, 1, -1)).reshape(values.shape)


def surfaces_along(distances: Tensor, values: Tensor, most: int = 5, window: int | None = WINDOW) -> Tensor:
    """The surfaces of rays: where the sampled ray distance falls from + to -, nearest first.

    Between two samples it is taken as linear. Its jumps from - to +, half way between surfaces, are none. A sample of
    exactly 0 after a positive one is a surface.

    Args:
        distances: Of the samples, growing along each ray.
        values: The ray distance there.
        most: How many surfaces of a ray at most; those behind are left out.
        window: Of the Hann window that smooths along the ray first; None for none.

    Shape:
        distances, values: (..., P). returns: (..., most), infinite where there are no more.

    Raises:
        ConfigurationError: As `smoothed`.

    Reference:
        Kulkarni, Johnson, Fouhey. ECCV 2022. arXiv:2112.04481: window 5, up to 5 surfaces.

    Example:
        >>> z = torch.linspace(0, 7, 8)
        >>> surfaces_along(z, torch.tensor([1.0, 0.5, -0.5, -1, 1, 0.25, -0.75, -1]), most=3, window=None)
        tensor([1.5000, 5.2500,    inf])
    """
    values = values if window is None else smoothed(values, window)
    before, after = values[..., :-1], values[..., 1:]
    start, step = distances[..., :-1], distances[..., 1:] - distances[..., :-1]
    falls = (before > 0) & (after <= 0)
    share = before / torch.where(falls, before - after, 1)
    crossings = torch.where(falls, start + share * step, float("inf"))
    found = crossings.sort(-1).values[..., :most]
    return F.pad(found, (0, most - found.shape[-1]), value=float("inf"))
