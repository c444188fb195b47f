"""RayDistancePredictor: reconstructs all surfaces of a scene, hidden ones included, from one image."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from densepred.encoders.base import Encoder
from densepred.errors import ConfigurationError
from densepred.metrics.base import WeightedMean
from densepred.module import SchedulerFactory
from densepred.parameter_groups import OptimizerFactory, RateScales, optimizer_over
from densepred.rays.decoding import surfaces_along
from densepred.rays.field import directed_ray_distance, pixel_grid, rays_through
from densepred.rays.loss import log_l1
from densepred.rays.metrics import THRESHOLDS, RayScore, SceneScore
from densepred.rays.network import RayDistanceNetwork
from densepred.rays.sampling import distances_along
from densepred.resuming import Resuming
from densepred.sample import FILLER
from densepred.schedules import planned_steps

AT_ONCE = 2**18
"""Points that are asked about at once in evaluations: their layers' values are 128 MB."""
NAME = "rays"


class Measured(NamedTuple):
    """What is measured, under the names by which tasks tell theirs.

    Args:
        name: Prefix of the metrics.
        monitor: The metric by which checkpoints are chosen, and "min" or "max".
        shown: Metrics that stand in the progress bar.
    """

    name: str
    monitor: tuple[str, str]
    shown: tuple[str, ...]


