"""Accuracy against budget: one network with exits, and networks of each exit's size trained for themselves.

    python experiments/benchmarks/anytime.py --camvid CamVid --svg experiments/figures/anytime.svg
    python experiments/benchmarks/anytime.py --camvid CamVid --quick        # seconds: does it run

A small `MSDNetEncoder` with `AnytimeDecoder` is trained once; then, for every exit, the same network cut off there,
with this one exit and its loss alone, equally long, from the same seed. All see CamVid's training images shrunk to
`--size`, mirrored by chance, in bfloat16. Three ways of spending are scored on the test images: a budget that is the
same for each image (the last exit that it pays for), a budget on average (images leave when the network is sure, by
confidences calibrated on the validation images), and the networks of their own. Operations are those that were really
spent, on average. A table of Markdown comes out, and with `--svg` the curves.
"""

import argparse
import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import torch
from torch import Tensor

from densepred.anatomy.exit_costs import exit_costs
from densepred.data.camvid import CAMVID_CLASSES, CamVid
from densepred.decoders.anytime import AnytimeDecoder
from densepred.decoders.base import DecoderFactory
from densepred.encoders.msdnet import MSDNetEncoder
from densepred.features import FeatureSpec
from densepred.inference.anytime import AnytimeEvidence, Budget
from densepred.inference.budgeted import calibrated
from densepred.inference.evidence import Evidence, NetworkEvidence
from densepred.metrics.segmentation import SegmentationMetrics
from densepred.network import DenseNetwork
from densepred.reports.svg import Series, chart
from densepred.tasks.segmentation import Segmentation

TASK = Segmentation(CAMVID_CLASSES)
BLOCKS = (2, 2, 2)
BATCH = 8


class Images(NamedTuple):
    """A split of the data: (N, 3, H, W) and (N, H, W), uint8."""

    image: Tensor
    labels: Tensor


class Point(NamedTuple):
    """What a way of spending reached."""

    way: str
    mmac: float
    miou: float
    accuracy: float
    left: str


def read(root: Path, split: str, size: tuple[int, int], most: int | None) -> Images:
    """A split, shrunk."""
    height, width = size
    images, labels = [], []
    data = CamVid(root, split)
    for i in range(min(len(data), most or len(data))):
        raw = data[i]
        image = cv2.resize(raw["image"].permute(1, 2, 0).numpy(), (width, height), interpolation=cv2.INTER_AREA)
        images.append(torch.from_numpy(image).permute(2, 0, 1))
        target = cv2.resize(raw["segmentation"].numpy(), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        labels.append(torch.from_numpy(target))
    return Images(torch.stack(images), torch.stack(labels))


def end_alone(spec: FeatureSpec, out_channels: int) -> AnytimeDecoder:
    """One head, at the end."""
    return AnytimeDecoder(spec._replace(exits=()), out_channels)


def build(blocks: tuple[int, ...], decoder: DecoderFactory = AnytimeDecoder) -> DenseNetwork:
    """A network with an exit after each block, or after the last alone."""
    encoder = MSDNetEncoder(blocks=blocks, growth=8, width=16)
    return DenseNetwork(encoder, decoder, {TASK.name: TASK.out_channels}).to(memory_format=torch.channels_last)


def train(network: DenseNetwork, data: Images, epochs: int, rate: float, seed: int) -> DenseNetwork:
    """The network after so many epochs; the losses of its exits are added up."""
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01, fused=True)
    steps = epochs * -(-len(data.image) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.image), generator=order).split(BATCH):
            image, labels = data.image[chosen], data.labels[chosen]
            if torch.rand((), generator=order) < 0.5:
                image, labels = image.flip(-1), labels.flip(-1)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                planes = network.planes(image)
            losses = [TASK.loss_from_planes(value, {"image": image, TASK.name: labels}) for value in planes.values()]
            torch.stack(losses).sum().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 10)
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def score(evidence: Evidence, data: Images) -> tuple[float, float]:
    """mIoU and pixel accuracy."""
    metrics = SegmentationMetrics(CAMVID_CLASSES)
    for image, labels in zip(data.image.split(32), data.labels.split(32), strict=True):
        metrics.update(evidence.predict(image)[TASK.name], labels)
    values = metrics.compute()
    return float(values["miou"]), float(values["pixel_accuracy"])


