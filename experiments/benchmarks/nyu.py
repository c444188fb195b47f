"""NYU Depth v2 at 96 x 128: tasks together or alone, and depth against segmentation_models_pytorch (smp).

    python -m experiments.benchmarks.nyu NYU --weights FILE --cache FOLDER --keep FILE --study tasks
    python -m experiments.benchmarks.nyu NYU --weights FILE --cache FOLDER --keep FILE --study peer
    python -m experiments.benchmarks.nyu NYU --quick                     # seconds: does it run

Network, batch, transforms (but the jitter of colours) and schedule are those of nyu_multitask_resnet18.yaml. The
recommended preset for a processor is bfloat16 autocast with ChannelsLast. All learn from the 795 training frames,
shrunk once, and are measured on the test frames at that size, in float32, once at the end.

Study tasks: labels (13 classes), depth and normals, each alone and all from one encoder, a decoder each, by the preset,
for equally many steps at the module's default learning rate (3e-4; in short runs on held-out training frames labels and
depth alone were better at it than at the YAML's 1e-3, which is meant for more steps). Delta-m is the mean relative gain
over the tasks, above 0 where together is better.

Study peer: depth by our network and by smp's Unet on the same encoder, weights, loss (the task `Depth` makes metres and
loss of smp's plane), AdamW and one cycle, which follows the share of the budget that is used. The budget is time of the
processor on one thread, data included; ours trains by the preset, smp in float32. Two more rows tell where a difference
comes from: smp by the preset in the same time, and ours in float32 for the steps that smp's float32 had time for. The
learning rate is chosen for each network from RATES, on 100 of the training frames, in runs of half the budget with seed
0. An interval over seeds is Student's, of the relative differences within each seed; one over frames is of a bootstrap,
all seeds and networks on the same ones.

The numbers are of no published protocol. Depth comes from an 8-bit copy of the filled-in depth (steps of 3.9 cm, holes
unknown), so that truth itself is coarse. Normals are fitted to it (21 pixels after a blur of 3, at 480 x 640), and so
are pseudo-normals. Of the 654 official test frames those that test.txt lists are measured. Where a file of weights
lacks a part of ResNet-18, that part starts from random.
"""

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch.utils.data import DataLoader

from densepred.callbacks.results import constant_metrics
from densepred.data.collate import Collate
from densepred.data.listing import carve
from densepred.data.nyu_classes import NYU13_CLASSES
from densepred.data.transforms import FlipLeftRight, SampleTransforms, ScaleCrop
from densepred.reports.multitask import TaskChange, delta_m, signed_change
from densepred.sample import SAMPLE_KINDS
from densepred.tasks.base import Task
from densepred.tasks.depth import Depth
from densepred.tasks.normals import Normals
from densepred.tasks.segmentation import Segmentation
from experiments.benchmarks.nyu_training import BATCH, Frames, Ours, Peer, measured, shrunk, train

RATE = 3e-4
RATES = (1e-4, 3e-4, 1e-3)
TASKS: dict[str, Callable[[], Task]] = {
    "segmentation": partial(Segmentation, NYU13_CLASSES),
    "depth": Depth,
    "normals": Normals,
}
SHOWN = {
    "segmentation/miou": "mIoU (13 classes)",
    "segmentation/pixel_accuracy": "pixel accuracy",
    "depth/rmse": "depth RMSE (m)",
    "depth/abs_rel": "depth AbsRel",
    "depth/delta1": "depth delta1",
    "normals/mean_angle": "normals, mean angle (degrees)",
    "normals/within_30": "normals, within 30 degrees",
}
Cell = dict[str, Any]


