"""CamVid's architectures under one budget of computing time, on a CPU and at a reduced size.

    python -m experiments.benchmarks.camvid --camvid CamVid --keep FILE [--seeds 0 1 2] [--weights FILE]
    python -m experiments.benchmarks.camvid --camvid CamVid --keep FILE --only frrn_a gridnet      # some of the rows
    python -m experiments.benchmarks.camvid --camvid CamVid --quick                # a few steps each: does it run

This is no reproduction of published numbers, reached in hundreds of epochs of 360 x 480 pixels: it tells what each
architecture makes of the same few minutes. All start from random weights (`--weights`, a file of torchvision's
ResNet-18, adds the U-Net from it), and see the 367 training frames shrunk once to `--size`, mirrored by chance and
cropped to `--crop` anywhere. Each trains for `--minutes` of one core's time, the processor's, not the wall clock's; the
learning rate follows the share of them that is used up. Weights are those of the best of five validations (101 frames),
whose time does not count; they are scored on the test frames (233) once, at the reduced size. Clocks never run alike:
a second run of the same seed takes a few steps more or less.

Networks are those of experiments/*.yaml, with CamVid's 11 classes, cross-entropy for the loss, and no auxiliary
decoder. Recipes:

- ours: AdamW, one cycle, batches of 8, gradients clipped to a norm of 10, bfloat16, channels last, batch norm's running
  statistics in evaluation. The rate of each network is that of RATES whose whole cycle in `--search` of the budget,
  which is spent on top of it, for the first seed, validates best.
- fc_densenet103_paper: the YAML's RMSprop at its rate, which falls exponentially as much as over the published 750
  epochs; batches of 3, crops of the published share, 224 of 360 pixels, to the nearest multiple of 32; float32; in
  evaluation the statistics of the batch, of ten frames as published.

FCN-8s stands on ResNet-18: on VGG-16 with fc6 and fc7, which has no batch norm, a step takes over 2 s, so that four
minutes hold about a hundred; from random weights it has not come beyond its coarsest scores after 140 steps on a single
image (overfit.py). Rows are kept in `--keep` as lines of JSON as they are finished, and skipped when they are there;
processes that share the work may share the file.

Full runs, on a GPU, are those of experiments/camvid_*.yaml; for those that have no file:

    # FC-DenseNet103 by our recipe
    densepred fit --config experiments/camvid_fcdensenet103.yaml --data.root CamVid \
      --trainer.default_root_dir runs/camvid_fcdensenet103_ours \
      --model.encoder.batch_statistics false --model.decoder.batch_statistics false \
      --model.optimizer torch.optim.AdamW --model.optimizer.lr 0.001 --model.optimizer.eps 1e-8 \
      --model.optimizer.weight_decay 0.01 --model.lr_scheduler OneCycle --model.lr_scheduler.warmup 0.1 \
      --trainer.precision bf16-mixed --trainer.callbacks '[ChannelsLast, Compile]' --data.batch_size 8
    # U-Net, DeepLab v3 and FCN-8s from random weights: add to
    densepred fit --config experiments/camvid_unet_squeezenet.yaml --data.root CamVid \
      --model.encoder_lr_scale 1 --trainer.callbacks '[ChannelsLast]' --trainer.default_root_dir runs/camvid_NAME
    ... --model.encoder ResNetEncoder --model.encoder.name resnet18 --model.encoder.weights null
    ... --model.encoder ResNetEncoder --model.encoder.name resnet50 --model.encoder.weights null \
        --model.encoder.output_stride 16 --model.encoder.multi_grid "[1,2,4]" --model.decoder DeepLabV3Decoder
    ... --model.encoder VGGEncoder --model.encoder.name vgg16 --model.encoder.weights null --model.encoder.maps pool \
        --model.encoder.fully_connected true --model.decoder FCNDecoder --model.decoder.finest_stride 8
    # then
    densepred test --ckpt_path best --trainer.default_root_dir runs/camvid_NAME
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from densepred.commands.arguments import import_parts
from densepred.commands.describe import build_module, read_config
from densepred.data.camvid import CAMVID_CLASSES
from densepred.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from densepred.encoders.resnet import ResNetEncoder
from densepred.module import DensePredictor
from experiments.benchmarks.camvid_training import TASK, Images, Recipe, gmac, read, score, train

EXPERIMENTS = Path(__file__).parents[1]
RATES = (3e-4, 1e-3, 3e-3)


class Contender(NamedTuple):
    """An experiment's file, options for it as `fit` takes them, and published test mIoU and accuracy at 360 x 480."""

    experiment: str
    options: tuple[str, ...] = ()
    published: str = ""
    paper: bool = False


