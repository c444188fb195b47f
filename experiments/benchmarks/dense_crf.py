"""The dense CRF against pydensecrf2 (the authors' C++ library): time, and how many labels are the same.

    python experiments/benchmarks/dense_crf.py DATA/voc2012 [--checkpoint X.ckpt] [--threads 2] [--device cuda]
    python experiments/benchmarks/dense_crf.py DATA/voc2012 --quality 50

Images are real ones. Scores come from a checkpoint with 21 classes; without one they are made of the true labels: their
shares in cells of 8 x 8 pixels, of which every fifth says another object of the image or background, with noise,
upsampled as those of a network of stride 8 are. Runs of both are taken in turn, so that a busy machine slows both; the
least time of each is printed, of the wall clock and of the processor (the sum over threads), and the ratio of each.
With --quality nothing is timed: mIoU over so many images of the scores, and of what each CRF makes of them, is printed.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densepred.refine.dense_crf import PUBLISHED, DenseCRF

CLASSES = 21
NEGLIGIBLE = 0.01


def pictures(root: Path, count: int) -> list[tuple[Tensor, Tensor]]:
    """Images (1, 3, H, W) and labels (H, W) of the validation set, those of 375 x 500 first."""
    names = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    sizes = [Image.open(root / "JPEGImages" / f"{name}.jpg").size for name in names]
    chosen = sorted(range(len(names)), key=lambda i: sizes[i] != (500, 375))[:count]
    found = []
    for i in chosen:
        image = np.array(Image.open(root / "JPEGImages" / f"{names[i]}.jpg").convert("RGB"))
        labels = np.array(Image.open(root / "SegmentationClass" / f"{names[i]}.png"))
        found.append((torch.from_numpy(image).permute(2, 0, 1)[None].contiguous(), torch.from_numpy(labels)))
    return found


def scores_like_a_networks(labels: Tensor, seed: int = 0) -> Tensor:
    """Logits (1, 21, H, W), see above."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.where(labels < CLASSES, labels, 0).long()
    shares = F.avg_pool2d(F.one_hot(known, CLASSES).permute(2, 0, 1)[None].float(), 8, ceil_mode=True)
    present = known.unique()
    other = present[torch.randint(len(present), shares.shape[-2:], generator=generator)]
    wrong = torch.rand(shares.shape[-2:], generator=generator) < 0.2
    shares = torch.where(wrong, F.one_hot(other, CLASSES).permute(2, 0, 1)[None].float(), shares)
    planes = 8 * shares + 0.5 * torch.randn(shares.shape, generator=generator)
    height, width = labels.shape
    return F.interpolate(planes, scale_factor=8, mode="bilinear", align_corners=False)[..., :height, :width]


def scores_of(checkpoint: str, image: Tensor) -> Tensor:
    from densepred.inference.predictor import Predictor

    found = Predictor.load(checkpoint, "cpu")(image[0], evidence=True)
    return found.probabilities()[None].clamp(min=1e-5).log()


def ours(scores: Tensor, image: Tensor, crf: DenseCRF) -> np.ndarray:
    with torch.inference_mode():
        return crf(scores, image)[0].cpu().numpy()


