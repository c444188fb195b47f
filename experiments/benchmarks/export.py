"""What exported networks cost and whether they agree: `python -m experiments.benchmarks.export [--sweep]`.

Without an option: a ResNet-18 U-Net with three tasks, image of 480 x 640: sizes, latencies, agreement of every format.
With --sweep: every encoder and every decoder of tests/catalogue.py as ONNX and torch.export, on sizes that were not
traced.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from densepred.commands.export import compared, table
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.errors import ConfigurationError
from densepred.inference.export import DeployedNetwork, export_program, traced, write_program
from densepred.inference.export_quantised import quantise
from densepred.inference.export_runtimes import OnnxRuntime, ProgramRuntime, SizeRefusedError
from densepred.inference.onnx_file import export_onnx, write_onnx
from densepred.network import DenseNetwork
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation

# multiples and not, odd, one image and several, long ones in either direction; the traced one is (2, 481, 610)
SIZES = ((1, 128, 96), (3, 75, 161), (1, 66, 463), (1, 463, 99))


class Outcome(NamedTuple):
    """What became of a network: differences of planes relative to the largest plane, or why it was refused.

    `sizes` are those that torch.export's program, but not ONNX, refuses.
    """

    seconds: float
    onnx: float = float("nan")
    program: float = float("nan")
    refused: str = ""
    sizes: tuple[str, ...] = ()


def contract(network: DenseNetwork, sizes: Sequence[tuple[int, int, int]] = SIZES) -> Outcome:
    """Exports a network of one task, `labels`, and compares planes."""
    start = time.perf_counter()
    task = Segmentation(network.out_channels["labels"], name="labels")
    deployed = DeployedNetwork(network, [task], also=["planes"])
    worst, sizes_refused = [0.0, 0.0], []
    with tempfile.TemporaryDirectory() as folder:
        onnx, program = Path(folder) / "model.onnx", Path(folder) / "model.pt2"
        try:
            traced_once = traced(deployed)
            write_onnx(traced_once, deployed, onnx)
            write_program(traced_once, program)
        except ConfigurationError as error:
            return Outcome(time.perf_counter() - start, refused=str(error).split("\n")[0])
        runtimes = (OnnxRuntime(onnx), ProgramRuntime(program))
        for batch, height, width in sizes:
            image = torch.randint(0, 256, (batch, network.encoder.in_channels, height, width), dtype=torch.uint8)
            with torch.no_grad():
                planes = network(image)["labels"]
            for i, runtime in enumerate(runtimes):
                try:
                    distance = (runtime(image)["labels_planes"] - planes).abs().max() / planes.abs().max()
                except SizeRefusedError:
                    sizes_refused.append(f"{height} x {width}")
                    continue
                worst[i] = max(worst[i], distance.item())
    return Outcome(time.perf_counter() - start, *worst, sizes=tuple(sizes_refused))


def sweep() -> None:
    from tests.catalogue import DECODERS, ENCODERS, READERS, randomise_zeros

    pairs = [(e, READERS.get(e, "FCN-32s")) for e in ENCODERS] + [("resnet18", d) for d in DECODERS]
    print(f"{'encoder':<24}{'decoder':<24}{'ONNX':>9}{'torch':>9}{'s':>7}")
    for encoder, decoder in pairs:
        torch.manual_seed(0)
        network = randomise_zeros(DenseNetwork(ENCODERS[encoder](), DECODERS[decoder], {"labels": 3})).eval()
        found = contract(network)
        told = found.refused or f"{found.onnx:>9.0e}{found.program:>9.0e}{found.seconds:>7.1f}"
        told += f"  torch.export refuses {', '.join(found.sizes)}" if found.sizes else ""
        print(f"{encoder:<24}{decoder:<24}{told}", flush=True)


def costs(calls: int) -> str:
    torch.manual_seed(0)
    tasks = [Segmentation(11), Depth(), Normals()]
    network = DenseNetwork(ResNetEncoder("resnet18"), UNetDecoder, {task.name: task.out_channels for task in tasks})
    images = [torch.randint(0, 256, (3, 240, 320), dtype=torch.uint8) for _ in range(4)]
    with tempfile.TemporaryDirectory() as folder:
        onnx, program = Path(folder) / "model.onnx", Path(folder) / "model.pt2"
        export_onnx(network.eval(), tasks, onnx)
        export_program(network, tasks, program)
        files = {onnx: OnnxRuntime(onnx), program: ProgramRuntime(program)}
        for mode in ("dynamic", "static"):
            path = Path(folder) / f"model.int8_{mode}.onnx"
            quantise(onnx, path, mode, images)
            files[path] = OnnxRuntime(path)
        found = compared(network, tasks, files, [image[None] for image in images], None, (480, 640), calls)
    report = {"timed_size": (480, 640), "threads": torch.get_num_threads(), "files": found, "short_side": None}
    return table(report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--calls", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.sweep:
        sweep()
    else:
        print(costs(given.calls))
