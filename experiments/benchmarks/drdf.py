"""All surfaces of rendered rooms from one picture: directed ray distances against a depth network of the same trunk.

Both see the same pictures for as many steps, from the same starting weights of the trunk:

    python experiments/benchmarks/drdf.py [--quick] [--weights FILE] [--picture FILE]

The last rows are of the truth: what a depth network without any error would reach, and what the rays can.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from densepred.callbacks.channels_last import ChannelsLast
from densepred.data.room_rays import RoomRays
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.resnet import ResNetEncoder
from densepred.module import DensePredictor
from densepred.rays.field import directed_ray_distance, pixel_grid, rays_through
from densepred.rays.metrics import RayScore, SceneScore
from densepred.rays.module import RayDistancePredictor, scene_points
from densepred.rays.pictures import draw_slice, mark_surfaces
from densepred.schedules import OneCycle
from densepred.tasks.depth import Depth

GRID, KEPT_RAYS, TAU = (32, 48), 300, (0.1, 0.2, 0.5)
NEAR, FAR, SAMPLES = 0.1, 10.0, 96
PANEL = (192, 128)
TITLES = ("picture", "true ray distance", "predicted, its surfaces", "depth network's surface")


class Scenes(Dataset):
    """Rooms rendered once; every time they are read they give other rays and another side."""

    def __init__(self, count: int, size: tuple[int, int], seed: int, rays: int) -> None:
        rooms = RoomRays("train", count, size, seed, KEPT_RAYS, flip=False)
        self.samples, self.rays, self.width = [rooms[i] for i in range(count)], rays, size[1]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        sample = dict(self.samples[index])
        chosen = torch.randperm(KEPT_RAYS)[: self.rays]
        sample |= {"pixels": sample["pixels"][chosen], "hits": sample["hits"][chosen]}
        if torch.rand(()) < 0.5:
            sample |= {"image": sample["image"].flip(-1), "depth": sample["depth"].flip(-1)}
            sample["pixels"] = sample["pixels"] * torch.tensor([-1.0, 1]) + torch.tensor([self.width - 1.0, 0])
            camera = sample["intrinsics"].clone()
            camera[0, 2] = self.width - 1 - camera[0, 2]
            sample["intrinsics"] = camera
        return sample


class Losses(pl.Callback):
    """Prints the mean loss of every epoch."""

    def on_train_epoch_start(self, *_) -> None:
        self.losses = []

    def on_train_batch_end(self, trainer, module, outputs, *_) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer, module) -> None:
        print(f"  epoch {trainer.current_epoch + 1}: loss {sum(self.losses) / len(self.losses):.4f}", flush=True)


def trained(module: pl.LightningModule, scenes: Scenes, epochs: int, precision: str, keep: Path | None) -> None:
    """Trains, or takes the weights that were kept from a training before."""
    if keep is not None and keep.is_file():
        module.load_state_dict(torch.load(keep, weights_only=True))
        module.eval()
        return
    loader = DataLoader(scenes, batch_size=4, shuffle=True, drop_last=True)
    trainer = pl.Trainer(max_epochs=epochs, accelerator="auto", devices=1, logger=False, precision=precision,
                         callbacks=[Losses(), ChannelsLast()], enable_checkpointing=False,
                         enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    start = time.perf_counter()
    trainer.fit(module, loader)
    module.cpu().eval()
    print(f"{type(module).__name__}: {time.perf_counter() - start:.0f} s of training", flush=True)
    if keep is not None:
        keep.parent.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), keep)


@torch.no_grad()
def by_depth(module: DensePredictor, sample: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The one surface of each ray that a depth network knows, (R, 1)."""
    depth = module(sample["image"][None])["depth"]
    extent = torch.tensor([depth.shape[-1], depth.shape[-2]])
    place = ((2 * pixels + 1) / extent - 1)[None, None]
    at = F.grid_sample(depth, place, mode="nearest", padding_mode="border", align_corners=False)[0, 0, 0]
    return at[:, None] / rays_through(pixels[None], sample["intrinsics"][None]).forward[0]


@torch.no_grad()
def by_rays(module: RayDistancePredictor, sample: dict[str, Tensor], pixels: Tensor) -> Tensor:
    return module(sample["image"][None], pixels[None], sample["intrinsics"][None])[0]


def measured(find, scenes: list[dict[str, Tensor]], grid: Tensor) -> dict[str, float]:
    along, scene = RayScore(TAU), SceneScore(TAU)
    for sample in scenes:
        along.update(find(sample, sample["pixels"]), sample["hits"])
        points, behind = scene_points(find(sample, grid), grid, sample["intrinsics"], 10_000)
        scene.update(points, behind, sample["surface"], sample["hidden"] > 0)
    return {key: float(value) for key, value in {**scene.compute(), **along.compute()}.items()}