class Bench:
    """Trains and measures cells, or takes them from the lines of JSON that were kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.size = options, (options.size[0], options.size[1])
        self.lines: list[Cell] = []
        if options.keep and options.keep.is_file():
            self.lines = [json.loads(line) for line in options.keep.read_text(encoding="utf-8").splitlines()]
        most = (16, 4) if options.quick else (None, None)
        self.train, self.test = (
            shrunk(options.root, split, self.size, limit, options.cache)
            for split, limit in zip(("train", "test"), most, strict=True)
        )

    def cell(
        self,
        kind: type[Ours | Peer],
        targets: list[str],
        seed: int,
        rate: float,
        preset: bool,
        budget: tuple[float, str],
        choosing: bool = False,
    ) -> Cell:
        """Metrics of one network.

        Args:
            kind: Whose.
            targets: Names of its tasks.
            seed: Of weights, order and transforms.
            rate: The highest learning rate.
            preset: In bfloat16 with channels last; else in float32.
            budget: So many "steps" or "seconds".
            choosing: Learn from a part of the training frames and measure on the others.
        """
        key = {
            "network": kind.__name__, "targets": targets, "seed": seed, "rate": rate, "preset": preset,
            "budget": list(budget), "choosing": choosing, "size": list(self.size),
            "weights": self.options.weights is not None, "frames": len(self.train["name"]),
        }  # fmt: skip
        for line in self.lines:
            if line["key"] == key:
                return line
        torch.manual_seed(seed)
        network = kind(self.options.weights, [TASKS[target]() for target in targets], preset)
        learn, judge = self.train, self.test
        if choosing:
            held_out = np.isin(learn["name"], carve(learn["name"].tolist(), 0.13)[1])
            learn, judge = ({name: values[part] for name, values in learn.items()} for part in (~held_out, held_out))
        augmented = SampleTransforms([ScaleCrop(size=self.size, scale=(1.0, 1.3)), FlipLeftRight()])
        begun, (amount, unit) = time.process_time(), budget

        def used(steps: int) -> float:
            return (steps if unit == "steps" else time.process_time() - begun) / amount

        steps = train(network, Frames(learn, targets, augmented, seed), rate, used)
        line = {"key": key, "steps": steps, "seconds": round(time.process_time() - begun, 1)}
        line |= measured(network, Frames(judge, targets))
        self.lines.append(line)
        if self.options.keep:
            with self.options.keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return line


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation."""
    deviation = f" ({stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{deviation}"


def header(*titles: str) -> None:
    print(f"\n| {' | '.join(titles)} |\n{'|---' * len(titles)}|")


