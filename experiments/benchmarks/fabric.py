"""A fabric on CamVid: what pruning costs and retraining brings back, and what a budget costs.

    python experiments/benchmarks/fabric.py --camvid CamVid                     # pruning, then budgets
    python experiments/benchmarks/fabric.py --camvid CamVid --budgets           # pruning alone
    python experiments/benchmarks/fabric.py --camvid CamVid --shares            # budgets alone

All frames are shrunk to `--size`; the network trains on `train` and is scored on `val`, by accuracy over all pixels but
void and by mIoU. Pruning: one whole fabric trains `--epochs`; of it the weakest links go, a share each time, and the
rest trains `--retrain` epochs more, as does the whole one for comparison. Budgets: a fabric of the same size with gates
trains `--epochs`, loses the links behind closed gates, and the rest trains `--retrain` epochs more, like the others.
What links cost is their share of the whole fabric's multiply-adds. Tables of Markdown come out.
"""

import argparse
import copy
import sys
from pathlib import Path

import cv2
import torch
from torch import Tensor

from densepred.data.camvid import CAMVID_CLASSES, CamVid
from densepred.decoders.pointwise import PointwiseDecoder
from densepred.encoders.fabric import FabricEncoder
from densepred.encoders.fabric_pruning import weakest_links
from densepred.metrics.segmentation import SegmentationMetrics
from densepred.network import DenseNetwork
from densepred.penalties import penalties_of
from densepred.tasks.segmentation import Segmentation

TASK = Segmentation(CAMVID_CLASSES)
RATE, GATE_RATE = 3e-3, 0.1
BATCH = 16


def frames(root: Path, split: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """All frames of a split and their labels: (N, 3, H, W) and (N, H, W), uint8."""
    images, labels = [], []
    for raw in CamVid(root, split):
        image = cv2.resize(raw["image"].permute(1, 2, 0).numpy(), size[::-1], interpolation=cv2.INTER_AREA)
        images.append(torch.from_numpy(image).permute(2, 0, 1))
        label = cv2.resize(raw["segmentation"].numpy(), size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        labels.append(torch.from_numpy(label))
    return torch.stack(images), torch.stack(labels)


def train(network: DenseNetwork, images: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    """Adam at a rate that falls to zero; gates at a rate of their own; half of the images mirrored."""
    generator = torch.Generator().manual_seed(seed)
    named = list(network.named_parameters())
    gates = [p for name, p in named if name.endswith("log_alpha")]
    others = [p for name, p in named if not name.endswith("log_alpha")]
    groups = [{"params": others}] + ([{"params": gates, "lr": GATE_RATE}] if gates else [])
    optimizer = torch.optim.Adam(groups, lr=RATE)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order.split(BATCH)[: len(images) // BATCH]:
            batch = {"image": images[chosen], "segmentation": labels[chosen]}
            if torch.rand((), generator=generator) < 0.5:
                batch = {key: value.flip(-1) for key, value in batch.items()}
            loss = TASK.loss_from_planes(network.planes(batch["image"])["segmentation"], batch)
            optimizer.zero_grad()
            sum(penalties_of(network).values(), loss).backward()
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def scored(network: DenseNetwork, images: Tensor, labels: Tensor) -> str:
    """Two cells of the table: pixel accuracy and mIoU."""
    metrics = SegmentationMetrics(CAMVID_CLASSES)
    for some, truth in zip(images.split(32), labels.split(32), strict=True):
        planes = network.eval().planes(some)["segmentation"]
        metrics.update(TASK.predict_from_planes(planes, tuple(truth.shape[-2:])), truth)
    values = metrics.compute()
    return f"{float(values['pixel_accuracy']):.3f} | {float(values['miou']):.3f}"


def size_of(network: DenseNetwork) -> str:
    """Two cells of the table: links and what they cost."""
    encoder = network.encoder
    assert isinstance(encoder, FabricEncoder)
    costs = [link.cost(encoder.channels, encoder.kind, "operations") for link in encoder.present()]
    whole = [link.cost(encoder.channels, encoder.kind, "operations") for link in encoder.whole]
    return f"{len(costs)} | {sum(costs) / sum(whole):.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True, help="folder of CamVid in SegNet's layout")
    parser.add_argument("--size", nargs=2, type=int, default=(48, 64), metavar=("H", "W"))
    parser.add_argument("--grid", nargs=3, type=int, default=(5, 5, 16), metavar=("LAYERS", "SCALES", "CHANNELS"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--retrain", type=int, default=5)
    parser.add_argument("--shares", nargs="*", type=float, default=(0.3, 0.5, 0.7))
    parser.add_argument("--budgets", nargs="*", type=float, default=(0.2, 0.4, 0.6))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    size = (arguments.size[0], arguments.size[1])
    learned, held_out = frames(arguments.camvid, "train", size), frames(arguments.camvid, "val", size)
    seed = arguments.seed

    def built(budget: float | None = None) -> DenseNetwork:
        torch.manual_seed(seed)
        layers, scales, channels = arguments.grid
        encoder = FabricEncoder(layers, scales, channels, budget=budget, budget_weight=3.0)
        return DenseNetwork(encoder, PointwiseDecoder, {"segmentation": len(CAMVID_CLASSES)})

    print("| fabric | links | cost | accuracy | mIoU |\n|---|---|---|---|---|", flush=True)

    def row(name: str, network: DenseNetwork) -> None:
        print(f"| {name} | {size_of(network)} | {scored(network, *held_out)} |", flush=True)

    if arguments.shares:
        whole = built()
        train(whole, *learned, arguments.epochs, seed)
        row("whole, before pruning", whole)
        for share in arguments.shares:
            pruned = copy.deepcopy(whole)
            assert isinstance(pruned.encoder, FabricEncoder)
            pruned.encoder.remove(weakest_links(pruned.encoder, share))
            row(f"{share:.0%} pruned, before retraining", pruned)
            train(pruned, *learned, arguments.retrain, seed + 1)
            row(f"{share:.0%} pruned, after retraining", pruned)
        train(whole, *learned, arguments.retrain, seed + 1)
        row("whole, trained on as long", whole)
    for budget in arguments.budgets:
        network = built(budget)
        assert isinstance(network.encoder, FabricEncoder)
        train(network, *learned, arguments.epochs, seed)
        network.encoder.remove(weakest_links(network.encoder, 0.0))
        row(f"budget {budget}, closed links gone", network)
        train(network, *learned, arguments.retrain, seed + 1)
        row(f"budget {budget}, after retraining", network)
    return 0


if __name__ == "__main__":
    sys.exit(main())
