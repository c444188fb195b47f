"""The permutohedral lattice: which of its points surround each point of the data, and which are neighbours."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from densepred.errors import ConfigurationError

_DENSE = 32
"""Up to so many cells for each corner of a point, lattice points are numbered in a table; else by sorting."""


@dataclass(frozen=True)
class Lattice:
    """Points of the lattice around the points of the data. The last point, M, stands for all that are not there.

    Args:
        corners: Numbers of the d + 1 lattice points around each data point (d + 1, P).
        weights: Barycentric coordinates in them (d + 1, P); they sum to 1.
        neighbours: Each point itself and the two next to it along each axis (d + 1, M + 1, 3); M where there is none.
    """

    corners: Tensor
    weights: Tensor
    neighbours: Tensor

    @property
    def points(self) -> int:
        """How many lattice points there are, M."""
        return self.neighbours.shape[1] - 1


def build_lattice(features: Tensor) -> Lattice:
    """The lattice around points of d dimensions.

    Args:
        features: (B, d, N), each dimension already divided by the width of the kernel in it. The data of the B images
            share no lattice points; P is B * N.

    On the meta device, where features have no values, it is the largest that there can be: a point for each corner.

    Raises:
        ConfigurationError: If features are so far apart that lattice points cannot be numbered.

    Reference:
        Adams, Baek, Davis. Fast High-Dimensional Filtering Using the Permutohedral Lattice. Eurographics 2010.
    """
    if features.is_meta:
        return _largest(features)
    cells, rank, offset = _nearest(_elevated(features))
    weights = _barycentric(rank, offset)
    keys, radices, count = _keys(cells, rank, features.shape[0])
    numbers = _numbering(keys, count)
    neighbours = _neighbours(numbers.used, radices, numbers)
    return Lattice(numbers.of(keys), weights, neighbours)


def _largest(features: Tensor) -> Lattice:
    side, points = features.shape[1] + 1, features.shape[0] * features.shape[2]
    weights = features.new_empty(side, points)
    neighbours = weights.new_empty(side, side * points + 1, 3, dtype=torch.int32)
    return Lattice(weights.int(), weights, neighbours)


def _elevated(features: Tensor) -> Tensor:
    """Features in the hyperplane of d + 1 dimensions whose coordinates sum to 0, as (d + 1, B * N)."""
    d = features.shape[1]
    axes = torch.arange(d, device=features.device, dtype=features.dtype)[:, None]
    # not a product of matrices: those may run at reduced precision
    scaled = features.transpose(0, 1).flatten(1) * (math.sqrt(2 / 3) * (d + 1) / ((axes + 1) * (axes + 2)).sqrt())
    sums = _running_sums(scaled.flip(0)).flip(0)
    return torch.cat([sums[:1], sums[1:] - axes[1:] * scaled[:-1], -d * scaled[-1:]])


def _running_sums(rows: Tensor) -> Tensor:
    """Sums of the first row, the first two, ...; torch's own cumsum is slow across long rows."""
    sums = rows.clone()
    for row in range(1, len(rows)):
        sums[row] += sums[row - 1]
    return sums


