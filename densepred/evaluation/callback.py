"""Evaluation: a validation or test under named protocols, with all that was done told in metrics.json."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch

from densepred.callbacks.panels import run_folder
from densepred.callbacks.run_files import write_json
from densepred.callbacks.task_details import protocol as measured_by
from densepred.errors import ConfigurationError
from densepred.evaluation.asked import SeenAt, Unpadded
from densepred.evaluation.names import named
from densepred.evaluation.protocol import Protocol, Setting
from densepred.evaluation.report import counts, lines, options_stated, provenance
from densepred.inference.evidence import Evidence, NetworkEvidence
from densepred.inference.options import InferenceOptions
from densepred.reports.evaluations import FILES
from densepred.sample import counted
from densepred.tasks.base import Batch, Task


class Evaluation(pl.Callback):
    """Measures by protocol, and writes `metrics.json` (of a validation `metrics_val.json`) into the run's folder.

    Under a protocol every image is asked about by itself and at the size that the run's `eval_transforms` give it; the
    answer is brought back to the size of the label on the disk (probabilities, logarithms of depth and normals are
    interpolated, never labels) and is scored there by the protocol's metric. So a number depends neither on the
    batch size nor on the number of processes.

    Without a protocol samples stay as `eval_transforms` make them, and the file says so. Options alone change
    only how the network is asked about them.

    The file holds for each task the protocol's name, the metric with all its settings, counts of images and pixels and
    the metrics; beside them data, options, checkpoint, version, commit and date.

    Args:
        protocols: Their names, see `densepred.evaluation.names.PROTOCOLS`.
        options: What is done around the network.

    Raises:
        ConfigurationError: Before the first batch, if a rule of a protocol is broken; at the end, if an image was not
            counted once.
    """

    def __init__(self, protocols: Sequence[str] = (), options: InferenceOptions | None = None) -> None:
        super().__init__()
        self.protocols = named(protocols)
        self.options = options or InferenceOptions()
        self.report: dict[str, Any] = {}
        """What `metrics.json` holds, after an evaluation."""
        self._chosen: dict[str, Protocol] = {}
        self._replaced: dict[tuple[str, str], Any] = {}
        self._own: Any = None
        self._images = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Under a protocol, samples keep their own size."""
        if not self.protocols or stage not in ("validate", "test"):
            return
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "keep_own_size"):
            raise ConfigurationError(
                f"Protocol {self.protocols[0].name}: {type(data).__name__} does not say what it evaluates. Expected a "
                "DenseDataModule."
            )
        self._own = data.keep_own_size("val" if stage == "validate" else "test")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks and prepares a validation by itself; those of a training are left alone."""
        if trainer.state.fn == "validate":
            self._begin(trainer, pl_module, "val")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks and prepares a test."""
        self._begin(trainer, pl_module, "test")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts images."""
        self._images += counted(batch)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Counts images."""
        self._images += counted(batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file."""
        if trainer.state.fn == "validate":
            self._finish(trainer, pl_module, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the file."""
        self._finish(trainer, pl_module, "test")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the module back what it had."""
        module: Any = pl_module
        for (key, name), metric in self._replaced.items():
            module.scores[key].metrics[name] = metric
        self._replaced = {}
        if hasattr(module, "asked"):
            module.asked = None

    def _begin(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        self._images, self._chosen = 0, {}
        tasks: list[Task] = list(module.tasks)
        setting = self._setting(trainer, stage)
        for protocol in self.protocols:
            for task in protocol.chosen(tasks, setting):
                if task.name in self._chosen:
                    raise ConfigurationError(
                        f"Task {task.name!r} cannot be measured by {self._chosen[task.name].name} and by "
                        f"{protocol.name} at once. Test twice."
                    )
                self._chosen[task.name] = protocol
        metrics = module.scores[stage].metrics
        for task in tasks:
            if task.name in self._chosen:
                self._replaced[stage, task.name] = metrics[task.name]
                metrics[task.name] = self._chosen[task.name].metric(task, stage).to(module.device)
        if self.protocols or self.options != InferenceOptions():
            module.asked = Unpadded(self._evidence(module, tasks))

    def _evidence(self, module: Any, tasks: list[Task]) -> Evidence:
        evidence: Evidence = NetworkEvidence(module.network, tasks)
        if not self._seen_as_trained:
            return self.options.applied(evidence)
        # a CRF sees the image's own pixels, whatever size the network sees
        seen = SeenAt(replace(self.options, crf=None).applied(evidence), self._own.seen)
        return InferenceOptions(crf=self.options.crf).applied(seen)

    @property
    def _seen_as_trained(self) -> bool:
        """Whether images are resized as `eval_transforms` would; a shorter side or tiles asked for go first."""
        asked = self.options.short_side is not None or self.options.tile is not None
        return self._own is not None and bool(self._own.resizing) and not asked

    def _setting(self, trainer: pl.Trainer, stage: str) -> Setting:
        data: Any = getattr(trainer, "datamodule", None)
        dataset = getattr(data, "datasets", {}).get(stage)
        official = data.official(stage) if hasattr(data, "official") else None
        return Setting(type(data).__name__ if data else "", stage, len(dataset) if dataset is not None else 0, official)

    def _finish(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        if getattr(trainer, "fast_dev_run", False) or not hasattr(module, "scores"):
            return
        folder = run_folder(trainer)
        here = torch.tensor(self._images, dtype=torch.float64, device=module.device)
        images = int(trainer.strategy.reduce(here, reduce_op="sum"))
        setting = self._setting(trainer, stage)
        self._refuse_miscounted(trainer, setting, images, stage)
        metrics = module.scores[stage].metrics
        found = {name: counts(metric) for name, metric in metrics.items()}
        values = {key: float(value) for key, value in trainer.callback_metrics.items()}
        self.report = {
            "stage": stage,
            "data": {
                "class": setting.data,
                "split": stage,
                "images": images,
                "official": None
                if setting.official is None
                else {"name": setting.official.name, "images": setting.official.images},
            },
            "tasks": {
                task.name: self._task(task, metrics[task.name], setting, images, values, stage)
                | {"counts": {"images": images, **found[task.name]}}
                for task in module.tasks
            },
            "inference": {"seen": self._seen(), **self._options_told()},
            **provenance(trainer),
        }
        if trainer.is_global_zero:
            path = folder / FILES[stage]
            write_json(path, self.report)
            print("\n".join([*lines(self.report), f"  {'written':<16}{path}"]), flush=True)

    def _task(
        self, task: Task, metric: Any, setting: Setting, images: int, values: dict[str, float], stage: str
    ) -> dict[str, Any]:
        chosen, prefix = self._chosen.get(task.name), f"{stage}/{task.name}/"
        official = setting.official
        whole = chosen is not None and (chosen.called(setting, images) == chosen.name)
        return {
            "protocol": "none" if chosen is None else chosen.called(setting, images),
            "comparable": bool(whole and chosen is not None and chosen.published),
            "size": "the labels' own size" if self.protocols else "the size that data.eval_transforms make",
            "measured_by": measured_by(metric),
            "truth": official.truth.get(task.name) if official else None,
            "metrics": {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)},
        }

    def _seen(self) -> str:
        if self._seen_as_trained:
            return f"images after {', '.join(self._own.resizing)} of data.eval_transforms"
        return "images at their own size" if self.protocols else "images as data.eval_transforms make them"

    def _options_told(self) -> dict[str, Any]:
        """All options where one is not the default's, so that nothing has to be guessed."""
        return {} if self.options == InferenceOptions() else options_stated(self.options)

    def _refuse_miscounted(self, trainer: pl.Trainer, setting: Setting, images: int, stage: str) -> None:
        limit = trainer.limit_test_batches if stage == "test" else trainer.limit_val_batches
        limited = isinstance(limit, int) or limit < 1  # 1 is a batch, 1.0 are all
        if self._chosen and not limited and images != setting.images:
            raise ConfigurationError(
                f"{images} images were scored, but the {stage} split of {setting.data} has {setting.images}: each must "
                "count once under a protocol. Leave the loaders to the datamodule."
            )
