"""A training step and inference against segmentation_models_pytorch (smp) and torchvision, on networks that are equal.

    python experiments/benchmarks/peers.py                                # the CPU, one thread; a quarter of an hour
    python experiments/benchmarks/peers.py --losses 50 --size 128 128      # what so many steps learn, no times
    python experiments/benchmarks/peers.py --device cuda --batch 16 --size 512 512 --compile
    python experiments/benchmarks/peers.py --quick                        # does it run

Networks get the peer's weights, and must give the peer's planes before anything is timed. Contenders:

- peer: fp32; images are normalised and labels int64 already, as from its users' loaders; its planes at the image's size
  (torchvision interpolates in its forward, smp in its head), cross_entropy of them, or argmax.
- ours: `DensePredictor`'s training step, or its forward, which gives labels; fp32, laid out in memory as the peer's.
  Images and labels come as uint8; normalising them is part of what is timed.
- preset: the same in bfloat16 autocast with ChannelsLast where the device computes bfloat16, else as ours.
- compiled (with --compile): the preset with the callback Compile.

A step is forward, loss, backward and that of AdamW. Contenders take turns in a changing order, so that what else the
machine does hits all alike. Times are the processor's on the CPU with one thread, else the wall clock's; printed are
medians, and how many times as fast as the peer each is: the median of the ratios within a round, the lowest and the
highest. A loss is the mean of the last five steps; dropout draws otherwise in another layout of memory, and where
gradients are mere rounding Adam goes the way of the rounding, so losses are alike, not equal.
"""

import argparse
import copy
import random
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import segmentation as torchvision

from densepred.callbacks.channels_last import ChannelsLast
from densepred.callbacks.compiled import Compile
from densepred.decoders.deeplab import TorchvisionDeepLabV3Decoder
from densepred.decoders.deeplab_plus import DeepLabV3PlusDecoder
from densepred.decoders.fcn import TorchvisionFCNDecoder
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.half_precision import computes_bfloat16
from densepred.module import DensePredictor
from densepred.tasks.segmentation import Segmentation
from densepred.torchvision_weights import load_torchvision_segmentation

CLASSES = 21
WITHOUT = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
UNET = partial(UNetDecoder, widths=(256, 128, 64, 32, 16), upsampling="nearest", score_kernel=3)
PLUS = partial(
    DeepLabV3PlusDecoder, rates=(12, 24, 36), fuse_layers=1, convolutions="separable", refine=True,
    align_corners=True, dropout=0.5,
)  # fmt: skip
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], ResNetEncoder], Any]] = {
    "U-Net, ResNet-34 (smp)": (
        partial(smp.Unet, "resnet34", encoder_weights=None, classes=CLASSES), partial(ResNetEncoder, "resnet34"), UNET,
    ),
    "DeepLab v3+, ResNet-34 (smp)": (
        partial(smp.DeepLabV3Plus, "resnet34", encoder_weights=None, classes=CLASSES),
        partial(ResNetEncoder, "resnet34", output_stride=16, multi_grid=(1, 1, 1)), PLUS,
    ),
    "FCN, ResNet-50 (torchvision)": (
        partial(torchvision.fcn_resnet50, **WITHOUT), partial(ResNetEncoder, "resnet50", output_stride=8),
        TorchvisionFCNDecoder,
    ),
    "DeepLab v3, ResNet-50 (torchvision)": (
        partial(torchvision.deeplabv3_resnet50, **WITHOUT), partial(ResNetEncoder, "resnet50", output_stride=8),
        TorchvisionDeepLabV3Decoder,
    ),
}  # fmt: skip
"""The peer's network, our encoder and our decoder."""


class Peer:
    """A network of smp or torchvision, as its users run it."""

    def __init__(self, network: nn.Module, normalise: Callable[[Tensor], Tensor]) -> None:
        self.module, self.normalise = network, normalise
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, weight_decay=0.01)

    def ready(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"image": self.normalise(batch["image"]), "labels": batch["segmentation"].long()}

    def planes(self, batch: dict[str, Tensor]) -> Tensor:
        found = self.module(batch["image"])
        return found["out"] if isinstance(found, dict) else found

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self.planes(batch), batch["labels"], ignore_index=255)

    def labels(self, batch: dict[str, Tensor]) -> Tensor:
        return self.planes(batch).argmax(1)


class Ours:
    """The same network in a DensePredictor, with callbacks."""

    def __init__(self, module: DensePredictor, device: str, preset: bool = False, compiled: bool = False) -> None:
        self.module, self.ready = copy.deepcopy(module).to(device), dict
        half = preset and computes_bfloat16(device)
        for callback in [ChannelsLast()] * half + [Compile()] * compiled:
            callback.setup(None, self.module, "fit")
        self.autocast = partial(torch.autocast, device, torch.bfloat16, enabled=half)
        self.optimizer = self.module.build_optimizer()  # AdamW as the peer's

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        with self.autocast():
            return self.module.training_step(batch, 0)

    def labels(self, batch: dict[str, Tensor]) -> Tensor:
        with self.autocast():
            return self.module(batch["image"])["segmentation"]


