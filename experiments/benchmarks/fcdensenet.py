"""A training step of FC-DenseNet103: time and peak memory of a textbook network and of ours, in several ways.

    python experiments/benchmarks/fcdensenet.py                # the CPU, one thread, 3 x 224 x 224; ten minutes, 5 GB
    python experiments/benchmarks/fcdensenet.py --device cuda
    python experiments/benchmarks/fcdensenet.py --quick        # does it run

Encoder, decoder, crops and RMSprop are those of experiments/camvid_fcdensenet103.yaml, 11 classes. Contenders:

- textbook: dense blocks that grow one map by torch.cat, fp32, and cross_entropy; the same parameters, and the same
  planes once it has ours.
- ours: `DensePredictor`'s training step, fp32.
- callback Recompute: whose blocks are run a second time in the backward pass.
- option recompute: the network's own, which repeats what is cheap and no convolution.
- preset: bfloat16 autocast with ChannelsLast where the device computes bfloat16, else as ours; also with the option.

Steps take turns in a changing order, so that what else the machine does hits all alike. Times are the processor's on
the CPU with one thread, else the wall clock's; printed are the median, and how many times as fast as the textbook's
each is: the median of the ratios within a round, the lowest and the highest. Memory is that of a fresh process for each
way: its highest resident memory in two steps (VmHWM) above the level after the imports, weights, gradients and the
optimizer included; on CUDA the highest that is allocated there.
"""

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densepred.callbacks.channels_last import ChannelsLast
from densepred.callbacks.recompute import Recompute
from densepred.decoders.tiramisu import TiramisuDecoder
from densepred.encoders.fcdensenet import FCDenseNetEncoder
from densepred.half_precision import computes_bfloat16
from densepred.module import DensePredictor
from densepred.tasks.segmentation import Segmentation

CLASSES = 11
WAYS = ("textbook", "ours", "ours, callback Recompute", "ours, option recompute", "preset", "preset, option recompute")
RMSPROP = partial(torch.optim.RMSprop, lr=0.001, alpha=0.9, eps=0.001, weight_decay=0.0002)


def layer(before: int, after: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2)
    return nn.Sequential(nn.BatchNorm2d(before, eps=1e-4), nn.ReLU(inplace=True), convolution, nn.Dropout(0.2))