def spend(way: str, evidence: AnytimeEvidence, data: Images) -> Point:
    """Scores a network within its budget, at what it has really spent."""
    miou, accuracy = score(evidence, data)
    shares = [evidence.taken[k + 1] / len(data.image) for k in range(evidence.network.exits)]
    left = " ".join(f"{share:.0%}" for share in shares)
    return Point(way, evidence.macs / len(data.image) / 1e6, miou, accuracy, left)


def compare(data: dict[str, Images], epochs: int, rate: float, seed: int) -> Iterator[Point]:
    """All ways of spending, each network trained from the same seed."""
    size = (data["test"].image.shape[-2], data["test"].image.shape[-1])
    torch.manual_seed(seed)
    network = train(build(BLOCKS), data["train"], epochs, rate, seed)
    costs = exit_costs(network, size)
    anytime = partial(AnytimeEvidence, network, [TASK])
    for macs in costs.directly:
        yield spend("each image", anytime(Budget(macs=macs)), data["test"])
    first, last = costs.on_the_way[0], costs.on_the_way[-1]
    for share in (0.2, 0.4, 0.6, 0.8):
        noting = anytime(thresholds=(float("inf"),))
        thresholds = calibrated(noting, data["val"].image.split(32), first + share * (last - first))
        yield spend("on average", anytime(thresholds=thresholds), data["test"])
    for k in range(len(BLOCKS)):
        torch.manual_seed(seed)
        alone = train(build(BLOCKS[: k + 1], end_alone), data["train"], epochs, rate, seed)
        miou, accuracy = score(NetworkEvidence(alone, [TASK]), data["test"])
        yield Point("a network each", exit_costs(alone, size).directly[-1] / 1e6, miou, accuracy, "")


def row(point: Point) -> str:
    """A line of the table."""
    return f"| {point.way} | {point.mmac:.1f} | {point.miou:.3f} | {point.accuracy:.3f} | {point.left} |"


def drawing(points: list[Point]) -> str:
    """The curves as a file of its own."""
    ways = {"each image": False, "on average": False, "a network each": True}
    series = [
        Series(way, [p.mmac for p in points if p.way == way], [p.miou for p in points if p.way == way], dashed=dashed)
        for way, dashed in ways.items()
    ]
    figure = chart(series, "Accuracy against budget", "million multiply-accumulates an image", "mIoU")
    found = re.search(r"<svg.*</svg>", figure, re.DOTALL)
    assert found is not None
    names = "".join(
        f'<text x="250" y="{130 + 16 * i}" fill="{colour}">{way}</text>'
        for i, (way, colour) in enumerate(zip(ways, re.findall(r'stroke="(#\w{6})"', figure), strict=False))
    )
    inside = found[0].replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    paper = '<rect width="100%" height="100%" fill="white"/>'
    return inside.replace('fill="currentColor">', f'fill="currentColor">{paper}', 1).replace("</svg>", f"{names}</svg>")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True, help="folder of CamVid in SegNet's layout")
    parser.add_argument("--size", nargs=2, type=int, default=(64, 96), metavar=("H", "W"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--svg", type=Path, help="write the curves there")
    parser.add_argument("--quick", action="store_true", help="a few images, one epoch")
    arguments = parser.parse_args()
    most = 16 if arguments.quick else None
    size = (arguments.size[0], arguments.size[1])
    data = {split: read(arguments.camvid, split, size, most) for split in ("train", "val", "test")}
    started = time.perf_counter()
    points = []
    print("| budget | MMAC an image | mIoU | pixel accuracy | images that left at each exit |\n|---|---|---|---|---|")
    for point in compare(data, 1 if arguments.quick else arguments.epochs, arguments.rate, arguments.seed):
        points.append(point)
        print(row(point), flush=True)
    print(f"\n{time.perf_counter() - started:.0f} s")
    if arguments.svg is not None:
        arguments.svg.write_text(drawing(points), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
