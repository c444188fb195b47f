"""Depth and normals of one real frame are learnt by heart: how far below the best constants the errors come.

    python experiments/benchmarks/overfit_depth_normals.py --nyu NYU experiments/nyu_eigen_small_coarse.yaml \\
        experiments/nyu_eigen_small.yaml --model.encoder.dropout 0

The networks and tasks are those of the experiments' files, from random weights, each starting from the one before it
where there are several, as phases of a training do. Adam trains on one frame of NYU Depth v2, shrunk, until in
evaluation mode depth's RMSE and the normals' mean angle are below `--share` of the best constants' of this frame,
or for `--steps`. Options of the model are given as in `densepred fit`. A table of Markdown comes out; the exit status
tells whether the last network reached the share.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import default_collate

from densepred.commands.arguments import import_parts
from densepred.commands.describe import build_module, read_config
from densepred.data.normals_source import NormalsFromDepth
from densepred.data.nyu import NYUDepthV2
from densepred.data.transforms.pipeline import SampleTransforms
from densepred.data.transforms.resize import Rescale
from densepred.module import DensePredictor
from densepred.tasks.base import Batch, Task

KEYS = {"depth": "rmse", "normals": "mean_angle"}


def frame(root: Path, index: int, size: tuple[int, int]) -> Batch:
    """A training frame as a batch of one, its normals fitted to its depth."""
    name = (root / "train.txt").read_text().split()[index]
    made = NormalsFromDepth(window=21, blur=3.0)
    data = NYUDepthV2(root, [name], SampleTransforms([Rescale(size)]), targets=("depth", "normals"), normals=made)
    batch: Batch = default_collate([data[0]])
    return batch


def scores(tasks: list[Task], predictions: dict[str, Tensor], batch: Batch) -> dict[str, float]:
    found = {}
    for task in tasks:
        metrics = task.metrics("val")
        metrics.update(predictions[task.name], task.target(batch))
        found[task.name] = float(metrics.compute()[KEYS[task.name]])
    return found


def constants(tasks: list[Task], batch: Batch) -> dict[str, float]:
    answers = {}
    for task in tasks:
        target = task.target(batch)
        answers[task.name] = task.constant_prediction(task.constant_statistic(target), target)
    return scores(tasks, answers, batch)


def overfit(
    module: DensePredictor, batch: Batch, steps: int, rate: float, goal: dict[str, float], bf16: bool
) -> tuple[dict, int]:
    """Trains the module; errors at the end, and the steps it took."""
    learning = [parameter for parameter in module.network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / steps)))
    for step in range(1, steps + 1):
        module.train()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = module.training_step(batch, 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 10)
        optimizer.step()
        schedule.step()
        if step % 20 == 0 or step == steps:
            with torch.inference_mode():
                found = scores(list(module.tasks), module.eval()(batch["image"]), batch)
            print(step, found, file=sys.stderr, flush=True)
            if all(found[name] <= goal[name] for name in goal):
                break
    return found, step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="experiments, phases of one training")
    parser.add_argument("--nyu", type=Path, required=True, help="folder of NYU Depth v2")
    parser.add_argument("--frame", type=int, default=0, help="position in the training list")
    parser.add_argument("--size", nargs=2, type=int, default=(100, 136), metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=400, help="of each phase")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--share", type=float, default=0.1)
    arguments, options = parser.parse_known_args()
    import_parts()
    batch = frame(arguments.nyu, arguments.frame, tuple(arguments.size))
    before: DensePredictor | None = None
    print("| network | depth RMSE (m) | of constant | mean angle (degrees) | of constant | steps | seconds |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for path in arguments.files:
        started = time.perf_counter()
        torch.manual_seed(0)
        config = read_config(path)
        config["model"]["init_args"]["init_from"] = None
        module = build_module(config, options)
        if before is not None:
            module.network.load_state_dict(before.network.state_dict(), strict=False)
        worst = constants(list(module.tasks), batch)
        goal = {name: arguments.share * value for name, value in worst.items()}
        found, steps = overfit(module, batch, arguments.steps, arguments.rate, goal, arguments.precision == "bf16")
        row = " | ".join(f"{found[name]:.3f} | {found[name] / worst[name]:.3f}" for name in KEYS)
        print(f"| {path.stem} | {row} | {steps} | {time.perf_counter() - started:.0f} |", flush=True)
        before = module
    return 0 if all(found[name] <= goal[name] for name in goal) else 1


if __name__ == "__main__":
    sys.exit(main())
