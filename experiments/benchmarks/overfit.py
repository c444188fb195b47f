"""Every architecture overfits one real image: how near it comes to the best that its output stride allows.

    python experiments/benchmarks/overfit.py --camvid CamVid                        # all, about an hour on two cores
    python experiments/benchmarks/overfit.py --camvid CamVid experiments/voc_fcn8s_vgg16.yaml
    ... experiments/voc_fcn32s_vgg16.yaml --model.encoder VGGEncoder ...            # options of the model, as in fit
    ... experiments/voc_deconvnet_vgg16.yaml --score-rate 10

The networks are those of the experiments' files, from random weights, with CamVid's 11 classes in place of their
tasks. Adam trains each on one image, dropout as configured, until in evaluation mode it labels `--share` of the ceiling
right; it has `--steps` steps for each learning rate that is tried. The ceiling of a network is the best accuracy that
planes of its stride can reach on these labels when they are upsampled as its own are: free planes are trained to the
end for it. Void pixels don't count. Where scores start near zero, as DeconvNet's do (N(0, 0.01)), the network learns
one class after the other; `--score-rate` lets the scores learn faster than the rest, as published recipes do. A table
of Markdown comes out; the exit status tells whether all reached the share.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch
from torch import Tensor

from densepred.commands.arguments import import_parts
from densepred.commands.describe import build_module, read_config
from densepred.data.camvid import CAMVID_CLASSES, CamVid
from densepred.metrics.segmentation import SegmentationMetrics
from densepred.network import DenseNetwork
from densepred.tasks.segmentation import Segmentation

EXPERIMENTS = Path(__file__).parents[1]
TASK = Segmentation(CAMVID_CLASSES)
RATES = (1e-3, 1e-4)


class Outcome(NamedTuple):
    """What one network reached, in evaluation mode."""

    stride: int
    ceiling: float
    accuracy: float
    miou: float
    steps: int
    rate: float
    seconds: float


def sample(root: Path, name: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """One training image and its labels, shrunk: (1, 3, H, W) and (1, H, W), uint8."""
    raw = CamVid(root, "train")[name]
    height, width = size
    image = cv2.resize(raw["image"].permute(1, 2, 0).numpy(), (width, height), interpolation=cv2.INTER_AREA)
    labels = cv2.resize(raw["segmentation"].numpy(), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(), torch.from_numpy(labels)[None]


def network_of(path: Path, options: list[str]) -> DenseNetwork:
    """An experiment's network for CamVid's classes."""
    config = read_config(path)
    config["model"]["init_args"]["tasks"] = [
        {"class_path": "Segmentation", "init_args": {"classes": len(CAMVID_CLASSES)}}
    ]
    encoder = config["model"]["init_args"]["encoder"].get("init_args") or {}
    for key in ("in_channels", "mean", "std"):
        encoder.pop(key, None)  # this image is a photograph
    network: DenseNetwork = build_module(config, options).network
    return network


def score(planes: Tensor, labels: Tensor, padded: tuple[int, int]) -> tuple[float, float]:
    """Pixel accuracy and mIoU of planes that cover the padded image."""
    height, width = labels.shape[-2:]
    metrics = SegmentationMetrics(CAMVID_CLASSES)
    metrics.update(TASK.predict_from_planes(planes, padded)[..., :height, :width], labels)
    values = metrics.compute()
    return float(values["pixel_accuracy"]), float(values["miou"])


def loss(planes: Tensor, image: Tensor, labels: Tensor, padded: tuple[int, int]) -> Tensor:
    batch = {"image": image.new_empty(1, 1, *padded), **TASK.pad({"segmentation": labels}, padded)}
    return TASK.loss_from_planes(planes, batch)


def ceiling_of(shape: torch.Size, image: Tensor, labels: Tensor, padded: tuple[int, int]) -> float:
    """The best accuracy that planes of this shape reach: their own values are trained."""
    if tuple(shape[-2:]) == tuple(labels.shape[-2:]):
        return 1.0
    free = torch.zeros(shape, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=0.5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    best = 0.0
    for step in range(600):
        optimizer.zero_grad()
        loss(free, image, labels, padded).backward()
        optimizer.step()
        schedule.step()
        if step % 20 == 19:
            best = max(best, score(free.detach(), labels, padded)[0])
    return best


def groups(network: DenseNetwork, rate: float, score_rate: float) -> list[dict[str, Any]]:
    """All parameters at the rate, the decoders' scores at `score_rate` times it."""
    named = list(network.named_parameters())
    return [
        {"params": [p for name, p in named if (".score." in name) == score], "lr": rate * factor}
        for score, factor in ((False, 1.0), (True, score_rate))
    ]