def block(before: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(layer(before + 16 * i, 16, 3) for i in range(count))


class Textbook(nn.Module):
    """FC-DenseNet103 as it is commonly written; the tensors come in the order of ours."""

    def __init__(self) -> None:
        super().__init__()
        down, up, width = (4, 5, 7, 10, 12), (12, 10, 7, 5, 4), 48
        self.first = nn.Conv2d(3, width, 3, padding=1)
        widths = [width := width + 16 * count for count in down]
        self.down = nn.ModuleList(block(w - 16 * count, count) for w, count in zip(widths, down, strict=True))
        self.transitions = nn.ModuleList(layer(w, w, 1) for w in widths)
        self.bottleneck = block(width, 15)
        new = [16 * count for count in (15, *up)]
        self.larger = nn.ModuleList(nn.ConvTranspose2d(n, n, 3, stride=2) for n in new[:-1])
        joined = [n + w for n, w in zip(new, widths[::-1], strict=False)]
        self.up = nn.ModuleList(block(w, count) for w, count in zip(joined, up, strict=True))
        self.score = nn.Conv2d(joined[-1] + new[-1], CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        stack, skips = self.first(image), []
        for layers, transition in zip(self.down, self.transitions, strict=True):
            stack, _ = self.grown(layers, stack)
            skips.append(stack)
            stack = F.max_pool2d(transition(stack), 2)
        stack, new = self.grown(self.bottleneck, stack)
        for larger, layers, skip in zip(self.larger, self.up, skips[::-1], strict=True):
            enlarged = larger(new)[..., : skip.shape[2], : skip.shape[3]]
            stack, new = self.grown(layers, torch.cat([enlarged, skip], dim=1))
        return self.score(stack)

    @staticmethod
    def grown(layers: nn.ModuleList, stack: Tensor) -> tuple[Tensor, Tensor]:
        """The map with all that is new, and what is new alone."""
        before = stack.shape[1]
        for dense in layers:
            stack = torch.cat([stack, dense(stack)], dim=1)
        return stack, stack[:, before:]


def ours(recompute: bool = False) -> DensePredictor:
    encoder = FCDenseNetEncoder("fc_densenet103", recompute=recompute, padded=False)
    decoder = partial(TiramisuDecoder, name="fc_densenet103", recompute=recompute)
    return DensePredictor(encoder, decoder, [Segmentation(CLASSES)], optimizer=RMSPROP)


def stepping(way: str, batch: int, side: int, device: str) -> Callable[[], Tensor]:
    """A training step of a new network of that way, on noise; returns the loss."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=device)
    labels = torch.randint(0, CLASSES, (batch, side, side), dtype=torch.uint8, device=device)
    if way == "textbook":
        module: nn.Module = Textbook().to(device)
        optimizer, scaled, target = RMSPROP(module.parameters()), image / 255, labels.long()

        def loss() -> Tensor:
            return F.cross_entropy(module(scaled), target, ignore_index=255)
    else:
        module = ours(recompute=way.endswith("recompute")).to(device)
        half = way.startswith("preset") and computes_bfloat16(device)
        with contextlib.redirect_stdout(sys.stderr):  # Recompute tells what it found
            for callback in [ChannelsLast()] * half + [Recompute()] * way.endswith("Recompute"):
                callback.setup(SimpleNamespace(callbacks=[]), module, "fit")
        optimizer = module.build_optimizer()

        def loss() -> Tensor:
            with torch.autocast(device, torch.bfloat16, enabled=half):
                return module.training_step({"image": image, "segmentation": labels}, 0)

    def step() -> Tensor:
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def check() -> int:
    """The number of parameters, where both networks have the same ones and give the same planes."""
    torch.manual_seed(0)
    textbook, network = Textbook().eval(), ours().network.eval()
    own = [key for key in network.state_dict() if key not in ("encoder.mean", "encoder.std")]
    textbook.load_state_dict(dict(zip(textbook.state_dict(), (network.state_dict()[key] for key in own), strict=True)))
    image = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        expected = network(image)["segmentation"]
        torch.testing.assert_close(textbook(image), expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    return sum(parameter.numel() for parameter in textbook.parameters())


def times(batch: int, side: int, device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step in every round, by way."""
    steps = {way: stepping(way, batch, side, device) for way in WAYS}
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    wait = torch.cuda.synchronize if device == "cuda" else dict
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds + 1):
        for way in random.sample(WAYS, len(WAYS)):
            wait()
            start = clock()
            steps[way]()
            wait()
            taken[way] += [clock() - start] if turn else []  # the first round warms up
    return taken


def resident(key: str) -> float:
    """MiB of this process's memory: now (VmRSS), at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def peak_here(way: str, batch: int, side: int, device: str) -> float:
    """MiB that two steps need at most above what the imports need; in this process."""
    before = resident("VmRSS")
    step = stepping(way, batch, side, device)
    step(), step()
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else resident("VmHWM") - before


def peak(way: str, options: argparse.Namespace) -> float:
    """As `peak_here`, of a process of its own."""
    command = [sys.executable, __file__, "--peak", way, "--device", options.device, "--threads", str(options.threads)]
    command += ["--batch", str(options.batch), "--side", str(options.side)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=WAYS, metavar="WAY", help="print the peak of memory of one way alone")
    parser.add_argument("--quick", action="store_true", help="small and few, to see that it runs")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", ".*self.log.*")  # there is no trainer
    torch.set_num_threads(options.threads)
    if options.quick:
        options.batch, options.side, options.rounds = 1, 64, 2
    shape = options.batch, options.side, options.device
    if options.peak:
        print(peak_here(options.peak, *shape))
        return
    peaks = {way: peak(way, options) for way in WAYS}
    parameters = check()
    taken = times(*shape, options.rounds)
    print(f"torch {torch.__version__}, {options.device}, {options.threads} threads, {options.rounds} rounds; ", end="")
    print(f"{options.batch} x {options.side} x {options.side}, {parameters:,} parameters\n")
    print("| training step | ms | times as fast | peak MiB | of the textbook's |\n|---|---|---|---|---|")
    for way, mine in taken.items():
        ratios = [theirs / mine for theirs, mine in zip(taken["textbook"], mine, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        share = f"{100 * peaks[way] / peaks['textbook']:.0f} %"
        print(f"| {way} | {1000 * statistics.median(mine):.0f} | {spread} | {peaks[way]:.0f} | {share} |")


if __name__ == "__main__":
    main()