AS_PUBLISHED = tuple(f"--model.{part}.recompute=false" for part in ("encoder", "decoder"))
RUNNING = (*AS_PUBLISHED, *(f"--model.{part}.batch_statistics=false" for part in ("encoder", "decoder")))
ON_RESNET18 = ("--model.encoder=ResNetEncoder", "--model.encoder.name=resnet18")
FCN = (*ON_RESNET18, "--model.decoder=FCNDecoder", "--model.decoder.finest_stride=8")
NETWORKS = {
    "fc_densenet103_paper": Contender("camvid_fcdensenet103", AS_PUBLISHED, "66.9 / 91.5", paper=True),
    "fc_densenet103": Contender("camvid_fcdensenet103", RUNNING, "66.9 / 91.5"),
    "fc_densenet67": Contender("camvid_fcdensenet67", RUNNING, "65.8 / 90.8"),
    "fc_densenet56": Contender("camvid_fcdensenet56", RUNNING, "58.9 / 88.9"),
    "segnet_basic": Contender("camvid_segnet_basic"),
    "segnet_vgg16": Contender("camvid_segnet_vgg16"),
    "fcn8s_resnet18": Contender("camvid_unet_squeezenet", FCN),
    "unet_resnet18": Contender("camvid_unet_squeezenet", ON_RESNET18),
    "deeplabv3_resnet50": Contender("voc_deeplabv3_resnet50", ("--model.auxiliary=null",)),
    "frrn_a": Contender("camvid_frrn_a"),
    "gridnet": Contender("camvid_gridnet"),
}
PRETRAINED, PEER = "unet_resnet18_imagenet", "smp_unet_resnet18"


class Peer(nn.Module):
    """segmentation_models_pytorch's U-Net on ResNet-18, as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = smp.Unet("resnet18", encoder_weights=None, classes=len(CAMVID_CLASSES))
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def planes(self, image: Tensor) -> dict[str, Tensor]:
        return {TASK.name: self.network((image / 255 - self.mean) / self.std)}


def one_cycle(share: float) -> float:
    """In a tenth of the time up in a straight line, from a 25th; then down to zero by a cosine."""
    return 0.04 + 9.6 * share if share < 0.1 else (1 + math.cos(math.pi * (share - 0.1) / 0.9)) / 2


def published_decay(share: float) -> float:
    """0.995 an epoch, 750 of them."""
    return 0.995 ** (750 * share)


def published_crop(size: tuple[int, int]) -> tuple[int, int]:
    """224 pixels of frames of a height of 360, to the nearest multiple of 32, at least 64."""
    side = max(32 * round(224 / 360 * size[0] / 32), 64)
    return side, side


def prepared(name: str, rate: float | None, seed: int, options: argparse.Namespace) -> tuple[nn.Module, Recipe]:
    """A network from the seed's random weights, and its recipe: ours at this rate, or the paper's."""
    torch.manual_seed(seed)
    if name == PEER:
        network: nn.Module = Peer()
    else:
        module = module_of(NETWORKS["unet_resnet18" if name == PRETRAINED else name])
        network = module.network
        if name == PRETRAINED:
            module.network.encoder.load_state_dict(ResNetEncoder("resnet18", weights=options.weights).state_dict())
    network.to(memory_format=torch.channels_last)
    if rate is None:
        crop = published_crop(options.size)
        return network, Recipe(module.build_optimizer(), published_decay, 3, crop, clip=math.inf, half=False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01, fused=True)
    return network, Recipe(optimizer, one_cycle, 8, options.crop, clip=10, half=True)


def module_of(contender: Contender) -> DensePredictor:
    config = read_config(EXPERIMENTS / f"{contender.experiment}.yaml")
    task = {"class_path": "Segmentation", "init_args": {"classes": CAMVID_CLASSES}}
    config["model"]["init_args"]["tasks"] = [task]
    return build_module(config, list(contender.options))


def rate_of(name: str, data: dict[str, Images], seed: int, options: argparse.Namespace) -> float:
    """The rate that validates best after a share of the budget."""
    if not options.search:
        return RATES[len(RATES) // 2]
    minutes = options.search * options.minutes
    return max(RATES, key=lambda rate: train(*prepared(name, rate, seed, options), data, minutes, seed, (1.0,))[1])


def row_of(
    name: str, rate: float | None, data: dict[str, Images], seed: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Trains, and scores on test: a row of the table."""
    network, recipe = prepared(name, rate, seed, options)
    steps, best = train(network, recipe, data, options.minutes, seed)
    miou, accuracy = score(network, data["test"], recipe.half)
    return {
        "rate": recipe.optimizer.defaults["lr"],
        "parameters": sum(p.numel() for p in network.parameters()),
        "gmac": gmac(network, options.size),
        "steps": steps,
        "epochs": steps * recipe.batch / len(data["train"].labels),
        "val_miou": best,
        "test_miou": miou,
        "test_accuracy": accuracy,
    }


