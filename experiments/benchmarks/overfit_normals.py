"""Networks of normals overfit one real frame of NYU Depth v2: the mean angle against the constant predictor's.

    python experiments/benchmarks/overfit_normals.py --nyu NYU                      # all on normals alone
    python experiments/benchmarks/overfit_normals.py --nyu NYU experiments/nyu_wang_global.yaml --size 120 160
    ... experiments/nyu_wang_local.yaml --model.decoder.dropout 0                   # options of the model, as in fit

The networks are those of the experiments' files, from random weights, with their own tasks. Adam trains each on the
first training frame, shrunk, whose normals are fitted to its depth, until in evaluation mode the mean angle is under
`--share` of the best constant normal's; it has `--steps` steps, at a rate that falls to 0 along a cosine. Beside it
stands what cells of the network's grid say of the truth: the mean true normals of cells, encoded, upsampled and decoded
as the network's are. A table of Markdown comes out; the exit status tells whether all came under the share.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from densepred.commands.arguments import import_parts
from densepred.commands.describe import build_module, read_config
from densepred.data.nyu import NYUDepthV2
from densepred.data.transforms.pipeline import SampleTransforms
from densepred.data.transforms.resize import Rescale
from densepred.module import DensePredictor
from densepred.tasks.base import Task, upsample
from densepred.tasks.codebook import CodebookNormals, cell_normals

EXPERIMENTS = Path(__file__).parents[1]


def sample(root: Path, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The first training frame and its normals, shrunk: (1, 3, H, W) uint8 and (1, 3, H, W)."""
    name = (root / "train.txt").read_text().split()[0]
    frame = NYUDepthV2(root, [name], SampleTransforms([Rescale(size)]), targets=("normals",))[0]
    image, normals = frame["image"], frame["normals"]
    assert isinstance(image, Tensor)
    assert isinstance(normals, Tensor)
    return image[None], normals[None]


def mean_angle(task: Task, prediction: Tensor, target: Tensor) -> float:
    """Degrees, over the known pixels."""
    metric = task.metrics("val")
    metric.update(prediction, target)
    return float(metric.compute()["mean_angle"])


def ceiling(task: Task, normals: Tensor, planes: Tensor) -> float:
    """The mean angle of the best cells of the planes' grid, as the task decodes them."""
    cells = cell_normals(normals, (planes.shape[-2], planes.shape[-1]))
    said = task.codebook.encode(cells).clamp(min=1e-6).log() if isinstance(task, CodebookNormals) else cells
    size = (normals.shape[-2], normals.shape[-1])
    return mean_angle(task, task.predict(task.activate(upsample(said, size))), normals)


def overfit(
    module: DensePredictor, image: Tensor, normals: Tensor, steps: int, rate: float, share: float
) -> tuple[str, bool]:
    """Trains; the row of the table behind the experiment's name, and whether it came under the share."""
    started = time.perf_counter()
    task = module.tasks[0]
    assert isinstance(task, Task)
    constant = mean_angle(task, task.constant_prediction(task.constant_statistic(normals), normals), normals)
    optimizer = torch.optim.Adam(module.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    size = module.network.padded_size(image.shape[-2], image.shape[-1])
    angle, best, step = constant, 0.0, 0
    for step in range(1, steps + 1):
        module.network.train()
        optimizer.zero_grad()
        planes = module.network.planes(image)[task.name]
        batch = {"image": image.new_empty(1, 1, *size), **task.pad({task.name: normals}, size)}
        task.loss_from_planes(planes, batch).backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 10)
        optimizer.step()
        schedule.step()
        if step % 20 and step != steps:
            continue
        with torch.inference_mode():
            planes = module.network.eval().planes(image)[task.name]
            prediction = task.predict_from_planes(planes, size)[..., : image.shape[-2], : image.shape[-1]]
            angle = mean_angle(task, prediction, normals)
            best = best or ceiling(task, normals, planes)
        if angle < share * constant:
            break
    cells = f"{planes.shape[-2]} x {planes.shape[-1]}"
    seconds = time.perf_counter() - started
    ratio = angle / constant
    row = f"{cells} | {best:.2f} | {angle:.2f} | {constant:.1f} | {ratio:.3f} | {step} | {seconds:.0f} |"
    return row, ratio < share


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="experiments (default: nyu_normals_* and nyu_wang_*)")
    parser.add_argument(
        "--nyu", type=Path, required=True, help="folder of NYU Depth v2, as `densepred prepare` makes it"
    )
    parser.add_argument("--size", nargs=2, type=int, default=(78, 104), metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    arguments, options = parser.parse_known_args()
    import_parts()
    files = arguments.files or sorted([*EXPERIMENTS.glob("nyu_normals_*.yaml"), *EXPERIMENTS.glob("nyu_wang_*.yaml")])
    image, normals = sample(arguments.nyu, tuple(arguments.size))
    print("| experiment's network | cells | means of such cells | mean angle | constant | ratio | steps | seconds |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    reached = True
    for path in files:
        torch.manual_seed(arguments.seed)
        module = build_module(read_config(path), options)
        row, met = overfit(module, image, normals, arguments.steps, arguments.rate, arguments.share)
        reached &= met
        print(f"| `{path.stem}` | {row}", flush=True)
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
