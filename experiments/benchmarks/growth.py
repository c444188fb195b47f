"""How time and memory grow: of training, prediction, data, loading and metrics, each with the exponent of its growth.

    python -m experiments.benchmarks.growth --svg experiments/figures/growth.svg    # one core; minutes
    python -m experiments.benchmarks.growth --parts files metrics
    python -m experiments.benchmarks.growth --quick                                 # seconds: does it run

Parts, each a table and, with `--svg`, its charts:

- area, batch, classes: a training step (forward, fused loss, backward, AdamW) and a prediction (labels at the image's
  size) of the README's ResNet-18 U-Net in `DensePredictor`, in bfloat16 with ChannelsLast where the processor computes
  it. Area: 1 image, 21 classes. Batch: 128 x 128, 21 classes. Classes: 1 image of 256 x 256.
- files: `FolderDataModule.setup("fit")` of so many images with labels, without any check and with that of the headers;
  the order of an epoch, drawn to its end; a loading process: how long until it runs, and what memory it has of its own
  after it asked for the files of a whole epoch. Files are hard links to one small picture; above 100,000 there are
  none: the folder's listing is made up, and nothing is checked.
- workers: a second epoch of 256 JPEG images of 375 x 500 with labels, cropped to 224 x 224, loaded by so many
  processes beside the one that asks, or by that one itself.
- metrics: an update with 4 images of 64 x 64 after so many were counted, and the memory of the states.
- predict: `densepred predict` on a folder of so many pictures of 48 x 64, by a U-Net of 8 to 32 channels.

Each number comes from a process of its own, forked from one that has imported everything and computed nothing. Memory
is the highest resident (VmHWM) above the level at its start, without the pages of libraries, which a fork maps anew.
Times are the processor's, of one thread; those of loading are the wall clock's, which other work on the machine spoils.
An exponent is the slope of a line through the logarithms of all rows, or of the last three, where fixed costs weigh
less: 1 is proportional, 0 constant.
"""

import argparse
import contextlib
import logging
import math
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import NamedTuple

import cv2
import torch

from densepred.metrics.depth import DepthMetrics
from densepred.metrics.normals import NormalsMetrics
from densepred.metrics.segmentation import SegmentationMetrics
from densepred.reports.svg import COLOURS, Series, chart
from experiments.benchmarks.growth_measures import (
    FORK,
    Measure,
    Measured,
    counting,
    loading,
    order,
    pictures,
    predicting,
    setting_up,
    unet,
    worker,
)

CELL, NOTE, LEFT = (440, 288), 24, 54
Columns = dict[tuple[str, str], list[float]]
"""By unit and way: numbers, one a size."""


class Part(NamedTuple):
    """What grows with what.

    Attributes:
        title: Of the charts.
        axis: What grows.
        sizes: How far.
        quick: The same with `--quick`.
        ways: What is measured, by name.
        prepare: Makes the folder of a size.
    """

    title: str
    axis: str
    sizes: Sequence[int]
    quick: Sequence[int]
    ways: dict[str, Measure]
    prepare: Callable[[int], contextlib.AbstractContextManager[Path]] = lambda size: contextlib.nullcontext(Path())


def both(shape: Callable[[int], dict[str, int]]) -> dict[str, Measure]:
    """Training and prediction of the network, whose batch, side and classes follow from a size."""

    def measure(size: int, folder: Path, training: bool) -> Measured:
        return unet(**shape(size), training=training)

    return {"training step": partial(measure, training=True), "prediction": partial(measure, training=False)}


def metrics() -> dict[str, Measure]:
    """Each metric, with what it counts."""
    numbers = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 21, (4, 64, 64), generator=numbers, dtype=torch.uint8)
    depth = torch.rand(4, 1, 64, 64, generator=numbers) + 1
    normals = torch.nn.functional.normalize(torch.randn(4, 3, 64, 64, generator=numbers))
    return {
        "labels": partial(counting, metric=SegmentationMetrics(21), prediction=labels, target=labels.flip(0)),
        "depth": partial(counting, metric=DepthMetrics(), prediction=depth, target=depth.flip(0)),
        "normals": partial(counting, metric=NormalsMetrics(), prediction=normals, target=normals.flip(0)),
    }


def parts() -> dict[str, Part]:
    """All of them, by their names on the command line."""
    sides = [side**2 for side in (64, 128, 256, 384, 512, 768)]
    area = both(lambda pixels: {"images": 1, "side": math.isqrt(pixels), "classes": 21})
    batch = both(lambda images: {"images": images, "side": 128, "classes": 21})
    classes = both(lambda classes: {"images": 1, "side": 256, "classes": classes})
    files: dict[str, Measure] = {
        "listing": partial(setting_up, check="none"),
        "listing and check": partial(setting_up, check="headers"),
        "order of an epoch": order,
        "loading process": worker,
    }
    small = partial(pictures, (48, 64))
    return {
        "area": Part("U-Net against area", "pixels of an image", sides, sides[:2], area),
        "batch": Part("U-Net against batch", "images of a batch", (1, 2, 4, 8, 16, 32), (1, 2), batch),
        "classes": Part("U-Net against classes", "classes", (2, 8, 32, 128, 512), (2, 8), classes),
        "files": Part("Data against files", "images", (1000, 10_000, 100_000, 1_000_000), (100, 1000), files, small),
        "workers": Part(
            "Loading against processes", "processes", (0, 1, 2), (0, 1), {"loading": loading},
            lambda size: pictures((375, 500), 256),
        ),
        "metrics": Part("Metrics against images", "images counted", (40, 400, 4000, 40_000), (40, 400), metrics()),
        "predict": Part(
            "densepred predict", "pictures", (30, 100, 300, 1000, 3000), (5, 20), {"predict": predicting}, small
        ),
    }  # fmt: skip


