"""The base of every datamodule: transforms, loaders and the check before the first step."""

import os
from abc import ABC, abstractmethod
from typing import Any, Literal

import albumentations as A
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from densepred.data.check import check_files
from densepred.data.collate import Collate
from densepred.data.dataset import DenseDataset, Transforms
from densepred.data.loader import EpochLoader, start_worker
from densepred.data.official import OfficialSet
from densepred.data.own_size import OwnSize, at_own_size
from densepred.data.position import batches_done
from densepred.data.sampler import EpochSampler, EvaluationSampler

# imported for their short names: a config may say `class_path: FlipLeftRight`
from densepred.data.transforms import cutout, elastic, flip, presets, resize, roll, scale_crop  # noqa: F401
from densepred.data.transforms.pipeline import SampleTransforms
from densepred.errors import ConfigurationError, DataError
from densepred.sample import SAMPLE_KINDS, Kind

Split = Literal["train", "val", "test"]
Batches = DataLoader[dict[str, torch.Tensor | str]]

SPLITS: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("test",),
}


class DenseDataModule(LightningDataModule, ABC):
    """Serves a data set's splits in batches. A new one writes `dataset(split, transforms)`, nothing else.

    Training is shuffled as a function of (seed, epoch), and every sample's random numbers are a function of (seed,
    epoch, index): the same run gives the same batches whatever the number of workers, and a resumed one continues
    with them, also within an epoch. Short last training batches are dropped, evaluation sees every sample once. On
    several processes each has its share: the training batches of all together are those of one process with the batch
    of all; the evaluation batches are those of one process, dealt out.

    Args:
        batch_size: Of training, for each process.
        eval_batch_size: Of validation, test and prediction; `batch_size` when None.
        num_workers: Processes that load; None takes one fewer than this process's share of the cores, at most 16.
        train_transforms: What is done to training samples: a list of transforms of `densepred.data.transforms` and
            photometric ones of albumentations, or a Compose of them.
        eval_transforms: The same for the other splits; with none they keep their own sizes.
        seed: Of the order and the transforms' random numbers.
        check: What is looked at before the first step, in a set made of files. "headers": that every file is there,
            opens, and has its image's size. "full": also that every JPEG is whole and every label legal, which reads
            the files once. "none": nothing.

    Raises:
        ConfigurationError: If a transform would leave a part of the sample behind, or a batch is larger than the set.
        DataError: If a split is empty, or one of its files is missing or broken.
    """

    kinds: dict[str, Kind] = SAMPLE_KINDS
    """What kind each key of a sample is; a datamodule may declare more."""

    def __init__(
        self,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        train_transforms: A.Compose | list[A.BasicTransform | A.BaseCompose] | None = None,
        eval_transforms: A.Compose | list[A.BasicTransform | A.BaseCompose] | None = None,
        seed: int = 0,
        check: Literal["full", "headers", "none"] = "full",
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size or batch_size}.items():
            if value < 1:
                raise ConfigurationError(f"{type(self).__name__}: {name} must be at least 1, not {value}.")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.check = check
        self.train_transforms = self._transforms(train_transforms)
        self.eval_transforms = self._transforms(eval_transforms)
        self.classes: dict[str, list[str]] = {}
        """Names of the classes, by key of the sample; compared with the tasks' before the first step."""
        self.palettes: dict[str, list[list[int]]] = {}
        """Colours of the classes, by key of the sample, where the set has its own; in them samples are shown."""
        self.datasets: dict[Split, DenseDataset] = {}

    @abstractmethod
    def dataset(self, split: Split, transforms: Transforms | None) -> DenseDataset:
        """The data set of a split, "train", "val" or "test", with these transforms and `self.seed`."""

    def setup(self, stage: str | None = None) -> None:
        """Builds and checks the data sets of a stage: "fit", "validate", "test", "predict", or all when None."""
        for split in SPLITS[stage] if stage else ("train", "val", "test"):
            if split not in self.datasets:
                self.datasets[split] = self._build(split)

    def official(self, split: Split) -> OfficialSet | None:
        """The published set that a split is, and how it departs from it; none for data of one's own."""
        return None

    def keep_own_size(self, split: Split) -> OwnSize:
        """From now on samples of a split keep the size they are stored at; says at which size they were seen before.

        Raises:
            ConfigurationError: If `eval_transforms` do more than resize and pad.
        """
        own = at_own_size(self.eval_transforms)
        self._ready(split).transforms = own.transforms
        return own

    def train_dataloader(self) -> Batches:
        """Shuffled batches of equal sizes."""
        dataset = self._ready("train")
        world, rank = self._processes()
        sampler = EpochSampler(len(dataset), self.seed, world, rank, self._draws_done)
        if len(sampler) < self.batch_size:
            shared = f", shared by {world} processes," if world > 1 else ""
            way_out = f"Set batch_size to {len(sampler)} or less." if len(sampler) else "Use fewer processes."
            raise ConfigurationError(
                f"{type(self).__name__}: batch_size {self.batch_size} is larger than the training set of "
                f"{len(dataset)}{shared} allows: no batch would ever be full. {way_out}"
            )
        return self._loader(dataset, self.batch_size, sampler, training=True)

    def val_dataloader(self) -> Batches:
        """Every validation sample once, in order."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> Batches:
        """Every test sample once, in order."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> Batches:
        """The test samples, in order."""
        return self._evaluation_loader("test", fill=False)

    def _evaluation_loader(self, split: Split, fill: bool = True) -> Batches:
        dataset = self._ready(split)
        sampler = EvaluationSampler(len(dataset), self.eval_batch_size, *self._processes(), fill=fill)
        return self._loader(dataset, self.eval_batch_size, sampler, training=False)

    def _transforms(
        self, pipeline: A.Compose | list[A.BasicTransform | A.BaseCompose] | None
    ) -> SampleTransforms | None:
        return None if pipeline is None else SampleTransforms(pipeline, self.kinds)

    def _build(self, split: Split) -> DenseDataset:
        dataset = self.dataset(split, self.train_transforms if split == "train" else self.eval_transforms)
        dataset.kinds = self.kinds
        if len(dataset) == 0:
            raise DataError(f"{type(self).__name__}: the {split} split is empty: no sample is listed in it.")
        if self.check != "none":
            check_files(dataset, f"{type(self).__name__}: {split} split", full=self.check == "full")
        return dataset

    def _ready(self, split: Split) -> DenseDataset:
        if split not in self.datasets:
            self.datasets[split] = self._build(split)
        return self.datasets[split]

    def _loader(
        self, dataset: DenseDataset, batch_size: int, sampler: DistributedSampler[Any], training: bool
    ) -> Batches:
        here = self.trainer.num_devices if self.trainer else 1
        workers = default_workers(here) if self.num_workers is None else self.num_workers
        return EpochLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=training,
            num_workers=workers,
            collate_fn=Collate(self.kinds, training),
            worker_init_fn=start_worker,
            persistent_workers=workers > 0,
            pin_memory=self._on_cuda(),
            # its own: from the global one, every new iteration would draw a number that a resumed run does not draw
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _draws_done(self) -> int:
        return batches_done(self.trainer) * self.batch_size if self.trainer else 0

    def _processes(self) -> tuple[int, int]:
        """How many processes share the data, and which of them this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _on_cuda(self) -> bool:
        return self.trainer.strategy.root_device.type == "cuda" if self.trainer else torch.cuda.is_available()


def default_workers(processes: int = 1) -> int:
    """Loading processes for each of `processes` on this machine: its share of the cores, less one for itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(cores // processes - 1, 0))
