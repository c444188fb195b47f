"""What nyu.py trains and measures: frames in memory, our network and smp's, a budget, scores."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from densepred.callbacks.channels_last import ChannelsLast
from densepred.data.atomic import whole_file
from densepred.data.collate import Collate
from densepred.data.dataset import DenseDataset, Raw, Transforms
from densepred.data.listing import evenly, read_list
from densepred.data.normals_source import NormalsFromDepth
from densepred.data.nyu import NYUDepthV2
from densepred.data.sampler import EpochSampler
from densepred.data.transforms import Rescale, SampleTransforms
from densepred.decoders.unet import UNetDecoder
from densepred.encoders.base import IMAGENET_MEAN, IMAGENET_STD
from densepred.encoders.resnet import ResNetEncoder
from densepred.module import DensePredictor
from densepred.sample import SAMPLE_KINDS
from densepred.schedules import OneCycle
from densepred.tasks.base import Batch, Task
from densepred.tasks.depth import Depth

BATCH = 8


class Frames(DenseDataset):
    """Frames kept in memory.

    Args:
        arrays: By key (N, H, W, ...), as `shrunk` gives them.
        targets: The keys to read beside the image.
        transforms: As of every data set.
        seed: Of order and transforms.
    """

    def __init__(
        self, arrays: dict[str, np.ndarray], targets: list[str], transforms: Transforms | None = None, seed: int = 0
    ) -> None:
        super().__init__(transforms, seed)
        self.arrays = {key: arrays[key] for key in ["image", "intrinsics", *targets]}

    def __len__(self) -> int:
        return len(self.arrays["image"])

    def read(self, index: int) -> Raw:
        return {key: values[index] for key, values in self.arrays.items()}


def shrunk(
    root: Path, split: str, size: tuple[int, int], most: int | None, cache: Path | None
) -> dict[str, np.ndarray]:
    """A split's images, targets, intrinsics and names, each stacked; from the cache where they are in it."""
    names = evenly(read_list(root / f"{split}.txt"), most)
    kept = cache and cache / f"{split}_{len(names)}_{size[0]}x{size[1]}.npz"
    if kept and kept.is_file():
        return dict(np.load(kept))
    data = NYUDepthV2(root, names, classes=13, normals=NormalsFromDepth(window=21, blur=3.0))
    shrink = SampleTransforms([Rescale(size=size)])
    samples = [shrink(data.read(i), (0,)) for i in range(len(data))]
    arrays = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(kept) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    return arrays


class Ours:
    """A DensePredictor, in bfloat16 with channels last (the preset) or in float32."""

    def __init__(self, weights: str | None, tasks: list[Task], preset: bool) -> None:
        decoder = partial(UNetDecoder, widths=(128, 64, 48, 32))
        self.module = DensePredictor(ResNetEncoder("resnet18", weights=weights), decoder, tasks)
        self.tasks, self.preset = tasks, preset
        if preset:
            ChannelsLast().setup(None, self.module, "fit")

    def loss(self, batch: Batch) -> Tensor:
        return self.module.training_step(batch, 0)

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        return self.module(image)


class Peer:
    """smp's Unet under one task, in bfloat16 with channels last or, as its users run it, in float32."""

    def __init__(self, weights: str | None, tasks: list[Task], preset: bool) -> None:
        self.module = smp.Unet("resnet18", encoder_weights=None, classes=1)
        if weights is not None:
            self.module.encoder.load_state_dict(torch.load(weights, weights_only=True), strict=False)
        (self.task,) = self.tasks = tasks
        self.preset = preset
        self.layout = torch.channels_last if preset else torch.contiguous_format
        self.module.to(memory_format=self.layout)
        self.mean, self.std = (torch.tensor(each).view(-1, 1, 1) for each in (IMAGENET_MEAN, IMAGENET_STD))

    def planes(self, image: Tensor) -> Tensor:
        return self.module(((image / 255 - self.mean) / self.std).contiguous(memory_format=self.layout))

    def loss(self, batch: Batch) -> Tensor:
        return self.task.loss_from_planes(self.planes(batch["image"]), batch)

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        size = image.shape[-2], image.shape[-1]
        return {self.task.name: self.task.predict_from_planes(self.planes(image), size)}


def endless(data: Frames) -> Iterator[Batch]:
    order = EpochSampler(len(data), data.seed)
    loader = DataLoader(data, BATCH, sampler=order, drop_last=True, collate_fn=Collate(SAMPLE_KINDS, training=True))
    for epoch in count():
        order.set_epoch(epoch)
        yield from loader


def train(network: Ours | Peer, data: Frames, rate: float, used: Callable[[int], float]) -> int:
    """Trains by AdamW and one cycle until the budget is used up.

    Args:
        network: What learns.
        data: From which it does.
        rate: The highest of the cycle.
        used: The share of the budget that is used, asked before each step with the number of those done.

    Returns:
        How many steps there were.
    """
    optimizer = torch.optim.AdamW(network.module.parameters(), lr=rate, weight_decay=0.01)
    factor = OneCycle(optimizer, 1001, warmup=0.1).lr_lambdas[0]  # read in thousandths of the budget
    network.module.train()
    batches = endless(data)
    done = 0
    while (share := used(done)) < 1:
        batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = rate * factor(1000 * share)
        with torch.autocast("cpu", torch.bfloat16, enabled=network.preset):
            loss = network.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1
    network.module.eval()
    return done


@torch.inference_mode()
def measured(network: Ours | Peer, data: Frames) -> dict[str, Any]:
    """Each task's metrics by `task/metric`, and under `frames` the RMSE of every frame's depth."""
    metrics = {task.name: task.metrics("test") for task in network.tasks}
    single, frames = Depth().metrics("test"), []
    for batch in DataLoader(data, 1, collate_fn=Collate(SAMPLE_KINDS)):
        for name, prediction in network.predict(batch["image"]).items():
            metrics[name].update(prediction, batch[name])
            if name == "depth":
                single.reset()
                single.update(prediction, batch[name])
                frames.append(round(float(single.compute()["rmse"]), 5))
    values: dict[str, Any] = {"frames": frames}
    for name, metric in metrics.items():
        values |= {f"{name}/{key}": float(value) for key, value in metric.compute().items()}
    return values
