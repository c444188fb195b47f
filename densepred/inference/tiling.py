"""Tiled: large images tile by tile, so that memory follows the tile and not the image."""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from densepred.encoders.mirror import source_pixels
from densepred.errors import ConfigurationError
from densepred.inference.dropout import networks_of
from densepred.inference.evidence import Evidence
from densepred.inference.tile_axis import Tile, blended_tiles, cropped_tiles
from densepred.inference.tile_margin import coarsest_cell, exact_margin
from densepred.inference.tile_sums import Region, TileSums
from densepred.network import DenseNetwork

Read = Callable[[slice, slice], Tensor]
"""Rows and columns of an image to that window of it (B, C, rows, columns)."""
Ask = Callable[[Tensor], dict[Hashable, Tensor]]

_TOO_SMALL = 32
"""Networks refuse images of so few pixels a side."""
_SUMS = 512 * 2**20


class Tiled(Evidence):
    """Asks about an image tile by tile, and joins the answers.

    Tiles overlap. Each says most about its middle, where it has seen what is around: its answers are weighted by a
    Gaussian whose standard deviation is an eighth of the tile, and the weights at every pixel add up to 1. So
    probabilities stay probabilities; of depth logarithms are averaged, of normals vectors. Tiles start at multiples of
    the network's coarsest stride, where its cells lie as in the whole image, and end with the image, so that its border
    is treated as in the whole image too.

    With a `margin` nothing is blended: of each tile so many pixels are cut away where it has neighbours. If the margin
    is as wide as the network sees, the answer is the whole image's, up to the rounding of sums in another order;
    `Tiled.exact` finds that margin. It cannot be had of a network that looks at the whole image at once (pooling over
    all of it, attention, normalisation by an image's own statistics).

    Sides of at most 32 pixels, which networks refuse, are mirrored until they fill a tile, again and again where the
    image is smaller than that. Images that fit into one tile are asked about as they are.

    Args:
        evidence: Is asked about the tiles.
        tile: Height and width of the tiles in pixels; one number for squares.
        overlap: How far neighbours overlap: a share of the tile below 1 (0.25), or pixels (64).
        margin: Pixels cut away instead of blending.
        mirror: Pixels of mirror image put around the image, which tiles at its border see instead of the zeros of
            the network's padding. The answers near the border then differ from the whole image's.
        batch_size: Tiles asked about at once.

    Shape:
        image: (B, C, H, W); returns by task name (B, planes, H, W).

    Raises:
        ConfigurationError: If tiles are too small for the network, the overlap or the margin.

    Reference:
        Isensee, Jaeger, Kohl, Petersen, Maier-Hein. nnU-Net. Nature Methods 2021. arXiv:1904.08128 (the weights);
        Ronneberger, Fischer, Brox. U-Net. MICCAI 2015. arXiv:1505.04597 (the overlap-tile strategy: the margin).
    """

    def __init__(
        self,
        evidence: Evidence,
        tile: int | tuple[int, int],
        overlap: int | float = 0.25,
        margin: int | None = None,
        mirror: int = 0,
        batch_size: int = 1,
    ) -> None:
        super().__init__(evidence.tasks)
        self.evidence = evidence
        self.tile = (tile, tile) if isinstance(tile, int) else (tile[0], tile[1])
        self.overlap = overlap
        share = isinstance(overlap, float)
        self._overlaps = [math.ceil(overlap * side) if share else int(overlap) for side in self.tile]
        self.margin = margin
        self.mirror = mirror
        self.batch_size = batch_size
        networks = _networks(evidence)
        self.align = math.lcm(*(coarsest_cell(network) for network in networks))
        self._smallest = 1 + _TOO_SMALL * any(network.encoder.multiple > 1 for network in networks)
        self._check()

    @classmethod
    def exact(cls, evidence: Evidence, tile: int | tuple[int, int], batch_size: int = 1) -> Self:
        """Tiles whose joint answer is the whole image's.

        Args:
            evidence: Of one network, or the mean of several.
            tile: Its sides must be longer than twice the margin, about the network's receptive field.
            batch_size: Tiles asked about at once.

        Raises:
            ConfigurationError: If there is no such margin, or the tile has no room for it.
        """
        return cls(evidence, tile, 0, margin=exact_margin(evidence), batch_size=batch_size)

    def __call__(self, image: Tensor) -> dict[str, Tensor]:
        """Evidence by task name."""
        whole = self._whole(image, self._ask)
        return {task.name: whole[task.name] for task in self.tasks}

    def answers(self, image: Tensor) -> Iterator[dict[str, Tensor]]:
        """Each answer about the whole image, joined from those about the tiles; all are held at once."""

        def ask(tile: Tensor) -> dict[Hashable, Tensor]:
            answers = enumerate(self.evidence.answers(tile))
            return {(number, name): planes for number, answer in answers for name, planes in answer.items()}

        joined: dict[int, dict[str, Tensor]] = {}
        for key, planes in self._whole(image, ask).items():
            if isinstance(key, tuple):
                joined.setdefault(key[0], {})[key[1]] = planes
        yield from joined.values()

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Predictions by task name; evidence of the whole image is never there at once."""
        size = (image.shape[-2], image.shape[-1])
        predictions: dict[str, Tensor] = {}
        for region in self.regions(lambda rows, columns: image[..., rows, columns], size):
            for task in self.tasks:
                part = task.decide(region.evidence[task.name])
                if task.name not in predictions:
                    predictions[task.name] = part.new_empty((*part.shape[:-2], *size))
                predictions[task.name][..., region.rows, region.columns] = part
        return predictions

    def rows_and_columns(self, size: tuple[int, int]) -> tuple[list[Tile], list[Tile]]:
        """The tiles of an image of that size: each of the rows with each of the columns."""
        return self._tiles(size[0], self.tile[0], self._overlaps[0]), self._tiles(
            size[1], self.tile[1], self._overlaps[1]
        )

    @torch.no_grad()
    def regions(
        self,
        read: Read,
        size: tuple[int, int],
        ask: Ask | None = None,
        sums: int = _SUMS,
        cell: int = 1,
        on_tiles: Callable[[int], None] = lambda count: None,
    ) -> Iterator[Region]:
        """What is said of an image that is never there at once: region by region, each pixel in one of them.

        The image is gone through in stripes from top to bottom, which are so narrow that the sums over a stripe's row
        of tiles fit into `sums`; tiles across the border of two stripes are asked about twice.

        Args:
            read: Yields windows of the image.
            size: The image's.
            ask: A batch of tiles to what is said of them; the evidence by default.
            sums: Bytes of the sums; more where a tile alone takes more.
            cell: Regions begin at multiples of it, and end there or with the image.
            on_tiles: Is told how many tiles were asked about.
        """
        rows, columns = self.rows_and_columns(size)
        ask = ask or self._ask
        for stripe in self._stripes(size[1], sums, cell):
            touching = _touching(columns, stripe)
            joint = TileSums(stripe, cell)
            for number, row in enumerate(rows):
                for batch in self._batches(touching):
                    tiles = torch.cat([self._window(read, row, column, size) for column in batch])
                    joint.add(row, batch, ask(tiles))
                    on_tiles(len(batch))
                is_last = number + 1 == len(rows)
                yield from joint.finished(size[0] if is_last else rows[number + 1].first, is_last)

    def count(self, size: tuple[int, int], sums: int = _SUMS, cell: int = 1) -> int:
        """How many tiles `regions` asks about."""
        rows, columns = self.rows_and_columns(size)
        return len(rows) * sum(len(_touching(columns, stripe)) for stripe in self._stripes(size[1], sums, cell))

    def _check(self) -> None:
        least = self._smallest + self.align - 1
        if min(self.tile) < least:
            raise ConfigurationError(
                f"Tiles of {self.tile[0]} x {self.tile[1]} pixels are too small for this network, whose coarsest cells "
                f"are {self.align} pixels: give at least {least}; 512 and more see more of what is around."
            )
        if self.batch_size < 1 or self.mirror < 0:
            raise ConfigurationError(
                f"Tiled: batch_size is {self.batch_size} and mirror {self.mirror}; expected at least 1, and 0."
            )
        if self.margin is None and not all(
            0 <= overlap < side for overlap, side in zip(self._overlaps, self.tile, strict=True)
        ):
            raise ConfigurationError(
                f"Tiled: overlap is {self.overlap}; expected a share of the tile from 0 to below 1, or pixels fewer "
                f"than its sides ({self.tile[0]} x {self.tile[1]})."
            )
        if self.margin is not None and not 0 <= 2 * self.margin <= min(self.tile) - self.align:
            raise ConfigurationError(
                f"Tiled: a margin of {self.margin} pixels at both ends leaves nothing of tiles of {self.tile[0]} x "
                f"{self.tile[1]} that begin at multiples of {self.align}: give tiles of at least "
                f"{2 * self.margin + self.align}, better twice that, or blend instead (no margin)."
            )

    def _tiles(self, size: int, tile: int, overlap: int) -> list[Tile]:
        around = -(-self.mirror // self.align) * self.align
        behind = max(around, tile - size - around) if size < self._smallest else around
        if self.margin is not None:
            return cropped_tiles(size, tile, self.margin, self.align, (around, behind))
        return blended_tiles(size, tile, overlap, self.align, (around, behind))

    def _stripes(self, width: int, sums: int, cell: int) -> list[slice]:
        planes = sum(task.out_channels for task in self.tasks)
        column = 4 * planes * (self.tile[0] + cell)
        wanted = max(self.tile[1], sums // column) // cell * cell or cell
        count = -(-width // wanted)
        even = -(-width // (count * cell)) * cell
        return [slice(start, min(start + even, width)) for start in range(0, width, even)]

    def _batches(self, tiles: Sequence[Tile]) -> Iterator[list[Tile]]:
        """Neighbours of one length."""
        batch: list[Tile] = []
        for tile in tiles:
            if batch and (len(batch) == self.batch_size or tile.stop - tile.start != batch[0].stop - batch[0].start):
                yield batch
                batch = []
            batch.append(tile)
        yield batch

    def _window(self, read: Read, row: Tile, column: Tile, size: tuple[int, int]) -> Tensor:
        spans = [(tile.start, tile.stop) for tile in (row, column)]
        if all(start >= 0 and stop <= side for (start, stop), side in zip(spans, size, strict=True)):
            return read(slice(*spans[0]), slice(*spans[1]))
        rows, columns = (
            source_pixels(side, -start, stop - side) for (start, stop), side in zip(spans, size, strict=True)
        )
        read_rows, read_columns = (slice(int(part.min()), int(part.max()) + 1) for part in (rows, columns))
        window = read(read_rows, read_columns)
        window = window.index_select(-2, (rows - read_rows.start).to(window.device))
        return window.index_select(-1, (columns - read_columns.start).to(window.device))

    def _ask(self, tiles: Tensor) -> dict[Hashable, Tensor]:
        return dict(self.evidence(tiles).items())

    def _whole(self, image: Tensor, ask: Ask) -> dict[Hashable, Tensor]:
        size = (image.shape[-2], image.shape[-1])
        whole: dict[Hashable, Tensor] = {}
        for region in self.regions(lambda rows, columns: image[..., rows, columns], size, ask):
            for key, planes in region.evidence.items():
                if key not in whole:
                    whole[key] = planes.new_empty((*planes.shape[:-2], *size))
                whole[key][..., region.rows, region.columns] = planes
        return whole


def _touching(tiles: Sequence[Tile], stripe: slice) -> list[Tile]:
    return [tile for tile in tiles if tile.first < stripe.stop and tile.last > stripe.start]


def _networks(evidence: Evidence) -> list[DenseNetwork]:
    return [network for network in networks_of(evidence) if isinstance(network, DenseNetwork)]
