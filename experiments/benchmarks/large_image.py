"""Peak memory and speed of predicting images that are larger than memory need be, window by window.

    python experiments/benchmarks/large_image.py [side] [tile] [npy | tif] [folder]

An image of side x side pixels (20,000 by default) is written, predicted by `predict_large` with labels of 21 classes,
depth and normals, and removed again, with what was predicted. A network with random weights does it: what is measured
is the memory beside it and the way of the data, not how well it sees. `cheap` is a U-Net of 4 to 16 channels behind a
stem of stride 4, so that 400 megapixels are through in minutes on two cores; `resnet18` is the ResNet-18 U-Net, whose
own activations for a tile of 512 pixels are among the memory that is told, for one band of tiles alone.

Peaks are of the resident memory of a process that does nothing else (VmHWM), above what it had when the network was
built and had seen one tile of 64 pixels: of images that grow, at equal tiles.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from densepred.decoders.unet import UNetDecoder
from densepred.encoders.base import Encoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.features import FeatureSpec
from densepred.inference.evidence import NetworkEvidence
from densepred.inference.tiling import Tiled
from densepred.inference.window_writers import window_writer
from densepred.inference.windows import predict_large
from densepred.network import DenseNetwork
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation

SIDE, TILE = 20_000, 512
BAND = 512


class Cheap(Encoder):
    """Three levels of few channels behind a stem of stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            [nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)],
        )
        self.spec = FeatureSpec((4, 8, 16), (4, 8, 16))

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = [self.normalise(image)]
        for level in self.levels:
            maps.append(level(maps[-1]).relu())
        return maps[1:]


def network(name: str) -> NetworkEvidence:
    tasks = [Segmentation(21), Depth(), Normals()]
    torch.manual_seed(0)
    encoder = Cheap() if name == "cheap" else ResNetEncoder("resnet18")
    widths = (8, 4) if name == "cheap" else None
    built = DenseNetwork(encoder, lambda *a: UNetDecoder(*a, widths=widths), {t.name: t.out_channels for t in tasks})
    return NetworkEvidence(built.eval(), tasks)


def write_image(path: Path, size: tuple[int, int]) -> None:
    """Noise that repeats every 256 rows, in bands, so that writing it needs no memory either."""
    noise = np.random.default_rng(0).integers(0, 256, (256, size[1], 3), dtype=np.uint8)
    with window_writer(path, (*size, 3), np.dtype(np.uint8)) as writer:
        for top in range(0, size[0], 256):
            rows = slice(top, min(top + 256, size[0]))
            writer.write(rows, slice(0, size[1]), noise[: rows.stop - top])


def resident(key: str) -> float:
    """MiB of this process's memory: now (VmRSS), at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def measure_here(source: Path, name: str, tile: int) -> tuple[float, float, float]:
    """Peak of memory above the model in MiB, megapixels a second, seconds; in this process."""
    evidence = network(name)
    with torch.inference_mode():
        evidence(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    before = resident("VmRSS")
    targets = {task.name: source.with_name(f"{source.stem}_{task.name}{source.suffix}") for task in evidence.tasks}
    outcome = predict_large(Tiled(evidence, tile), source, targets, progress=sys.stderr.isatty())
    return resident("VmHWM") - before, outcome.megapixels_per_second, outcome.seconds


def measure(size: tuple[int, int], name: str = "cheap", tile: int = TILE, ending: str = "tif", root: str | None = None):
    """As `measure_here`, of a process of its own, and the seconds that writing the image took."""
    with tempfile.TemporaryDirectory(dir=root) as folder:
        source = Path(folder) / f"image.{ending}"
        begin = perf_counter()
        write_image(source, size)
        command = [sys.executable, __file__, "here", str(source), name, str(tile)]
        print(f"{size[0]} x {size[1]} written in {perf_counter() - begin:.0f} s", file=sys.stderr)
        told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    peak, rate, seconds = map(float, told.split())
    return peak, rate, seconds


def main(side: str = str(SIDE), tile: str = str(TILE), ending: str = "tif", root: str | None = None) -> None:
    sizes = [("cheap", (int(side) // part, int(side) // part)) for part in (10, 4, 1)]
    for name, size in [*sizes, ("resnet18", (BAND, int(side) // 4))]:
        peak, rate, seconds = measure(size, name, int(tile), ending, root)
        print(
            f"{name:9} {size[0]:6} x {size[1]:6}  {ending}  tile {tile}: {peak:5.0f} MiB above the model, "
            f"{rate:6.2f} megapixels/s, {seconds:5.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["here"]:
        print(*measure_here(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
    else:
        main(*sys.argv[1:])