def overfit(
    path: Path,
    options: list[str],
    image: Tensor,
    labels: Tensor,
    steps: int,
    share: float,
    precision: str,
    score_rate: float,
) -> Outcome:
    """Trains until the share of the ceiling is reached, at one learning rate after another.

    A rate that has not come to four fifths of it after half the steps is given up.
    """
    started = time.perf_counter()
    padded = network_of(path, options).padded_size(*image.shape[-2:])
    outcomes = []
    ceiling = 0.0
    for rate in RATES:
        torch.manual_seed(0)
        network = network_of(path, options).to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(groups(network, rate, score_rate), fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / steps), 1.0))
        for step in range(1, steps + 1):
            network.train()
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                planes = network.planes(image)
            sum_of_losses = sum(loss(value, image, labels, padded) for value in planes.values())
            assert isinstance(sum_of_losses, Tensor)
            sum_of_losses.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 10)
            optimizer.step()
            schedule.step()
            if step % 20 and step != steps:
                continue
            with torch.inference_mode():
                answer = network.eval().planes(image)["segmentation"]
            ceiling = ceiling or ceiling_of(answer.shape, image, labels, padded)
            accuracy, miou = score(answer, labels, padded)
            seconds = time.perf_counter() - started
            outcome = Outcome(padded[0] // answer.shape[-2], ceiling, accuracy, miou, step, rate, seconds)
            if accuracy >= share * ceiling:
                return outcome
            if step >= steps // 2 and accuracy < 0.8 * share * ceiling:
                break
        outcomes.append(outcome)
    return max(outcomes, key=lambda outcome: outcome.accuracy)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="experiments (default: all on VOC, CamVid and ISBI)")
    parser.add_argument("--camvid", type=Path, required=True, help="folder of CamVid in SegNet's layout")
    parser.add_argument("--image", type=int, default=0, help="position in the training list")
    parser.add_argument("--size", nargs=2, type=int, default=(96, 128), metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--score-rate", type=float, default=1.0, help="factor of the rate for the decoders' scores")
    parser.add_argument("--share", type=float, default=0.97)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    arguments, options = parser.parse_known_args()
    import_parts()
    files = arguments.files or sorted(
        path for path in EXPERIMENTS.glob("*.yaml") if path.stem.split("_")[0] in ("voc", "camvid", "isbi")
    )
    image, labels = sample(arguments.camvid, arguments.image, tuple(arguments.size))
    print("| experiment | stride | ceiling | accuracy | of the ceiling | mIoU | steps | learning rate | seconds |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    reached = True
    for path in files:
        result = overfit(
            path,
            options,
            image,
            labels,
            arguments.steps,
            arguments.share,
            arguments.precision,
            arguments.score_rate,
        )
        part = result.accuracy / result.ceiling
        reached &= part >= arguments.share
        print(
            f"| {path.stem} | {result.stride} | {result.ceiling:.3f} | {result.accuracy:.3f} | {part:.3f} "
            f"| {result.miou:.3f} | {result.steps} | {result.rate:g} | {result.seconds:.0f} |",
            flush=True,
        )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
