"""What a CRF behind an FCN-8s is worth: none, a dense CRF afterwards, and CRF-RNN trained with the network.

    python experiments/benchmarks/crf_rnn.py VOC2012 [--weights FILE] [--seeds 0 1 2] [--keep FOLDER] [--quick]

For each seed an FCN-8s on ResNet-18 is trained on the seven frequent classes of a VOC subset. From its end two networks
go on for equally many steps on the same images in the same order: it alone, and with `CRFAsRNN` behind it. The dense
CRF afterwards has the parameters that CRF-RNN starts with, and works on the network that went on alone. mIoU is over
the validation images at the networks' size; the interval of each difference is that of a bootstrap over images, all
seeds and both networks on the same ones. With --keep each seed's confusion matrices are kept, and not computed again.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from densepred.data.transforms import FlipLeftRight, Rescale, ScaleCrop
from densepred.data.voc import PascalVOCDataModule
from densepred.decoders.fcn import FCNDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.module import DensePredictor
from densepred.refine.crf_rnn import CRFAsRNN
from densepred.refine.dense_crf import DenseCRF
from densepred.tasks.segmentation import Segmentation

CLASSES = ["background", "cat", "cow", "dog", "horse", "person", "sheep"]
LEARNING_RATE = 1e-4
NAMES = ("FCN-8s", "with a dense CRF afterwards", "CRF-RNN")


def kernels(size: int) -> dict[str, float]:
    """The published widths of positions, for images whose shorter side was 375; of colours 10, not 3, as small images
    are less smooth."""
    return {"smooth": 3 * size / 375, "near": 160 * size / 375, "colour": 10.0}


def data_of(root: Path, size: int, batch_size: int, seed: int) -> PascalVOCDataModule:
    crop = ScaleCrop(size=(size, size), scale=(0.0022 * size, 0.0047 * size))
    return PascalVOCDataModule(
        root=str(root), classes=CLASSES, batch_size=batch_size, eval_batch_size=1, num_workers=0, seed=seed,
        train_transforms=[crop, FlipLeftRight()], eval_transforms=[Rescale(short_side=size)],
    )  # fmt: skip


def module_of(weights: str | None, rate: float, refine: CRFAsRNN | None = None, start: Path | None = None):
    encoder = ResNetEncoder("resnet18", weights=weights if start is None else None)
    return DensePredictor(
        encoder, FCNDecoder, [Segmentation(CLASSES)], refine=refine, init_from=start,
        lr_scales={"refine.*": 100} if refine is not None else None,
        optimizer=partial(torch.optim.AdamW, lr=rate, weight_decay=0.01),
    )  # fmt: skip


def trained(module: DensePredictor, data: PascalVOCDataModule, steps: int, seed: int) -> DensePredictor:
    pl.seed_everything(seed, verbose=False)
    trainer = pl.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, limit_val_batches=0, precision="32-true",
    )  # fmt: skip
    trainer.fit(module, data)
    return module.eval()


def confusion(labels: Tensor, target: Tensor) -> Tensor:
    known = target != 255
    codes = len(CLASSES) * target[known].long() + labels[known].long()
    return torch.bincount(codes, minlength=len(CLASSES) ** 2).view(len(CLASSES), -1)


@torch.inference_mode()
def scored(
    alone: DensePredictor, refined: DensePredictor, crf: DenseCRF, data: PascalVOCDataModule, images: int | None
) -> Tensor:
    """A confusion matrix for each of the three and each image (3, images, classes, classes)."""
    data.setup("validate")
    found = []
    for index, batch in enumerate(data.val_dataloader()):
        if images is not None and index == images:
            break
        image, target = batch["image"], batch["segmentation"][0]
        scores = alone.network(image)["segmentation"]
        answers = (scores, crf(scores, image), refined.network(image)["segmentation"])
        found.append(torch.stack([confusion(answer[0].argmax(0), target) for answer in answers]))
    return torch.stack(found, dim=1)


def one_seed(arguments: argparse.Namespace, seed: int) -> Tensor:
    data, widths = partial(data_of, arguments.root, arguments.size, seed=seed), kernels(arguments.size)
    first = trained(module_of(arguments.weights, 5e-4), data(8), arguments.steps, seed)
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "fcn.ckpt"
        torch.save(first.network.state_dict(), start)
        both = [
            trained(module_of(None, LEARNING_RATE, refine, start), data(4), arguments.further, seed)
            for refine in (None, CRFAsRNN(len(CLASSES), **widths))
        ]
    crf = DenseCRF(**widths, smooth_weight=3, weight=5, normalisation="after")
    return scored(*both, crf, data(4), arguments.images)


def miou(matrices: np.ndarray) -> np.ndarray:
    """Of confusion matrices (..., classes, classes) in percent; classes that are nowhere are left out."""
    hits = np.diagonal(matrices, axis1=-2, axis2=-1)
    union = matrices.sum(-1) + matrices.sum(-2) - hits
    with np.errstate(invalid="ignore"):
        return 100 * np.nanmean(hits / np.where(union > 0, union, np.nan), axis=-1)


def report(found: np.ndarray, seeds: list[int]) -> None:
    """Prints the table; `found` is (seeds, 3, images, classes, classes)."""
    values = miou(found.sum(2))
    draws = np.random.default_rng(0).integers(found.shape[2], size=(2000, found.shape[2]))
    resampled = np.stack([miou(found[:, :, draw].sum(2)).mean(0) for draw in draws])
    print(f"| mIoU | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | difference (95 % interval) |")
    print("|---|" + "---|" * (len(seeds) + 2))
    for row, name in enumerate(NAMES):
        gain, spread = values[:, row].mean() - values[:, 0].mean(), resampled[:, row] - resampled[:, 0]
        low, high = np.percentile(spread, [2.5, 97.5])
        difference = f"{gain:+.2f} ({low:+.2f} to {high:+.2f})" if row else ""
        each = " | ".join(f"{value:.2f}" for value in values[:, row])
        print(f"| {name} | {each} | {values[:, row].mean():.2f} | {difference} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder that holds JPEGImages")
    parser.add_argument("--weights", help="of ResNet-18: a file, or imagenet; random by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--size", type=int, default=96, help="of crops, and shorter side in evaluation")
    parser.add_argument("--steps", type=int, default=120, help="of the FCN-8s that both start from")
    parser.add_argument("--further", type=int, default=20, help="of each that goes on")
    parser.add_argument("--images", type=int, help="of the validation set; all by default")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="a few steps and images, to see that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.size, arguments.steps, arguments.further, arguments.images = 64, 2, 1, 2
    found = []
    for seed in arguments.seeds:
        kept = None if arguments.keep is None else arguments.keep / f"seed{seed}.pt"
        if kept is not None and kept.is_file():
            found.append(torch.load(kept, weights_only=True))
            continue
        found.append(one_seed(arguments, seed))
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save(found[-1], kept)
    report(torch.stack(found).numpy(), arguments.seeds)


if __name__ == "__main__":
    main()
