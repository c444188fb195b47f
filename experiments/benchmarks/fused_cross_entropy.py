"""Cross-entropy fused with upsampling against interpolate + cross_entropy: time, memory and difference.

    python experiments/benchmarks/fused_cross_entropy.py            # the CPU, one thread; about a minute
    python experiments/benchmarks/fused_cross_entropy.py --device cuda

Times are of forward and backward, and of labels, taken in turn (one run of each, again and again), so that a busy
machine slows both; the ratio is taken within each pair, and its median and range are printed. Memory is what a fresh
process needs at its peak above what it held before the loss (on the CPU: resident memory, read by a thread).
"""

import argparse
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from densepred.losses.bands import upsampled_labels
from densepred.losses.fused import upsampled_cross_entropy

CASES = {  # batch, classes, stride, height, width
    "VOC, stride 8": (4, 21, 8, 480, 480),
    "VOC, stride 32": (4, 21, 32, 480, 480),
    "NYU, 40 classes, stride 4": (4, 40, 4, 480, 640),
    "ADE, 150 classes, stride 8": (2, 150, 8, 512, 512),
    "CamVid, stride 1": (2, 11, 1, 360, 480),
    "CamVid, stride 1, channels last": (2, 11, 1, 360, 480),
    "odd, stride 16": (4, 21, 16, 481, 353),
}


def inputs(case: str, device: str) -> tuple[Tensor, Tensor]:
    batch, classes, stride, height, width = CASES[case]
    torch.manual_seed(0)
    planes = torch.randn(batch, classes, -(-height // stride), -(-width // stride), device=device) * 3
    if case.endswith("channels last"):
        planes = planes.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, classes, (batch, height, width), dtype=torch.uint8, device=device)
    labels[:, :20] = 255
    return planes, labels


def plain_loss(planes: Tensor, labels: Tensor) -> Tensor:
    logits = F.interpolate(planes, size=labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels.long(), ignore_index=255)


def plain_labels(planes: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(planes, size=labels.shape[1:], mode="bilinear", align_corners=False).argmax(1)


def banded_labels(planes: Tensor, labels: Tensor) -> Tensor:
    return upsampled_labels(planes, (labels.shape[1], labels.shape[2]), torch.uint8)


def step(loss: Callable[[Tensor, Tensor], Tensor], planes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    planes = planes.detach().requires_grad_()
    value = loss(planes, labels)
    value.backward()
    return value.detach(), planes.grad


def seconds(run: Callable[[], object], device: str) -> float:
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ratios(plain: Callable[[], object], ours: Callable[[], object], device: str, runs: int) -> str:
    plain(), ours()
    pairs = [(seconds(plain, device), seconds(ours, device)) for _ in range(runs)]
    speedups = [a / b for a, b in pairs]
    milliseconds = [1000 * statistics.median(side) for side in zip(*pairs, strict=True)]
    spread = f"{statistics.median(speedups):.1f}x ({min(speedups):.1f} to {max(speedups):.1f})"
    return f"{milliseconds[0]:7.1f} ms -> {milliseconds[1]:6.1f} ms, {spread}"


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def peak(case: str, device: str, fused: bool, answer: multiprocessing.Queue) -> None:
    """Peak memory of one step above what was held before, in bytes; runs in a process of its own."""
    torch.set_num_threads(1)
    planes, labels = inputs(case, device)
    loss = upsampled_cross_entropy if fused else plain_loss
    small = planes[:1, :, :2, :2].contiguous(), labels[:1, :16, :16].contiguous()
    step(loss, *small)  # what is loaded on first use is not the loss's
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(loss, planes, labels)
        answer.put(torch.cuda.max_memory_allocated() - before)
        return
    highest, running, before = 0, True, resident()

    def watch() -> None:
        nonlocal highest
        while running:
            highest = max(highest, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    step(loss, planes, labels)
    running = False
    watcher.join()
    answer.put(highest - before)


def peak_megabytes(case: str, device: str, fused: bool) -> float:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=peak, args=(case, device, fused, answer))
    process.start()
    bytes_ = answer.get()
    process.join()
    return bytes_ / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, runs = arguments.device, arguments.runs
    print(f"torch {torch.__version__}, {device}, {arguments.threads} threads, {runs} pairs of runs a figure")
    for case, (batch, classes, stride, height, width) in CASES.items():
        planes, labels = inputs(case, device)
        (value, gradient), (expected, expected_gradient) = (
            step(loss, planes, labels) for loss in (upsampled_cross_entropy, plain_loss)
        )
        error = (gradient - expected_gradient).abs().max() / expected_gradient.abs().max()
        differing = (banded_labels(planes, labels) != plain_labels(planes, labels)).sum().item()
        print(f"\n{case}: {batch} x {classes} planes at stride {stride}, {height} x {width}")
        steps = ratios(
            lambda p=planes, t=labels: step(plain_loss, p, t),
            lambda p=planes, t=labels: step(upsampled_cross_entropy, p, t),
            device,
            runs,
        )
        print(f"  forward + backward {steps}")
        found = ratios(
            lambda p=planes, t=labels: plain_labels(p, t),
            lambda p=planes, t=labels: banded_labels(p, t),
            device,
            runs,
        )
        print(f"  labels             {found}")
        before, after = (peak_megabytes(case, device, fused) for fused in (False, True))
        print(f"  peak memory        {before:7.1f} MB -> {after:6.1f} MB, {100 * after / before:.0f} %")
        print(f"  difference         loss {abs(value - expected):.1e}, gradient {error:.1e} of its largest,", end=" ")
        print(f"{differing} of {labels.numel()} labels")


if __name__ == "__main__":
    main()