class RayDistancePredictor(Resuming):
    """Predicts the directed ray distance along the rays of an image, and from it every surface that they cross.

    At a point of a ray that is the way ahead to the nearest surface, negative where the surface lies behind; it is
    learned clamped, at random points, by the L1 difference of logarithms. Where it falls from + to - is a surface, seen
    or hidden. Logged: `train/loss`, `val/loss`, and `val/rays/<score>` (`test/...` likewise): F-scores, precisions and
    recalls of points of the scene and of surfaces along rays, at each threshold; see `SceneScore` and `RayScore`.

    A batch holds `image`, `intrinsics`, `pixels` (the rays) and `hits`, and in evaluations `surface` and `hidden`, as
    `RoomRays` yields them. The paper's recipe is in `experiments/rooms_drdf.yaml`.

    Attributes:
        network: A `RayDistanceNetwork`.

    Args:
        encoder: Turns the image into maps; the paper's is ResNetEncoder("resnet34", weights="imagenet").
        near: Metres of depth where rays begin.
        far: Metres of depth where they end.
        width: Of the decoder's layers.
        blocks: Residual blocks of the decoder.
        octaves: Of the positional encoding.
        bounded: Whether the answer goes through tanh.
        clamp: Metres; targets beyond are clamped to it.
        uniform: Points anywhere on a ray, in training.
        near_hits: Points near its surfaces, in training.
        spread: Of those, the standard deviation about a surface, metres.
        samples: Points of a ray, evenly spaced, by which it is decoded.
        most: Surfaces found on a ray at most.
        grid: Rays (rows, columns) through an image by which the scene's points are found.
        points: Of those, at most so many are compared with the scene's.
        thresholds: Of the scores, metres.
        optimizer: Builds the optimizer; AdamW with learning rate 3e-4 and weight decay 0.01 by default.
        lr_scheduler: Builds a schedule, stepped every step, from the optimizer and the total number of steps.
        encoder_lr_scale: The encoder's learning rate as a multiple of the optimizer's.

    Shape:
        image: (B, C, H, W). pixels: (B, R, 2). intrinsics: (B, 3, 3).
        returns: surfaces of the rays, (B, R, most), metres along them, nearest first, infinite where there are no more.

    Raises:
        ConfigurationError: If an option is out of its range.

    Reference:
        Kulkarni, Johnson, Fouhey. Directed Ray Distance Functions for 3D Scene Reconstruction. ECCV 2022.
        arXiv:2112.04481. Distances here are metres along the ray from the camera.

    Example:
        >>> from densepred.encoders.resnet import ResNetEncoder
        >>> module = RayDistancePredictor(ResNetEncoder("resnet18"), samples=32).eval()
        >>> camera = torch.tensor([[[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]])
        >>> module(torch.zeros(1, 3, 48, 64), torch.zeros(1, 7, 2), camera).shape
        torch.Size([1, 7, 5])
    """

    def __init__(
        self,
        encoder: Encoder,
        near: float = 0.1,
        far: float = 10.0,
        width: int = 128,
        blocks: int = 5,
        octaves: int = 6,
        bounded: bool = False,
        clamp: float = 1.0,
        uniform: int = 256,
        near_hits: int = 256,
        spread: float = 0.4,
        samples: int = 256,
        most: int = 5,
        grid: tuple[int, int] = (128, 128),
        points: int = 10_000,
        thresholds: Sequence[float] = THRESHOLDS,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: SchedulerFactory | None = None,
        encoder_lr_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.remember()
        for option, value, least in (
            ("samples", samples, 2),
            ("most", most, 1),
            ("points", points, 1),
            ("grid", min(grid), 1),
            ("uniform", uniform, 0),
            ("near_hits", near_hits, 0),
            ("uniform + near_hits", uniform + near_hits, 1),
            ("the number of thresholds", len(thresholds), 1),
        ):
            if value < least:
                raise ConfigurationError(f"RayDistancePredictor: {option} is {value}; expected at least {least}.")
        if clamp <= 0 or spread <= 0:
            raise ConfigurationError(
                f"RayDistancePredictor: clamp is {clamp} and spread {spread} m; expected lengths above 0."
            )
        self.network = RayDistanceNetwork(encoder, near, far, width, blocks, octaves, bounded)
        self.clamp = clamp
        self.uniform, self.near_hits, self.spread = uniform, near_hits, spread
        self.samples, self.most = samples, most
        self.grid, self.points = (int(grid[0]), int(grid[1])), points
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.rate_scales = RateScales(encoder_lr_scale)
        shown = f"{thresholds[min(1, len(thresholds) - 1)]:g}"
        self.tasks = [Measured(NAME, (f"scene_f_{shown}", "max"), (f"scene_f_{shown}", f"occluded_f_{shown}"))]
        self.scene_scores = nn.ModuleDict({stage: SceneScore(thresholds) for stage in ("val", "test")})
        self.ray_scores = nn.ModuleDict({stage: RayScore(thresholds) for stage in ("val", "test")})
        self.mean_losses = nn.ModuleDict({stage: WeightedMean() for stage in ("val", "test")})

    def forward(self, image: Tensor, pixels: Tensor, intrinsics: Tensor) -> Tensor:
        """The surfaces along the rays through pixels."""
        return self.surfaces(self.network.maps(image), pixels, intrinsics, (image.shape[-2], image.shape[-1]))

    def surfaces(self, maps: Tensor, pixels: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
        """As `forward`, from the network's maps of an image of that size (height, width)."""
        found = []
        extent = pixels.new_tensor([size[1], size[0]])
        depths = torch.linspace(self.network.near, self.network.far, self.samples, device=pixels.device)
        for some in torch.split(pixels, max(1, AT_ONCE // (self.samples * len(pixels))), dim=1):
            distances = depths / rays_through(some, intrinsics).forward
            values = self.network.along(maps, some, distances, intrinsics, extent)
            found.append(surfaces_along(distances, values.float(), self.most))
        return torch.cat(found, 1)

    def loss(self, maps: Tensor, batch: dict[str, Any]) -> Tensor:
        """At random points of the batch's rays, from the network's maps of its images."""
        pixels, hits, intrinsics = batch["pixels"], batch["hits"], batch["intrinsics"]
        forward = rays_through(pixels, intrinsics).forward
        nearest, farthest = self.network.near / forward, self.network.far / forward
        distances = distances_along(hits, nearest, farthest, self.uniform, self.near_hits, self.spread)
        target = directed_ray_distance(distances, hits).clamp(-self.clamp, self.clamp)
        size = pixels.new_tensor([batch["image"].shape[-1], batch["image"].shape[-2]])
        prediction = self.network.along(maps, pixels, distances, intrinsics, size)
        return log_l1(prediction.float(), target, (distances >= nearest) & (distances <= farthest))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One batch to the loss."""
        loss = self.loss(self.network.maps(batch["image"]), batch)
        self.log("train/loss", loss, batch_size=len(batch["image"]), prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Updates the scores; returns `loss` and the `surfaces` along the batch's rays."""
        return self._evaluate("val", batch)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """As `validation_step`."""
        return self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: dict[str, Any]) -> dict[str, Tensor]:
        image, intrinsics = batch["image"], batch["intrinsics"]
        size = (image.shape[-2], image.shape[-1])
        maps = self.network.maps(image)
        loss = self.loss(maps, batch)
        along = self.surfaces(maps, batch["pixels"], intrinsics, size)
        grid = pixel_grid(size, *self.grid).to(intrinsics).expand(len(image), -1, -1)
        everywhere = self.surfaces(maps, grid, intrinsics, size)
        for i, name in enumerate(batch["name"]):
            if name == FILLER:
                continue
            self.mean_losses[stage].update(loss)  # type: ignore[operator]
            self.ray_scores[stage].update(along[i], batch["hits"][i])  # type: ignore[operator]
            points, behind = scene_points(everywhere[i], grid[i], intrinsics[i], self.points)
            hidden = batch["hidden"][i] > 0
            self.scene_scores[stage].update(points, behind, batch["surface"][i], hidden)  # type: ignore[operator]
        return {"loss": loss, "surfaces": along}

    def on_validation_epoch_start(self) -> None:
        """Forgets the sanity check's images."""
        self._reset("val")

    def on_test_epoch_start(self) -> None:
        """Starts from nothing."""
        self._reset("test")

    def on_validation_epoch_end(self) -> None:
        """Logs the scores of the whole set."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Logs the scores of the whole set."""
        self._log_scores("test")

    def _reset(self, stage: str) -> None:
        for metrics in (self.scene_scores, self.ray_scores, self.mean_losses):
            metrics[stage].reset()  # type: ignore[operator]

    def _log_scores(self, stage: str) -> None:
        self.log(f"{stage}/loss", self.mean_losses[stage].compute())  # type: ignore[operator]
        for metrics in (self.scene_scores, self.ray_scores):
            for key, value in metrics[stage].compute().items():  # type: ignore[operator]
                self.log(f"{stage}/{NAME}/{key}", value, prog_bar=key in self.tasks[0].shown)

    def configure_optimizers(self) -> Any:
        """The optimizer over encoder and decoder, and the schedule, stepped every step."""
        optimizer = self.build_optimizer()
        if self.lr_scheduler is None:
            return optimizer
        schedule = self.lr_scheduler(optimizer, planned_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def build_optimizer(self) -> Optimizer:
        """The optimizer at its configured rates, before any schedule."""
        return optimizer_over(self, self.optimizer, self.rate_scales, decay_norms_and_biases=True)


def scene_points(found: Tensor, pixels: Tensor, intrinsics: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """The surfaces of rays as points in the camera's frame, and whether each lies behind another of its ray.

    Args:
        found: Metres along the rays, nearest first, infinite for none.
        pixels: Of the rays, (x, y).
        intrinsics: K.
        most: How many points at most, evenly picked from all; None for all.

    Shape:
        found: (R, M). pixels: (R, 2). intrinsics: (3, 3). returns: (N, 3) and boolean (N,).
    """
    real = found.isfinite()
    places = rays_through(pixels[None], intrinsics[None]).points(found.nan_to_num(posinf=0.0)[None])[0]
    behind = torch.arange(found.shape[1], device=found.device).expand(found.shape) > 0
    points, behind = places[real], behind[real]
    if most is not None and len(points) > most:
        chosen = torch.linspace(0, len(points) - 1, most, device=found.device).long()
        points, behind = points[chosen], behind[chosen]
    return points, behind
