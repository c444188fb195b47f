"""A small U-Net on ISBI 2012: which cells its membranes split and merge, in cross-validation over the stack.

    python experiments/benchmarks/isbi.py ISBI2012 [--picture FILE] [--quick]

The 30 labelled slices are cut into five contiguous folds of six (neighbouring slices look alike). For each fold a
U-Net learns from the other 24 as in experiments/isbi_unet.yaml, with its augmentation and border weights, but smaller:
padded, with batch norm, narrower, tiles of `--size`, AdamW with one cycle for `--steps` steps, bfloat16 where the
device computes it. It predicts whole slices, each once. Whoever scores cuts the probability of cells at a threshold:
the best for each score on the fold's own 24 training slices, of 0.05 to 0.95; beside it always 0.5.

Beside it stand proposals that nothing was learnt for: all cell, and the grey values blurred by two pixels, cut at a
threshold that is chosen in the same way. The columns are those of `densepred.metrics.NeuriteMetrics`.

The published figures are the U-Net paper's (arXiv:1505.04597, table 1): for V_Rand 1 minus its "Rand error", for 1 - F
of pixels its "pixel error", as the challenge's page defines it. They are of the challenge's own 30 test slices, whose
labels were never published, with all 30 slices learnt from, the full network, the mean of seven turned views, and the
threshold that is best on the test slices.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from densepred.callbacks.channels_last import ChannelsLast
from densepred.data.isbi import ISBI2012, ISBI_CLASSES, ISBIDataModule
from densepred.data.transforms import ElasticDeformation, Roll, ScaleCrop
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.unet import UNetEncoder
from densepred.half_precision import computes_bfloat16, default_device
from densepred.inference.predictor import Predictor
from densepred.metrics.neurites import NeuriteMetrics, segments, thinned
from densepred.module import DensePredictor
from densepred.palettes import voc_palette
from densepred.schedules import OneCycle
from densepred.tasks.segmentation import Segmentation

FOLDS, HELD_OUT = 5, 6
THRESHOLDS = [round(0.05 * step, 2) for step in range(1, 20)]
COLUMNS = {
    "v_rand_thinned": "V_Rand, thinned", "v_info_thinned": "V_Info, thinned", "v_rand": "V_Rand", "v_info": "V_Info",
    "pixel_error": "pixel error", "cell_error": "1 - F of pixels",
}  # fmt: skip
PUBLISHED = {
    "U-Net": {"v_rand": 0.9618, "cell_error": 0.0611},
    "human": {"v_rand": 0.9979, "cell_error": 0.0010},
}
PANEL = 256

Scores = dict[str, float]


class Stack:
    """All slices: images (N, H, W) uint8, and labels (N, H, W), 1 in cells."""

    def __init__(self, root: Path) -> None:
        slices = ISBI2012(root, "all")
        samples = [slices[index] for index in range(len(slices))]
        self.images = torch.stack([sample["image"][0] for sample in samples])
        self.labels = torch.stack([sample["segmentation"] for sample in samples])
        self.root, self.names = root, slices.names

    def held_out(self, fold: int) -> list[int]:
        """Where the slices of a fold are."""
        return [self.names.index(name) for name in ISBI2012(self.root, "val", HELD_OUT, fold).names]

    def learnt(self, fold: int) -> list[int]:
        return [index for index in range(len(self.names)) if index not in self.held_out(fold)]


def trained(stack: Stack, fold: int, options: argparse.Namespace) -> DensePredictor:
    """The U-Net of a fold, which has not seen its slices."""
    size = (options.size, options.size)
    data = ISBIDataModule(
        str(stack.root), HELD_OUT, fold, border_weights=True, batch_size=options.batch, num_workers=0,
        seed=options.seed, train_transforms=[
            Roll(limit=180.0, p=0.75), ElasticDeformation(sigma=10.0, grid=3), ScaleCrop(size=size, scale=(1.0, 1.0)),
            A.RandomBrightnessContrast((-0.2, 0.2), (-0.2, 0.2), p=0.5),
        ],
    )  # fmt: skip
    pl.seed_everything(options.seed, verbose=False)
    encoder = UNetEncoder(in_channels=1, widths=tuple(options.widths), dropout=0.5)
    decoder = partial(
        UNetDecoder, widths=tuple(options.widths[-2::-1]), upsampling="transposed", initialisation="kaiming"
    )
    module = DensePredictor(
        encoder, decoder, [Segmentation(ISBI_CLASSES)],
        optimizer=partial(torch.optim.AdamW, lr=options.rate, weight_decay=0.01),
        lr_scheduler=partial(OneCycle, warmup=0.1),
    )  # fmt: skip
    trainer = pl.Trainer(
        max_steps=options.steps, max_epochs=-1, accelerator="auto", devices=1, logger=False, limit_val_batches=0,
        precision="bf16-mixed" if computes_bfloat16(default_device()) else "32-true", callbacks=[ChannelsLast()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return module.cpu().eval()


def cells_of(module: DensePredictor, images: Tensor) -> Tensor:
    """The probability of cell in whole slices (N, H, W)."""
    predictor = Predictor.of(module)
    return torch.stack([predictor(image[None], evidence=True).probabilities()[1] for image in images])


def scored(cells: Tensor, labels: Tensor, threshold: float) -> Scores:
    """The scores of slices at a threshold; like the challenge, above it is cell."""
    metrics = NeuriteMetrics()
    metrics.update((cells > threshold).long(), labels)
    scores = {name: float(value) for name, value in metrics.compute().items()}
    return scores | {"cell_error": 1 - scores["cell_f1"]}


def best(learnt: dict[float, Scores], name: str) -> float:
    """The threshold of a score that is best on the slices it was learnt from."""
    choose = min if name.endswith("error") else max
    return choose(learnt, key=lambda threshold: learnt[threshold][name])


def judged(cells: Tensor, stack: Stack, fold: int, thresholds: list[float]) -> tuple[Scores, Scores, Scores]:
    """Held-out scores at the thresholds that are best on the training slices, these thresholds, and scores at 0.5."""
    learnt, held_out = stack.learnt(fold), stack.held_out(fold)
    on_learnt = {threshold: scored(cells[learnt], stack.labels[learnt], threshold) for threshold in thresholds}
    at = {name: best(on_learnt, name) for name in COLUMNS}
    found = {threshold: scored(cells[held_out], stack.labels[held_out], threshold) for threshold in {*at.values(), 0.5}}
    return {name: found[at[name]][name] for name in COLUMNS}, at, found[0.5]


def table(folds: dict[str, tuple[Scores, Scores]], means: dict[str, list[Scores]]) -> str:
    """Rows of each fold, of means over folds, and the published ones."""
    rows = {f"slices {name}, chosen": chosen for name, (chosen, _) in folds.items()}
    rows |= {f"slices {name}, 0.5": half for name, (_, half) in folds.items()}
    lines = [f"| proposal and threshold | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{scores[key]:.4f}' for key in COLUMNS)} |" for name, scores in rows.items()]
    for name, scores in means.items():
        values = {key: np.array([one[key] for one in scores]) for key in COLUMNS}
        spread = {key: f" ({value.std(ddof=1):.4f})" if len(value) > 1 else "" for key, value in values.items()}
        lines.append(f"| {name}, mean | {' | '.join(f'{values[key].mean():.4f}{spread[key]}' for key in COLUMNS)} |")
    for name, scores in PUBLISHED.items():
        cells = [f"{scores[key]:.4f}" if key in scores else "" for key in COLUMNS]
        lines.append(f"| published: {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def coloured(cells: np.ndarray) -> np.ndarray:
    """The segments of a mask in colours, (H, W, 3)."""
    pieces = thinned(segments(cells))
    return np.array(voc_palette(256), np.uint8)[np.where(pieces > 0, 1 + pieces % 255, 0)]


def panels(stack: Stack, index: int, cells: Tensor, threshold: float) -> list[np.ndarray]:
    """A slice, its true segments, the probability of cell, and the segments at a threshold."""
    grey = [plane.numpy()[..., None].repeat(3, -1) for plane in (stack.images[index], (255 * cells).byte())]
    return [grey[0], coloured(stack.labels[index].numpy() == 1), grey[1], coloured((cells > threshold).numpy())]


def picture(rows: list[list[np.ndarray]]) -> Image.Image:
    """A row a slice."""
    titles = ("slice", "true segments", "probability of cell", "proposed segments")
    sheet = Image.new("RGB", (len(titles) * (PANEL + 4), len(rows) * (PANEL + 4) + 14), "white")
    for column, title in enumerate(titles):
        ImageDraw.Draw(sheet).text((column * (PANEL + 4) + 4, 1), title, fill="black")
        for row, shown in enumerate(rows):
            small = cv2.resize(shown[column], (PANEL, PANEL), interpolation=cv2.INTER_AREA)
            sheet.paste(Image.fromarray(small), (column * (PANEL + 4) + 2, row * (PANEL + 4) + 14))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder with image and label")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64, 128, 256], help="of levels, finest first")
    parser.add_argument("--size", type=int, default=192, help="side of the tiles it learns from")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="write three held-out slices there")
    parser.add_argument("--quick", action="store_true", help="a few steps of one fold, to see that it runs")
    options = parser.parse_args()
    folds, thresholds = FOLDS, THRESHOLDS
    if options.quick:
        folds, thresholds = 1, [0.3, 0.7]
        options.widths, options.size, options.steps = [8, 16, 32], 96, 4
    stack = Stack(options.root)
    blurred = torch.stack([torch.from_numpy(cv2.GaussianBlur(one.numpy(), (0, 0), 2)) for one in stack.images]) / 255
    rows, shown = {}, []
    means: dict[str, list[Scores]] = {"U-Net, chosen": [], "U-Net, 0.5": [], "grey values, chosen": [], "all cell": []}
    for fold in range(folds):
        start = time.perf_counter()
        module = trained(stack, fold, options)
        fitted = time.perf_counter()
        cells = cells_of(module, stack.images)
        chosen, at, half = judged(cells, stack, fold, thresholds)
        held_out = stack.held_out(fold)
        name = f"{stack.names[held_out[0]]}-{stack.names[held_out[-1]]}"
        rows[name] = (chosen, half)
        grey = judged(blurred, stack, fold, thresholds)[0]
        everywhere = scored(torch.ones(len(held_out), *cells.shape[1:]), stack.labels[held_out], 0.5)
        for values, scores in zip(means.values(), (chosen, half, grey, everywhere), strict=True):
            values.append(scores)
        middle = held_out[len(held_out) // 2]
        shown.append(panels(stack, middle, cells[middle], at["v_rand_thinned"]))
        print(f"slices {name}: {fitted - start:.0f} s of training, {time.perf_counter() - fitted:.0f} s of scoring; "
              f"thresholds {', '.join(f'{COLUMNS[key]} {at[key]:g}' for key in at)}", flush=True)  # fmt: skip
    print(f"\n{table(rows, means)}")
    if options.picture:
        picture(shown[::2][:3]).quantize(128).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