def study_tasks(bench: Bench, seeds: list[int], steps: int) -> None:
    """Each task alone, and all together."""
    names = list(TASKS)
    cell = partial(bench.cell, Ours, rate=RATE, preset=True, budget=(steps, "steps"))
    alone = {name: [cell([name], seed) for seed in seeds] for name in names}
    together = [cell(names, seed) for seed in seeds]
    tasks = {name: make() for name, make in TASKS.items()}
    loader = DataLoader(Frames(bench.test, names), 25, collate_fn=Collate(SAMPLE_KINDS))
    constant = constant_metrics(list(tasks.values()), lambda: loader, "test")
    print(f"\n{steps} steps of {BATCH}, {len(bench.test['name'])} test frames; mean (standard deviation) over {seeds}")
    header("", "best constant predictor", "alone", "together")
    for key, title in SHOWN.items():
        both = [spread([line[key] for line in lines]) for lines in (alone[key.partition("/")[0]], together)]
        print(f"| {title} | {constant[f'test/{key}']:.3f} | {both[0]} | {both[1]} |")
    *each, all_three = (fmean(line["seconds"] for line in lines) for lines in (*alone.values(), together))
    print(f"| seconds of training | | {', '.join(f'{value:.0f}' for value in each)} | {all_three:.0f} |")
    changes: list[list[TaskChange]] = []
    for i in range(len(seeds)):
        found = []
        for name, task in tasks.items():
            metric, mode = task.monitor
            values = together[i][f"{name}/{metric}"], alone[name][i][f"{name}/{metric}"]
            found.append(TaskChange(name, metric, *values, signed_change(*values, mode)))
        changes.append(found)
    header("gain of learning together, %", *(f"seed {seed}" for seed in seeds), "mean (standard deviation)")
    rows = {f"{change.task}, {change.metric}": [found[j].change for found in changes]
            for j, change in enumerate(changes[0])}  # fmt: skip
    for title, gains in (rows | {"delta-m": [delta_m(found) for found in changes]}).items():
        percent = [100 * gain for gain in gains]
        print(f"| {title} | {' | '.join(f'{value:+.1f}' for value in percent)} | {spread(percent, 1)} |")


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """By how many percent the mean of ours is above theirs, and 95 % intervals over seeds (NaN of one) and frames.

    Shape:
        ours, theirs: (seeds, frames).
    """
    each = 100 * (ours.mean(1) / theirs.mean(1) - 1)
    half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else np.nan
    draws = np.random.default_rng(0).integers(ours.shape[1], size=(2000, ours.shape[1]))
    drawn = 100 * (ours[:, draws].mean(2) / theirs[:, draws].mean(2) - 1).mean(0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(each.mean()), (each.mean() - half, each.mean() + half), (low, high)


def study_peer(bench: Bench, seeds: list[int], seconds: float) -> None:
    """Depth against smp's Unet."""
    cell, rates = partial(bench.cell, targets=["depth"]), {}
    header(f"RMSE (m) on training frames held out, {seconds / 2:g} s", *(f"rate {rate:g}" for rate in RATES))
    for kind, name in ((Peer, "smp"), (Ours, "ours")):
        short = {"seed": 0, "preset": kind is Ours, "budget": (seconds / 2, "seconds"), "choosing": True}
        tried = {rate: cell(kind, rate=rate, **short)["depth/rmse"] for rate in RATES}
        rates[kind] = min(tried, key=lambda rate: tried[rate])
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in tried.values())} |", flush=True)
    timed = {"smp, fp32": (Peer, False), "ours, preset": (Ours, True), "smp, preset": (Peer, True)}
    untimed = "ours, fp32, steps of smp, fp32"
    rows: dict[str, list[Cell]] = {title: [] for title in (*timed, untimed)}
    for seed in seeds:
        for title, (kind, preset) in timed.items():
            budget = (seconds, "seconds")
            rows[title].append(cell(kind, seed=seed, rate=rates[kind], preset=preset, budget=budget))
        budget = (rows["smp, fp32"][-1]["steps"], "steps")
        rows[untimed].append(cell(Ours, seed=seed, rate=rates[Ours], preset=False, budget=budget))
    theirs = np.array([line["frames"] for line in rows["smp, fp32"]])
    print(f"\n{len(bench.test['name'])} test frames; mean (standard deviation) over {seeds}")
    header("depth", "rate", "seconds", "steps", "RMSE (m)", "AbsRel", "delta1", "RMSE, % above smp, fp32",
           "95 % over seeds", "over frames")  # fmt: skip
    for title, lines in rows.items():
        cells = [f"{lines[0]['key']['rate']:g}"]
        cells += [spread([line[key] for line in lines], 0) for key in ("seconds", "steps")]
        cells += [spread([line[f"depth/{key}"] for line in lines]) for key in ("rmse", "abs_rel", "delta1")]
        mean, *ranges = difference(np.array([line["frames"] for line in lines]), theirs)
        gain = [f"{mean:+.1f}", *(f"{low:+.1f} to {high:+.1f}" for low, high in ranges)]
        print(f"| {title} | {' | '.join(cells + (['', '', ''] if title == 'smp, fp32' else gain))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder that holds rgb, depth and label40")
    parser.add_argument("--weights", metavar="FILE", help="torchvision's ResNet-18 or a part of it; random without")
    parser.add_argument("--study", choices=["tasks", "peer"], help="this one alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, nargs=2, default=[96, 128], metavar=("H", "W"), help="multiples of 32")
    parser.add_argument("--steps", type=int, default=330, help="of each training of the tasks")
    parser.add_argument("--seconds", type=float, default=50, help="of the processor, for each training against smp")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="keep the shrunk frames, normals included")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep finished cells, and compute none of them again")
    parser.add_argument("--quick", action="store_true", help="few frames, steps and seeds, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps, options.seconds = options.seeds[:2], 1, 0.3
    warnings.filterwarnings("ignore", ".*self.log.*")  # there is no trainer
    logging.getLogger("densepred.encoders.loading").setLevel(logging.ERROR)  # what the file lacks, once a network
    torch.set_num_threads(1)
    bench = Bench(options)
    if options.study != "peer":
        study_tasks(bench, options.seeds, options.steps)
    if options.study != "tasks":
        study_peer(bench, options.seeds, options.seconds)


if __name__ == "__main__":
    main()