def cell(values: list[float], digits: int) -> str:
    """The mean and, of several, the standard deviation."""
    deviation = f" ({statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):,.{digits}f}{deviation}"


def table(rows: list[dict[str, Any]]) -> str:
    """A line a network, over its seeds; mIoU and accuracy in percent."""
    percent = ("val_miou", "test_miou", "test_accuracy")
    columns = {"steps": (1, 0), "epochs": (1, 1), **dict.fromkeys(percent, (100, 1))}
    lines = [
        "| network | parameters | GMAC | rate | seeds | steps | epochs | best val mIoU | test mIoU | test accuracy "
        "| published mIoU / accuracy, 360 x 480 |",
        "|---" * 11 + "|",
    ]
    for name in dict.fromkeys(row["network"] for row in rows):
        mine = [row for row in rows if row["network"] == name]
        cells = [cell([factor * row[key] for row in mine], digits) for key, (factor, digits) in columns.items()]
        first, published = mine[0], NETWORKS[name].published if name in NETWORKS else ""
        rates = ", ".join(f"{rate:g}" for rate in sorted({row["rate"] for row in mine}))
        known = f"| {name} | {first['parameters']:,} | {first['gmac']:.2f} | {rates} | {len(mine)} "
        lines.append(f"{known}| {' | '.join(cells)} | {published} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True, help="folder of CamVid in SegNet's layout")
    parser.add_argument("--size", nargs=2, type=int, default=[96, 128], metavar=("H", "W"), help="multiples of 32")
    parser.add_argument("--crop", nargs=2, type=int, default=[64, 96], metavar=("H", "W"), help="multiples of 32")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, each network")
    parser.add_argument("--search", type=float, default=0.25, help="share of the budget to try a rate for; 0: 0.001")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--weights", type=Path, help=f"torchvision's ResNet-18: adds {PRETRAINED}")
    parser.add_argument("--only", nargs="+", choices=[*NETWORKS, PRETRAINED, PEER], metavar="NAME")
    parser.add_argument("--keep", type=Path, help="lines of JSON: rows that are there are not measured again")
    parser.add_argument("--quick", action="store_true", help="a few frames, small, a step or two each")
    options = parser.parse_args()
    if options.quick:
        options.size, options.crop, options.minutes, options.search = [64, 96], [64, 64], 0.005, 0
    if any(side % 32 or side < 64 for side in options.size + options.crop):
        parser.error("--size and --crop want multiples of 32, 64 or more: smp's network takes no others")
    names = options.only or [*NETWORKS, *([PRETRAINED] if options.weights else []), PEER]
    if PRETRAINED in names and options.weights is None:
        parser.error(f"{PRETRAINED} wants --weights")
    torch.set_num_threads(1)
    import_parts()
    settings = {key: getattr(options, key) for key in ("size", "crop", "minutes", "search")}
    lines = options.keep.read_text().splitlines() if options.keep and options.keep.exists() else []
    rows = [row for row in map(json.loads, lines) if settings.items() <= row.items()]
    most = 10 if options.quick else None
    data = {split: read(options.camvid, split, options.size, most) for split in ("train", "val", "test")}
    for seed in options.seeds:
        for name in names:
            mine = [row for row in rows if row["network"] == name]
            if any(row["seed"] == seed for row in mine):
                continue
            if name in NETWORKS and NETWORKS[name].paper:
                rate = None
            else:
                rate = mine[0]["rate"] if mine else rate_of(name, data, seed, options)
            row = {"network": name, "seed": seed, **settings, **row_of(name, rate, data, seed, options)}
            print(f"{name}, seed {seed}: test mIoU {row['test_miou']:.3f} after {row['steps']} steps", flush=True)
            rows.append(row)
            if options.keep:
                with options.keep.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(f"\n{table(rows)}")


if __name__ == "__main__":
    main()