def _nearest(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest lattice point of remainder 0, divided by d + 1; the order of the differences; and these, likewise."""
    side = elevated.shape[0]
    down, up = (elevated / side).floor(), (elevated / side).ceil()
    cells = torch.where(up * side - elevated < elevated - down * side, up, down)
    offset = elevated - cells * side
    rank = torch.zeros_like(cells, dtype=torch.int8)
    for i in range(side):
        for j in range(i + 1, side):
            less = offset[i] < offset[j]
            rank[i] += less
            rank[j] += ~less
    rank += cells.sum(0).round().to(torch.int8)
    wrap = (rank < 0).to(torch.int8) - (rank >= side).to(torch.int8)
    rank += wrap * side
    cells += wrap
    return cells, rank.long(), elevated / side - cells


def _barycentric(rank: Tensor, offset: Tensor) -> Tensor:
    by_rank = torch.empty_like(offset).scatter_(0, rank, offset)
    falling = by_rank.flip(0)
    first = 1 + by_rank[-1:] - by_rank[:1]
    return torch.cat([first, falling[1:] - falling[:-1]])


def _keys(cells: Tensor, rank: Tensor, images: int) -> tuple[Tensor, Tensor, int]:
    """A number for each corner (d + 1, P), what a step along each axis adds to it, and the end of the numbers.

    Corner k of a simplex has coordinates of remainder k modulo d + 1, so that a point is told by k and by its first d
    coordinates divided by d + 1: the digits of its number.
    """
    d = cells.shape[0] - 1
    cells = cells[:d].long()
    low, high = cells.amin(1), cells.amax(1)
    # corners are up to one below, their neighbours one further, and one above
    spans = (high - low + 4).tolist()
    count = (d + 1) * images * math.prod(spans)
    if count >= 2**62:
        raise ConfigurationError(
            f"The features span {' x '.join(map(str, spans))} cells of the permutohedral lattice, more than can be "
            "numbered. Widen the kernel (larger standard deviations of positions and colours)."
        )
    radices = torch.tensor([(d + 1) * math.prod(spans[i + 1 :]) for i in range(d)], device=cells.device)
    image = torch.arange(images, device=cells.device).repeat_interleave(cells.shape[1] // images)
    base = image * ((d + 1) * math.prod(spans)) + ((cells - low[:, None] + 2) * radices[:, None]).sum(0)
    by_rank = torch.zeros_like(rank).scatter_(0, rank[:d], radices[:, None].expand(-1, rank.shape[1]))
    below = _running_sums(by_rank.flip(0)[:-1])
    corner = torch.arange(1, d + 1, device=cells.device)[:, None]
    return torch.cat([base[None], base + corner - below]), radices, count


class _Sorted:
    """Numbers 0 .. M - 1 of the lattice points, by their keys; found by halving."""

    def __init__(self, keys: Tensor) -> None:
        self.used = torch.unique(keys)

    def of(self, keys: Tensor) -> Tensor:
        """The number of each key, M where there is no such point."""
        at = torch.searchsorted(self.used, keys).clamp_(max=len(self.used) - 1)
        return torch.where(self.used[at] == keys, at, len(self.used)).int()


class _Table:
    """The same, looked up."""

    def __init__(self, keys: Tensor, count: int) -> None:
        self.present = torch.zeros(count, dtype=torch.bool, device=keys.device).index_fill_(0, keys.flatten(), True)
        self.used = self.present.nonzero()[:, 0]
        # not filled: memory that is never touched costs nothing
        self.table = torch.empty(count, dtype=torch.int32, device=keys.device)
        self.table[self.used] = torch.arange(len(self.used), dtype=torch.int32, device=keys.device)

    def of(self, keys: Tensor) -> Tensor:
        """The number of each key, M where there is no such point."""
        return torch.where(self.present[keys], self.table[keys], len(self.used))


def _numbering(keys: Tensor, count: int) -> _Sorted | _Table:
    return _Sorted(keys) if count > _DENSE * keys.numel() else _Table(keys, count)


def _neighbours(used: Tensor, radices: Tensor, numbers: _Sorted | _Table) -> Tensor:
    side, points = len(radices) + 1, len(used)
    # one less in all coordinates; from remainder 0 that is d, one cell lower
    step = torch.where(used % side == 0, side - 1 - radices.sum(), -1)
    own = torch.arange(points, dtype=torch.int32, device=used.device)
    found = torch.full((side, points + 1, 3), points, dtype=torch.int32, device=used.device)
    for axis in range(side):
        there = numbers.of(used + step + (radices[axis] if axis < side - 1 else 0))
        found[axis, :points, 0] = own
        found[axis, :points, 1] = there
        found[axis, there.long(), 2] = own
        found[axis, points] = points
    return found