def table(rows: dict[str, dict[str, float]]) -> str:
    kinds = ("scene", "hidden", "ray", "occluded")
    head = [f"{kind} {t:g}" for kind in kinds for t in TAU]
    lines = [f"| F-score, within (m) | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for name, scores in rows.items():
        cells = [f"{scores[f'{kind}_f_{t:g}']:.3f}" for kind in kinds for t in TAU]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


@torch.no_grad()
def picture(drdf: RayDistancePredictor, depth: DensePredictor, scenes: list[dict[str, Tensor]], truth) -> Image.Image:
    """A row a scene: the picture, and along its marked line the true and the predicted ray distance from above."""
    rows = []
    far = 7.0
    for sample in scenes:
        height, width = sample["image"].shape[-2:]
        y = int(0.68 * height)
        pixels = torch.stack([torch.arange(width).float(), torch.full((width,), float(y))], -1)
        hits = truth(sample, pixels)
        forward = rays_through(pixels[None], sample["intrinsics"][None]).forward[0]
        distances = torch.linspace(NEAR, far, 96) / forward
        maps = drdf.network.maps(sample["image"][None])
        extent = torch.tensor([float(width), float(height)])
        said = drdf.network.along(maps, pixels[None], distances[None], sample["intrinsics"][None], extent)[0]
        shot = sample["image"].permute(1, 2, 0).numpy().copy()
        shot[y] = (255, 220, 0)
        marks = {"drdf": by_rays(drdf, sample, pixels) * forward, "depth": by_depth(depth, sample, pixels) * forward}
        true = draw_slice(directed_ray_distance(distances, hits))
        faded = mark_surfaces(true // 2 + 127, hits * forward, NEAR, far, (150, 150, 150))
        panels = [
            shot,
            mark_surfaces(true, hits * forward, NEAR, far),
            mark_surfaces(draw_slice(said), marks["drdf"], NEAR, far),
            mark_surfaces(faded, marks["depth"], NEAR, far),
        ]
        rows.append([Image.fromarray(panel).resize(PANEL, Image.Resampling.NEAREST) for panel in panels])
    sheet = Image.new("RGB", (len(rows[0]) * (PANEL[0] + 4), len(rows) * (PANEL[1] + 4) + 14), "white")
    for column, text in enumerate(TITLES):
        ImageDraw.Draw(sheet).text((column * (PANEL[0] + 4) + 4, 0), text, fill="black", font_size=12)
        for row, panels_of_scene in enumerate(rows):
            sheet.paste(panels_of_scene[column], (column * (PANEL[0] + 4) + 2, row * (PANEL[1] + 4) + 14))
    return sheet.quantize(128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--weights", help="torchvision's ResNet-18, for the trunk of both; random without")
    parser.add_argument("--scenes", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rays", type=int, default=32, help="of each scene in a step of DRDF")
    parser.add_argument("--precision", default="32-true", help="of training, as Lightning calls it: bf16-mixed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="write slices of three test scenes there")
    parser.add_argument("--keep", type=Path, help="keep the trained networks in this folder, and take those in it")
    parser.add_argument("--only", choices=["drdf", "depth"], help="train and keep this one, measure nothing")
    options = parser.parse_args()

    def kept(name: str) -> Path | None:
        return options.keep and options.keep / f"{name}.pt"

    count, epochs, tests = (8, 1, 3) if options.quick else (options.scenes, options.epochs, 16)
    size = (48, 64) if options.quick else (64, 96)
    pl.seed_everything(options.seed)
    scenes = Scenes(count, size, options.seed, options.rays)
    rooms = RoomRays("test", tests, size, options.seed, 500)
    held_out = [rooms[i] for i in range(tests)]
    encoder = partial(ResNetEncoder, "resnet18", weights=options.weights)
    common = {"optimizer": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.01),
              "lr_scheduler": partial(OneCycle, warmup=0.1)}  # fmt: skip
    pl.seed_everything(options.seed)
    drdf = RayDistancePredictor(
        encoder(), NEAR, FAR, uniform=24, near_hits=24, bounded=True, samples=SAMPLES, grid=GRID, **common
    )
    if options.only != "depth":
        trained(drdf, scenes, epochs, options.precision, kept("drdf"))
    pl.seed_everything(options.seed)
    depth = DensePredictor(encoder(), partial(UNetDecoder, widths=(128, 64, 48, 32)), [Depth()], **common)
    if options.only != "drdf":
        trained(depth, scenes, epochs, options.precision, kept("depth"))
    if options.only:
        return
    grid = pixel_grid(size, *GRID)

    def truth(most: int, sample: dict[str, Tensor], pixels: Tensor) -> Tensor:
        return rooms.hits(int(sample["name"].rpartition("/")[2]), pixels)[:, :most]

    finders = {"depth network": partial(by_depth, depth), "DRDF": partial(by_rays, drdf),
               "true depth": partial(truth, 1), "true surfaces": partial(truth, 16)}  # fmt: skip
    rows = {name: measured(find, held_out, grid) for name, find in finders.items()}
    print(table(rows))
    print("hidden recall: " + ", ".join(f"{name} {scores['hidden_recall_0.2']:.3f}" for name, scores in rows.items()))
    if options.picture:
        picture(drdf, depth, held_out[:3], partial(truth, 16)).save(options.picture, optimize=True)


if __name__ == "__main__":
    main()
