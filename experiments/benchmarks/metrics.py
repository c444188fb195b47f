"""Updating the confusion matrix of labels: densepred's metric, torchmetrics' and NumPy's bincount; counts and time.

    python experiments/benchmarks/metrics.py                   # the CPU, one thread, 8 x 512 x 512, 21 classes
    python experiments/benchmarks/metrics.py --device cuda
    python experiments/benchmarks/metrics.py --quick           # does it run

All count the same predictions against the same labels, of which some are void (255); that the matrices are equal, as
integers, is checked. From labels: `SegmentationMetrics.update`, `MulticlassJaccardIndex.update` with and without
`validate_args`, and NumPy (from the device and back to the host's matrix). From logits of the image's size, float32:
`Segmentation.predict` and update, and torchmetrics, which takes the argmax itself.

Labels are uint8, as datasets of densepred and its predictions are; the rows "int64" give torchmetrics and NumPy the
dtype that they compute in. Contenders take turns, so that what else the machine does hits all alike. Times are the
processor's on the CPU with one thread, else the wall clock's: the median, and how many times as long as ours each
takes: the median of the ratios within a round, the lowest and the highest.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex

from densepred.metrics.segmentation import SegmentationMetrics
from densepred.tasks.segmentation import Segmentation

Contender = Callable[[], Tensor | np.ndarray]
"""Counts a batch into a matrix (true, predicted) of its own, which it returns."""


def data(batch: int, side: int, classes: int, device: str) -> tuple[Tensor, Tensor]:
    """Logits (B, C, H, W) that are right at most pixels, and labels (B, H, W), a tenth of them void; uint8."""
    numbers = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (batch, side, side), generator=numbers)
    logits = torch.randn(batch, classes, side, side, generator=numbers)
    logits.scatter_add_(1, labels[:, None], torch.full((batch, 1, side, side), 3.0))
    labels[torch.rand(labels.shape, generator=numbers) < 0.1] = 255
    return logits.to(device), labels.to(torch.uint8).to(device)


def ours(prediction: Tensor, target: Tensor, metric: SegmentationMetrics) -> Tensor:
    metric.update(prediction, target)
    return metric.confusion[0, :-1, :-1]


def ours_of_logits(logits: Tensor, target: Tensor, metric: SegmentationMetrics, task: Segmentation) -> Tensor:
    return ours(task.predict(logits), target, metric)


def theirs(prediction: Tensor, target: Tensor, metric: MulticlassJaccardIndex) -> Tensor:
    metric.update(prediction, target)
    return metric.confmat


def bincount(prediction: Tensor, target: Tensor, matrix: np.ndarray) -> np.ndarray:
    classes = len(matrix)
    predicted, true = prediction.cpu().numpy(), target.cpu().numpy()
    known = true != 255
    cells = classes * true[known].astype(np.int64) + predicted[known]
    matrix += np.bincount(cells, minlength=classes**2).reshape(classes, classes)
    return matrix


def contenders(logits: Tensor, target: Tensor) -> dict[str, dict[str, Contender]]:
    """By what they read; the first of each is ours."""
    classes, device = logits.shape[1], logits.device
    task = Segmentation(classes)
    prediction = task.predict(logits)
    wide = prediction.long(), target.long()
    jaccard = partial(MulticlassJaccardIndex, classes, ignore_index=255)

    def new() -> SegmentationMetrics:
        return SegmentationMetrics(classes).to(device)

    def matrix() -> np.ndarray:
        return np.zeros((classes, classes), dtype=np.int64)

    return {
        "labels": {
            "ours": partial(ours, prediction, target, new()),
            "torchmetrics": partial(theirs, prediction, target, jaccard().to(device)),
            "torchmetrics, int64": partial(theirs, *wide, jaccard().to(device)),
            "torchmetrics, int64, unchecked": partial(theirs, *wide, jaccard(validate_args=False).to(device)),
            "NumPy": partial(bincount, prediction, target, matrix()),
            "NumPy, int64": partial(bincount, *wide, matrix()),
        },
        "logits": {
            "ours": partial(ours_of_logits, logits, target, new(), task),
            "torchmetrics": partial(theirs, logits, target, jaccard().to(device)),
            "torchmetrics, int64, unchecked": partial(theirs, logits, wide[1], jaccard(validate_args=False).to(device)),
        },
    }


def check(found: dict[str, Contender]) -> int:
    """How many pixels all of them counted, each in the same cell."""
    matrices = {name: torch.as_tensor(count()).cpu() for name, count in found.items()}
    for name, matrix in matrices.items():
        if matrix.dtype != torch.int64 or not torch.equal(matrix, matrices["ours"]):
            raise SystemExit(f"{name} counts otherwise than ours")
    return int(matrices["ours"].sum())


def seconds(run: Callable[[], object], device: str) -> float:
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def measure(found: dict[str, Contender], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds in every round, by contender; counting them has warmed them up."""
    rounded = [{name: seconds(run, device) for name, run in found.items()} for _ in range(rounds)]
    return {name: [taken[name] for taken in rounded] for name in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--quick", action="store_true", help="small and few, to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batch, side, rounds = (2, 128, 3) if options.quick else (options.batch, options.side, options.rounds)
    logits, target = data(batch, side, options.classes, options.device)
    print(f"torch {torch.__version__}, {options.device}, {options.threads} threads, {rounds} rounds; ", end="")
    print(f"{batch} x {side} x {side} labels of {options.classes} classes\n")
    print("| from | contender | ms an update | times ours |\n|---|---|---|---|")
    counted = {}
    for kind, found in contenders(logits, target).items():
        counted[kind] = check(found)
        measured = measure(found, rounds, options.device)
        for name, taken in measured.items():
            ratios = [other / mine for other, mine in zip(taken, measured["ours"], strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {kind} | {name} | {1000 * statistics.median(taken):.1f} | {'' if name == 'ours' else spread} |")
    print(f"\nEqual counts: {', '.join(f'{pixels} pixels from {kind}' for kind, pixels in counted.items())}.")


if __name__ == "__main__":
    main()
