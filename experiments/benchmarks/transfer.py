"""What pretraining is worth: ResNet-18 and a U-Net decoder, pretrained or not, at equally many steps.

    python experiments/benchmarks/transfer.py --study voc VOC2012 --weights FILE [--keep FILE] [--seeds 0 1 2]
    python experiments/benchmarks/transfer.py --study camvid CamVid --weights FILE
    python experiments/benchmarks/transfer.py --study rooms NYU --weights FILE
    ... --quick                                              # a few steps on a few images, to see that it runs

- voc: seven frequent classes of a VOC subset, on 10, 30 and 100 % of its training images. ImageNet's weights frozen,
  ImageNet's weights fine-tuned, random weights. mIoU over the validation images, with half as much again as a crop's
  height for their shorter side.
- camvid: ImageNet's or random weights. Of four evenly spread validations the best one's network is tested, once.
- rooms: depth and normals of NYU v2, on 10, 30 and 100 % of its training frames. Encoder and decoder pretrained on
  rendered `Rooms` for three times the steps (new for each seed), ImageNet's weights, random weights. Tested at the end,
  without a choice. Normals are fitted to depth as in `nyu_multitask_resnet18.yaml`.

A seed draws the decoder's weights, the order, the transforms and which images make up the 10 and 30 % (the larger part
holds the smaller one); all networks of a seed have them in common, so differences are paired. Every cell has as many
steps, AdamW, OneCycle, bfloat16 and one thread. Answers are scored at these small sizes, which nothing published was.

FILE is a ResNet-18 with torchvision's keys. That of the results is partial: of layer4 it holds the first block's
projection alone; four 3x3 convolutions and their norms start from random. So layer4 learns as the decoder does in every
cell. The stem and layer1 to layer3 rest where "frozen" (`Freeze(stages=4)`, weights and statistics), learn at a tenth
of the rate where ImageNet's are fine-tuned, and at the whole rate from random weights and from Rooms.

With --keep every finished cell is a line of that file, and is not computed again; the tables are of all seeds in it, so
seeds may be shared out over processes. Intervals are Student's, 95 % over seeds, of the mean or of the mean difference.
"""

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import albumentations as A
import cv2
import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from scipy import stats

from densepred.callbacks import ChannelsLast, Freeze
from densepred.data import CamVid, NormalsFromDepth, NYUDepthV2DataModule, PascalVOC, Rooms
from densepred.data.camvid import CAMVID_CLASSES
from densepred.data.datamodule import DenseDataModule, Split
from densepred.data.dataset import DenseDataset, Raw, Transforms
from densepred.data.transforms import FlipLeftRight, Rescale, SampleTransforms, ScaleCrop
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.module import DensePredictor
from densepred.schedules import OneCycle
from densepred.tasks import Depth, Normals, Segmentation, Task

ANIMALS = ["background", "cat", "cow", "dog", "horse", "person", "sheep"]
RANDOM, IMAGENET, FROZEN, ROOMS = "random weights", "ImageNet", "ImageNet, frozen", "Rooms"
SLOWLY = {f"encoder.{part}.*": 0.1 for part in ("conv1", "bn1", "layer[123]")}
Size = tuple[int, int]
Samples = dict[str, list[Raw]]


class Score(NamedTuple):
    """A metric, and how the table shows it."""

    key: str
    title: str
    factor: float
    digits: int


class Study(NamedTuple):
    """What is trained on what, from which starts; `read` takes root, size and how many samples of a split at most."""

    read: Callable[[Path, Size, int | None], Samples]
    tasks: Callable[[], list[Task]]
    scores: tuple[Score, ...]
    starts: tuple[str, ...]
    shares: tuple[float, ...]
    zoom: tuple[float, float]
    rate: float
    batch: int
    size: Size
    steps: int
    validations: int = 0


def held(data: DenseDataset, rescale: Rescale, most: int | None) -> list[Raw]:
    """The samples, resized once, as arrays."""
    resize = SampleTransforms([rescale])
    return [resize(data.read(index), (0,)) for index in range(len(data))[:most]]