def contenders(name: str, device: str, compiled: bool) -> dict[str, Peer | Ours]:
    """Equal networks; refused where their planes differ."""
    torch.manual_seed(0)
    build, encoder, decoder = NETWORKS[name]
    peer, module = build().eval(), DensePredictor(encoder(), decoder, [Segmentation(CLASSES)]).eval()
    if "torchvision" in name:
        load_torchvision_segmentation(module.network, peer.state_dict())
    else:  # smp's tensors come in the same order
        own = [key for key in module.network.state_dict() if key not in ("encoder.mean", "encoder.std")]
        module.network.load_state_dict(dict(zip(own, peer.state_dict().values(), strict=True)), strict=False)
    sample = batches(1, (1, (64, 96)), "cpu")[0]
    with torch.inference_mode():
        theirs = Peer(peer, module.network.encoder.normalise)
        planes, expected = module.network(sample["image"])["segmentation"], theirs.planes(theirs.ready(sample))
    torch.testing.assert_close(planes, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    found: dict[str, Peer | Ours] = {"peer": Peer(peer.to(device), module.to(device).network.encoder.normalise)}
    found |= {"ours fp32": Ours(module, device), "preset": Ours(module, device, preset=True)}
    return found | ({"compiled": Ours(module, device, preset=True, compiled=True)} if compiled else {})


def batches(count: int, shape: tuple[int, tuple[int, int]], device: str) -> list[dict[str, Tensor]]:
    """Cells of 32 pixels in the colours of their classes, with noise, and a void border; uint8."""
    numbers = torch.Generator().manual_seed(0)
    batch, (height, width) = shape
    colours, found = torch.randint(0, 256, (CLASSES, 3), generator=numbers), []
    for _ in range(count):
        cells = torch.randint(0, CLASSES, (batch, 1, -(-height // 32), -(-width // 32)), generator=numbers)
        labels = F.interpolate(cells.float(), scale_factor=32)[:, 0, :height, :width].long()
        image = colours[labels].permute(0, 3, 1, 2) + 40 * torch.randn(batch, 3, height, width, generator=numbers)
        labels[:, :8] = 255
        image = image.clamp(0, 255).to(torch.uint8).contiguous()
        found.append({"image": image.to(device), "segmentation": labels.to(torch.uint8).to(device)})
    return found


def step(contender: Peer | Ours, batch: dict[str, Tensor]) -> Tensor:
    loss = contender.loss(batch)
    contender.optimizer.zero_grad()
    loss.backward()
    contender.optimizer.step()
    return loss.detach()


def seconds(run: Callable[[], object], device: str) -> float:
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    wait = torch.cuda.synchronize if device == "cuda" else dict
    wait()
    start = clock()
    run()
    wait()
    return clock() - start


def row(found: dict[str, Peer | Ours], batch: dict[str, Tensor], train: bool, device: str, rounds: int) -> list[str]:
    """Milliseconds of each contender, and how many times as fast as the peer it is."""
    taken: dict[str, list[float]] = {name: [] for name in found}
    ready = {name: contender.ready(batch) for name, contender in found.items()}
    with torch.inference_mode(not train):
        for turn in range(rounds + 1):
            for name, contender in random.sample(list(found.items()), len(found)):
                contender.module.train(train)
                run = partial(step, contender) if train else contender.labels
                measured = seconds(partial(run, ready[name]), device)
                taken[name] += [measured] if turn else []  # the first round warms up
    cells = []
    for name, mine in taken.items():
        cells.append(f"{1000 * statistics.median(mine):.1f}")
        if name != "peer":
            ratios = [theirs / ours for theirs, ours in zip(taken["peer"], mine, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return cells


def learned(contender: Peer | Ours, data: list[dict[str, Tensor]], steps: int) -> str:
    """The mean loss of the last five steps."""
    torch.manual_seed(0)
    contender.module.train()
    losses = [step(contender, contender.ready(data[i % len(data)])) for i in range(steps)]
    return f"{torch.stack(losses[-5:]).mean():.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", default=[""], metavar="PART", help="those whose names contain it")
    parser.add_argument("--compile", action="store_true", help="a further contender, compiled")
    parser.add_argument("--losses", type=int, metavar="STEPS", help="compare the losses after so many steps instead")
    parser.add_argument("--quick", action="store_true", help="small and few, to see that it runs")
    o = parser.parse_args()
    warnings.filterwarnings("ignore", ".*self.log.*")  # there is no trainer
    torch.set_num_threads(o.threads)
    batch, size, rounds = (2, (64, 96), 2) if o.quick else (o.batch, tuple(o.size), o.rounds)
    steps = min(o.losses, 6) if o.quick and o.losses else o.losses
    data = batches(8 if steps else 1, (batch, size), o.device)
    preset = "bfloat16 and channels last" if computes_bfloat16(o.device) else "as ours: no bfloat16 here"
    print(f"torch {torch.__version__}, {o.device}, {o.threads} threads, {batch} x {size[0]} x {size[1]}, ", end="")
    print(f"preset: {preset}; {f'loss after {steps} steps' if steps else f'ms, times as fast; {rounds} rounds'}\n")
    others = ["ours fp32", "preset"] + ["compiled"] * o.compile
    columns = ["peer fp32", *others] if steps else ["", "peer fp32", *(c for other in others for c in (other, "times"))]
    print(f"| network | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for name in (name for name in NETWORKS if any(part in name for part in o.networks)):
        found = contenders(name, o.device, o.compile)
        if steps:
            cells = [learned(contender, data, steps) for contender in found.values()]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
            continue
        for what, train in (("training step", True), ("inference", False)):
            cells = row(found, data[0], train, o.device, rounds)
            print(f"| {name} | {what} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