def apart(measure: Measure, size: int, folder: Path) -> Measured:
    """What a process of its own measures."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: sender.send(measure(size, folder)))
    process.start()
    sender.close()
    try:
        found: Measured = receiver.recv()
    finally:
        process.join()
    return found


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a line through the logarithms of what there is; NaN of less than two.

    Example:
        >>> round(exponent([1, 2, 4], [3, 12, 48]), 9)
        2.0
    """
    known = [(math.log(x), math.log(y)) for x, y in zip(sizes, values, strict=True) if x > 0 and y > 0]
    return statistics.linear_regression(*zip(*known, strict=True)).slope if len(known) > 1 else math.nan


def rounded(slope: float) -> str:
    """An exponent as it is printed."""
    return f"{round(slope, 2) + 0.0:.2f}" if math.isfinite(slope) else "-"  # + 0.0: no -0.00


def columns(part: Part, sizes: Sequence[int]) -> Columns:
    """The numbers of each way and unit, one a size."""
    found: Columns = {}
    for size in sizes:
        with part.prepare(size) as folder:
            for way, measure in part.ways.items():
                for unit, value in apart(measure, size, folder).items():
                    found.setdefault((unit, way), []).append(value)
    return dict(sorted(found.items(), key=lambda item: list(dict.fromkeys(key[0] for key in found)).index(item[0][0])))


def table(axis: str, sizes: Sequence[int], found: Columns) -> str:
    """The numbers, and below them the exponents."""

    def row(first: str, cells: Iterable[str]) -> str:
        return f"| {first} | {' | '.join(cells)} |"

    def number(value: float) -> str:
        return "-" if math.isnan(value) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    lines = [row(axis, (f"{way}, {unit}" for unit, way in found)), "|---" * (len(found) + 1) + "|"]
    lines += [row(f"{size:,}", (number(values[i]) for values in found.values())) for i, size in enumerate(sizes)]
    for name, first in (("exponent", 0), ("exponent, last three", -3)) if sizes[0] > 0 else ():
        slopes = (exponent(sizes[first:], values[first:]) for values in found.values())
        lines.append(row(name, map(rounded, slopes)))
    return "\n".join(lines)


def drawing(found: dict[str, tuple[Part, Sequence[int], Columns]]) -> str:
    """A chart of the first and of the last unit of each part, side by side."""
    cells = [
        (part, sizes, unit, {way: values for (own, way), values in columns.items() if own == unit})
        for part, sizes, columns in found.values()
        for unit in (next(iter(columns))[0], list(columns)[-1][0])
    ]
    width, height = 2 * CELL[0], NOTE + -(-len(cells) // 2) * CELL[1]
    note = f'<text x="{LEFT}" y="18">Dashed: in proportion. In brackets: the exponent of the last three sizes.</text>'
    drawn = (
        f'<svg x="{i % 2 * CELL[0]}" y="{NOTE + i // 2 * CELL[1]}" width="{CELL[0]}" height="{CELL[1]}">'
        f"{cell(*one)}</svg>"
        for i, one in enumerate(cells)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f"{note}{''.join(drawn)}</svg>\n"
    )


def cell(part: Part, sizes: Sequence[int], unit: str, ways: dict[str, list[float]]) -> str:
    """A chart with its title and its legend, two entries a line."""
    log = sizes[0] > 0
    series = [Series(way, sizes, values) for way, values in ways.items()]
    known = [value for values in ways.values() for value in values if value > 0]
    last = max(values[-1] for values in ways.values() if values[-1] > 0)
    begin = max(sizes[0], sizes[-1] * min(known) / last)
    if log and begin < sizes[-1]:
        ends = [last * begin / sizes[-1], last]
        series.append(Series("in proportion", [begin, sizes[-1]], ends, dashed=True, colour="#7d8590"))
    elif not log:
        series.append(Series("from zero", sizes[:1], [0], colour="none"))
    inner = re.search(r"<svg.*</svg>", chart(series, part.title, part.axis, log_x=log, log_y=log), re.DOTALL)
    assert inner is not None
    texts = [f'<text x="{LEFT}" y="18" font-size="13" font-weight="600">{escape(f"{part.title}: {unit}")}</text>']
    for i, (colour, (way, values)) in enumerate(zip(COLOURS, ways.items(), strict=False)):
        slope = f" ({rounded(exponent(sizes[-3:], values[-3:]))})" if log else ""
        place = f'x="{LEFT + i % 2 * 170}" y="{34 + i // 2 * 14}"'
        texts.append(f'<text {place} fill="{colour}">{escape(way + slope)}</text>')
    moved = inner[0].replace("<svg ", '<svg y="54" ', 1)
    return "".join(texts) + moved


def main() -> int:
    known = parts()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=known, default=list(known), metavar="PART", help=", ".join(known))
    parser.add_argument("--svg", type=Path, help="write the charts there")
    parser.add_argument("--quick", action="store_true", help="small and few, to see that it runs")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*self.log.*")  # there is no trainer
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    found, started = {}, time.perf_counter()
    print(f"torch {torch.__version__}, one thread\n", flush=True)
    for name in options.parts:
        part = known[name]
        sizes = part.quick if options.quick else part.sizes
        measured = columns(part, sizes)
        found[name] = (part, sizes, measured)
        print(f"{part.title}:\n\n{table(part.axis, sizes, measured)}\n", flush=True)
    print(f"{time.perf_counter() - started:.0f} s")
    if options.svg is not None:
        options.svg.write_text(drawing(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