def theirs(scores: Tensor, image: Tensor, crf: DenseCRF) -> np.ndarray:
    from pydensecrf.densecrf import DenseCRF2D

    classes, height, width = scores.shape[1:]
    reference = DenseCRF2D(width, height, classes)
    unary = -scores[0].log_softmax(0).reshape(classes, -1).numpy()
    reference.setUnaryEnergy(np.ascontiguousarray(unary))
    reference.addPairwiseGaussian(sxy=crf.smooth, compat=crf.smooth_weight)
    colours = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())
    reference.addPairwiseBilateral(sxy=crf.near, srgb=crf.colour, rgbim=colours, compat=crf.weight)
    return np.array(reference.inference(crf.iterations)).reshape(classes, height, width)


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the wall clock and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def compared(scores: Tensor, image: Tensor, crf: DenseCRF, device: str, runs: int) -> dict[str, float]:
    """Least times in milliseconds, share of equal labels, how many took part, and how far probabilities differ."""
    there = (scores.to(device), image.to(device), crf)
    expected, found = theirs(scores, image, crf), ours(*there)
    pairs = [(*timed(lambda: ours(*there)), *timed(lambda: theirs(scores, image, crf))) for _ in range(runs)]
    least = [1000 * min(times) for times in zip(*pairs, strict=True)]
    return {
        **dict(zip(("ours", "ours_processor", "theirs", "theirs_processor"), least, strict=True)),
        "equal": float((expected.argmax(0) == found.argmax(0)).mean()),
        "labels": int((found.max((1, 2)) > 0).sum()),
        "difference": float(np.abs(expected - found).max()),
    }


def miou(matrix: np.ndarray) -> float:
    """Of a confusion matrix in percent; classes that are nowhere are left out."""
    hits, union = np.diag(matrix), matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return float(100 * (hits[union > 0] / union[union > 0]).mean())


def quality(found: list[tuple[Tensor, Tensor, Tensor]], crf: DenseCRF, device: str) -> dict[str, float]:
    """mIoU of scores and of both CRFs over images, labels and scores; and the share of pixels that both label alike."""
    matrices = np.zeros((3, CLASSES, CLASSES), dtype=np.int64)
    equal = pixels = 0
    for image, labels, scores in found:
        mine = ours(scores.to(device), image.to(device), crf).argmax(0)
        reference = theirs(scores, image, crf).argmax(0)
        target = labels.numpy()
        known = target < CLASSES
        for matrix, answer in zip(matrices, (scores[0].argmax(0).numpy(), mine, reference), strict=True):
            np.add.at(matrix, (target[known], answer[known]), 1)
        equal, pixels = equal + int((mine == reference).sum()), pixels + mine.size
    values = dict(zip(("scores", "ours", "theirs"), map(miou, matrices), strict=True))
    return {**values, "equal": equal / pixels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder that holds JPEGImages")
    parser.add_argument("--checkpoint", help="of a network with 21 classes")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--parameters", default="pydensecrf", choices=list(PUBLISHED))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quality", type=int, metavar="IMAGES", help="compare mIoU over so many images instead")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads, {arguments.runs} pairs of runs")
    found = [
        (
            image,
            labels,
            scores_of(arguments.checkpoint, image) if arguments.checkpoint else scores_like_a_networks(labels),
        )
        for image, labels in pictures(arguments.root, arguments.quality or arguments.images)
    ]
    if arguments.quality:
        crf = DenseCRF.published(arguments.parameters, negligible=NEGLIGIBLE)
        result = quality(found, crf, arguments.device)
        print(
            f"mIoU over {arguments.quality} images: scores {result['scores']:.2f}, ours {result['ours']:.2f}, theirs "
            f"{result['theirs']:.2f}; {100 * result['equal']:.3f} % equal labels"
        )
        return
    for image, _, scores in found:
        for negligible in (0.0, NEGLIGIBLE):
            crf = DenseCRF.published(arguments.parameters, negligible=negligible)
            one = compared(scores, image, crf, arguments.device, arguments.runs)
            print(
                f"{image.shape[2]} x {image.shape[3]}, {one['labels']:2} labels: wall {one['theirs']:5.0f} -> "
                f"{one['ours']:5.0f} ms ({one['ours'] / one['theirs']:.2f}), processor "
                f"{one['theirs_processor']:5.0f} -> {one['ours_processor']:5.0f} ms "
                f"({one['ours_processor'] / one['theirs_processor']:.2f}), {100 * one['equal']:.3f} % equal, "
                f"probabilities within {one['difference']:.4f}"
            )


if __name__ == "__main__":
    main()
