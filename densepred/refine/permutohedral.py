"""Gaussian filters of many dimensions on the permutohedral lattice, as one linear map and its transpose."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from densepred.refine.lattice import Lattice, build_lattice


class PermutohedralFilter:
    """A Gaussian of the distance between points' features, as a linear map of values at the points, in linear time.

    Values are spread over the lattice points around each point (*splat*), blurred along each axis of the lattice by
    (1/2, 1, 1/2), and read where they came from (*slice*). The map is K, about exp(-|f_i - f_j|^2 / 2) between points
    i and j; each point belongs to its own neighbourhood. The lattice makes it approximate and slightly asymmetric.

    The gradient with respect to values is the transposed map: the same with the axes in reverse. There is none with
    respect to features.

    Args:
        features: (B, d, N), divided by the kernel's width in each dimension. Images share nothing.

    Shape:
        values: (B * N, C); returns the same.

    Raises:
        ConfigurationError: If features are so far apart that lattice points cannot be numbered.

    Reference:
        Adams, Baek, Davis. Fast High-Dimensional Filtering Using the Permutohedral Lattice. Eurographics 2010.

    Example:
        >>> blur = PermutohedralFilter(torch.zeros(1, 2, 4))  # four points in one place
        >>> (blur(torch.eye(4)).std() < 1e-6).item()
        True
    """

    def __init__(self, features: Tensor) -> None:
        self._set(build_lattice(features))
        ones = features.new_ones(features.shape[0] * features.shape[2])
        self.scale(ones, ones)

    def _set(self, lattice: Lattice) -> None:
        sides, points = lattice.corners.shape
        self.lattice = lattice
        self._corners = lattice.corners.t().contiguous()
        numbers, self._order = lattice.corners.flatten().sort(stable=True)
        bounds = torch.arange(lattice.points + 1, dtype=numbers.dtype, device=numbers.device)
        self._starts = torch.searchsorted(numbers, bounds, out_int32=True)
        self._sources = self._order.int() % points
        kernel = torch.tensor([1, 0.5, 0.5], device=numbers.device, dtype=lattice.weights.dtype)
        self._blur = kernel.repeat(lattice.points + 1, 1)
        # as a filter of impulses the lattice is too strong by this
        self._strength = 1 / (1 + 2.0 ** (1 - sides))

    def scale(self, before: Tensor, after: Tensor) -> None:
        """Makes the map diag(after) K diag(before).

        Shape:
            before, after: (B * N,).
        """
        self._before, self._after = before, after
        self._weights = {False: self._weighted(before, after)}

    def _weighted(self, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.lattice.weights
        return (weights * before).flatten()[self._order], (weights * (self._strength * after)).t().contiguous()

    def __call__(self, values: Tensor, transposed: bool = False) -> Tensor:
        """The map, or its transpose, of values."""
        filtered: Tensor = _Linear.apply(values, self, transposed)
        return filtered

    def gathered(self, values: Tensor, transposed: bool = False) -> Tensor:
        """Values spread over the lattice and blurred (M + 1, C): all that `read` needs."""
        lattice = _sums(self._sources, values, self._maps(transposed)[0], self._starts)
        axes = self.lattice.neighbours
        for near in axes.flip(0) if transposed else axes:
            lattice = _sums(near, lattice, self._blur)
        return lattice

    def read(self, lattice: Tensor, transposed: bool = False, rows: slice = slice(None)) -> Tensor:
        """What the map makes of the values that were gathered, at all points or some of them."""
        return _sums(self._corners[rows], lattice, self._maps(transposed)[1][rows])

    def _maps(self, transposed: bool) -> tuple[Tensor, Tensor]:
        if transposed not in self._weights:
            self._weights[True] = self._weighted(self._after, self._before)
        return self._weights[transposed]


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, linear: PermutohedralFilter, transposed: bool) -> Tensor:
        ctx.linear, ctx.transposed = linear, transposed
        return linear.read(linear.gathered(values, transposed), transposed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.linear(gradient.contiguous(), not ctx.transposed), None, None


def _sums(rows: Tensor, values: Tensor, weights: Tensor, starts: Tensor | None = None) -> Tensor:
    """Weighted sums of rows: those of each line of `rows`, or of each stretch of them."""
    return F.embedding_bag(rows, values, starts, mode="sum", per_sample_weights=weights)