def read_voc(root: Path, size: Size, most: int | None) -> Samples:
    sides = {"train": 2 * size[0], "val": 3 * size[0] // 2}
    train, val = (
        held(PascalVOC(root, split, classes=ANIMALS), Rescale(short_side=sides[split]), most) for split in sides
    )
    return {"train": train, "test": val}


def read_camvid(root: Path, size: Size, most: int | None) -> Samples:
    larger = (5 * size[0] // 4, 5 * size[1] // 4)
    sizes = {"train": larger, "val": size, "test": size}
    return {split: held(CamVid(root, split), Rescale(size=side), most) for split, side in sizes.items()}


def read_rooms(root: Path, size: Size, most: int | None) -> Samples:
    nyu = NYUDepthV2DataModule(
        str(root), targets=("depth", "normals"), normals=NormalsFromDepth(window=21, blur=3.0), val_split="test"
    )
    sources = {"rooms": Rooms("train", 600, size)} | {name: nyu.dataset(name, None) for name in ("train", "test")}
    return {name: held(source, Rescale(size=size), most) for name, source in sources.items()}


MIOU = Score("test/segmentation/miou", "mIoU (%)", 100, 1)
GEOMETRY = (
    Score("test/depth/rmse", "depth RMSE (m)", 1, 3),
    Score("test/normals/mean_angle", "normals, mean angle (degrees)", 1, 1),
)
SHARES = (0.1, 0.3, 1.0)
STUDIES = {
    "voc": Study(
        read_voc, lambda: [Segmentation(ANIMALS)], (MIOU,), (FROZEN, IMAGENET, RANDOM), SHARES,
        zoom=(0.65, 1.0), rate=1e-3, batch=8, size=(96, 96), steps=260,
    ),
    "camvid": Study(
        read_camvid, lambda: [Segmentation(CAMVID_CLASSES)], (MIOU,), (IMAGENET, RANDOM), (1.0,),
        zoom=(0.8, 1.2), rate=1e-3, batch=8, size=(96, 128), steps=440, validations=4,
    ),
    # zooms divide depth, so they are of frames at the size at which they are tested; at a rate of 0.001 random weights
    # do not learn normals in so few steps
    "rooms": Study(
        read_rooms, lambda: [Depth(), Normals()], GEOMETRY, (ROOMS, IMAGENET, RANDOM), SHARES,
        zoom=(1.0, 1.3), rate=3e-3, batch=4, size=(96, 128), steps=140,
    ),
}  # fmt: skip


class Held(DenseDataset):
    """Samples that lie in memory."""

    def __init__(self, samples: list[Raw], transforms: Transforms | None, seed: int) -> None:
        super().__init__(transforms, seed)
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Raw:
        return self.samples[index]


class HeldDataModule(DenseDataModule):
    """Trains on some samples; validates on `val` where there is one, and tests on `test`."""

    def __init__(self, train: list[Raw], samples: Samples, study: Study, size: Size, seed: int) -> None:
        near = (0.8, 1.2)
        jitter = A.ColorJitter(brightness=near, contrast=near, saturation=near, hue=(-0.05, 0.05), p=0.5)
        super().__init__(
            study.batch, eval_batch_size=16, num_workers=0, seed=seed, check="none",
            train_transforms=[ScaleCrop(size=size, scale=study.zoom), FlipLeftRight(), jitter],
        )  # fmt: skip
        self.samples = {"train": train, "val": samples.get("val", samples["test"]), "test": samples["test"]}

    def dataset(self, split: Split, transforms: Transforms | None) -> Held:
        return Held(self.samples[split], transforms, self.seed)


def part(samples: list[Raw], share: float, seed: int, least: int) -> list[Raw]:
    """A share of the samples, drawn by the seed; larger shares hold the smaller ones. At least a batch."""
    order = random.Random(seed).sample(range(len(samples)), len(samples))
    return [samples[index] for index in order[: max(least, round(share * len(samples)))]]


class Cells:
    """Trains and scores the cells of a study; data are read, and Rooms learnt, when a cell first needs them."""

    def __init__(self, study: Study, root: Path, weights: Path, size: Size, steps: int, most: int | None) -> None:
        self.study, self.weights, self.size, self.steps = study, weights, size, steps
        self.samples = cache(partial(study.read, root, size, most))
        self.rooms = cache(self._rooms)

    def scores(self, start: str, share: float, seed: int) -> dict[str, float]:
        """What a network reaches that begins so and learns from this share of the training samples."""
        train = part(self.samples()["train"], share, seed, self.study.batch)
        freeze = [Freeze(stages=4)] if start == FROZEN else []
        found = self.trained(self.module(start, seed), train, self.steps, seed, freeze)
        return {score.key: found[score.key] for score in self.study.scores}

    def _rooms(self, seed: int) -> dict[str, torch.Tensor]:
        """Encoder and decoder after rendered rooms."""
        module = self.module(RANDOM, seed)
        self.trained(module, self.samples()["rooms"], 3 * self.steps, seed, [])
        return module.network.state_dict()

    def module(self, start: str, seed: int) -> DensePredictor:
        learnt = self.rooms(seed) if start == ROOMS else None
        pl.seed_everything(seed, verbose=False)
        module = DensePredictor(
            ResNetEncoder("resnet18", weights=self.weights if start in (IMAGENET, FROZEN) else None),
            partial(UNetDecoder, widths=(128, 64, 32, 16)), self.study.tasks(), share_decoder=True,
            optimizer=partial(torch.optim.AdamW, lr=self.study.rate, weight_decay=0.01, fused=True),
            lr_scheduler=partial(OneCycle, warmup=0.1), lr_scales=SLOWLY if start == IMAGENET else None,
        )  # fmt: skip
        if learnt is not None:
            module.network.load_state_dict(learnt)
        return module

    def trained(
        self, module: DensePredictor, train: list[Raw], steps: int, seed: int, callbacks: list[pl.Callback]
    ) -> dict[str, float]:
        """Trains a network and tests it, or its best validation where there are some."""
        data = HeldDataModule(train, self.samples(), self.study, self.size, seed)
        times = self.study.validations
        with tempfile.TemporaryDirectory() as folder:
            best = [ModelCheckpoint(folder, monitor="val/segmentation/miou", mode="max", save_weights_only=True)]
            trainer = pl.Trainer(
                max_steps=steps, max_epochs=-1, accelerator="auto", devices=1, precision="bf16-mixed", logger=False,
                callbacks=[ChannelsLast(), *callbacks, *(best if times else [])], enable_checkpointing=times > 0,
                limit_val_batches=1.0 if times else 0, check_val_every_n_epoch=None, num_sanity_val_steps=0,
                val_check_interval=max(1, steps // times) if times else None,
                enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(module, data)
            return dict(trainer.test(module, data, "best" if times else None, verbose=False)[0])


def spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    """Mean and Student's 95 % interval; a single value has none."""
    mean = np.mean(values)
    if len(values) < 2:
        return f"{mean:{sign}.{digits}f}"
    margin = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return f"{mean:{sign}.{digits}f} ({mean - margin:{sign}.{digits}f} to {mean + margin:{sign}.{digits}f})"


def table(study: Study, score: Score, found: list[dict[str, Any]]) -> str:
    """A row a start and a column a share; then each start's differences from random weights, seed by seed."""
    values: dict[tuple[str, float], dict[int, float]] = {}
    for line in found:
        seeds = values.setdefault((line["start"], line["share"]), {})
        seeds[line["seed"]] = score.factor * line["scores"][score.key]
    lines = [f"| {score.title} | {' | '.join(f'{share:.0%}' for share in study.shares)} |"]
    lines.append("|---" * (len(study.shares) + 1) + "|")

    def add(name: str, columns: list[list[float]], sign: str = "") -> None:
        lines.append(f"| {name} | {' | '.join(spread(c, score.digits, sign) if c else '' for c in columns)} |")

    for start in study.starts:
        add(start, [list(values.get((start, share), {}).values()) for share in study.shares])
    for start in study.starts:
        if start != RANDOM:
            pairs = [(values.get((start, s), {}), values.get((RANDOM, s), {})) for s in study.shares]
            add(f"{start} - {RANDOM}", [[a[seed] - b[seed] for seed in a if seed in b] for a, b in pairs], "+")
    return "\n".join(lines)


def finished(keep: Path | None, same: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a file that were measured alike."""
    if keep is None or not keep.is_file():
        return []
    lines = [json.loads(line) for line in keep.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if same.items() <= line.items()]


def measure(name: str, study: Study, cells: Cells, seeds: list[int], keep: Path | None) -> list[dict[str, Any]]:
    """All finished cells, those of the file included."""
    same = {"study": name, "size": list(cells.size), "steps": cells.steps, "weights": cells.weights.name}
    found = finished(keep, same)
    for cell in [{"start": a, "share": b, "seed": c} for c in seeds for b in study.shares for a in study.starts]:
        if any(cell.items() <= line.items() for line in found):
            continue
        started = time.perf_counter()
        scores = cells.scores(cell["start"], cell["share"], cell["seed"])
        line = {**same, **cell, "scores": scores, "seconds": round(time.perf_counter() - started, 1)}
        found.append(line)
        print(json.dumps(line), file=sys.stderr, flush=True)
        if keep is not None:
            with keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    return found if keep is None else finished(keep, same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the study's data: VOC 2012, CamVid or NYU v2")
    parser.add_argument("--study", choices=STUDIES, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="file of ResNet-18, ImageNet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="of every cell; each study has its own default")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="likewise, of the crops")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="finished cells, a line of JSON each")
    parser.add_argument("--quick", action="store_true", help="one seed, two steps, a few images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    study = STUDIES[options.study]
    size, steps, most = tuple(options.size or study.size), options.steps or study.steps, None
    if options.quick:
        size, steps, most, options.seeds = (64, 64), 2, 8, options.seeds[:1]
    cells = Cells(study, options.root, options.weights, size, steps, most)
    found = measure(options.study, study, cells, options.seeds, options.keep)
    print("\n\n".join(table(study, score, found) for score in study.scores))


if __name__ == "__main__":
    main()
