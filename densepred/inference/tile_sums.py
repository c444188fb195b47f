"""What tiles say, added up row of tiles by row of tiles."""

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from densepred.inference.tile_axis import Tile


class Region(NamedTuple):
    """What is said of a part of an image.

    Args:
        rows: First row, and the one behind the last.
        columns: As `rows`.
        evidence: By name (B, planes, rows, columns); to be used up before the next region is asked for.
    """

    rows: slice
    columns: slice
    evidence: dict[Hashable, Tensor]


class TileSums:
    """Weighted sums over the tiles of a stripe, for the rows that tiles still to come may add to.

    Args:
        stripe: Its columns.
        cell: Regions begin at rows that are multiples of it, and end there or with the image.
    """

    def __init__(self, stripe: slice, cell: int) -> None:
        self.stripe = stripe
        self.cell = cell
        self.top = 0
        self.sums: dict[Hashable, Tensor] = {}

    def add(self, row: Tile, columns: Sequence[Tile], evidence: dict[Hashable, Tensor]) -> None:
        """Adds what is said of neighbouring tiles of one row.

        Args:
            row: Of the tiles.
            columns: Theirs.
            evidence: By name (tiles * B, planes, rows, columns).
        """
        for key, planes in evidence.items():
            weights = row.weights.to(planes)[:, None]
            for column, part in zip(columns, planes.chunk(len(columns)), strict=True):
                first, last = max(column.first, self.stripe.start), min(column.last, self.stripe.stop)
                part = part[
                    ..., row.first - row.start : row.last - row.start, first - column.start : last - column.start
                ]
                share = weights * column.weights[first - column.first : last - column.first].to(planes)
                place = slice(first - self.stripe.start, last - self.stripe.start)
                self._room(key, row, part)[..., place].addcmul_(part, share)

    def finished(self, bottom: int, is_last: bool) -> Iterator[Region]:
        """The rows above `bottom`, down to a multiple of the cell unless they are the last."""
        bottom = bottom if is_last else bottom // self.cell * self.cell
        done = bottom - self.top
        if done <= 0:
            return
        yield Region(
            slice(self.top, bottom), self.stripe, {key: planes[..., :done, :] for key, planes in self.sums.items()}
        )
        self.top = bottom
        for planes in self.sums.values():
            left = planes.shape[-2] - done
            for plane in planes.flatten(0, 1):  # one by one: the copy that an overlapping move needs stays small
                plane[:left] = plane[done:].clone()
                plane[left:] = 0

    def _room(self, key: Hashable, row: Tile, part: Tensor) -> Tensor:
        """The sums at the rows of a tile."""
        need = row.last - self.top
        old = self.sums.get(key)
        if old is None or old.shape[-2] < need:
            new = part.new_zeros((*part.shape[:-2], need, self.stripe.stop - self.stripe.start))
            if old is not None:
                new[..., : old.shape[-2], :] = old
            self.sums[key] = new
        return self.sums[key][..., row.first - self.top : need, :]
