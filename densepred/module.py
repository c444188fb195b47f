"""DensePredictor: an encoder, a decoder for each task and a list of tasks, trained together by Lightning."""

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from densepred.decoders.base import DecoderFactory
from densepred.encoders.base import Encoder
from densepred.errors import ConfigurationError
from densepred.metrics.base import WeightedMean
from densepred.network import AUXILIARY, DenseNetwork
from densepred.parameter_groups import RateScales, linear_scaling, parameter_groups
from densepred.random_states import all_random_states, set_random_state
from densepred.recipe import Recorded, class_path, recipe
from densepred.resume import continue_after_epoch, keep_configured_rates, keep_on_the_curve
from densepred.sample import Kind, counted, pad_planes
from densepred.starting_weights import load_fitting, without_starting_weights
from densepred.tasks.base import Batch, Task
from densepred.tasks.names import check_names, missing_names
from densepred.torchvision_weights import load_torchvision_segmentation

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
SchedulerFactory = Callable[[Optimizer, int], LRScheduler]


class DensePredictor(Recorded, pl.LightningModule):
    """Predicts labels, depth, normals, or any list of tasks, at every pixel of an image.

    The loss is the sum over tasks of `task.weight` times the task's loss; with an auxiliary decoder, plus
    `auxiliary_weight` times the same on its planes. Logged: `train/loss`, `train/<task>/loss`, `val/loss` and
    `val/<task>/<metric>` (`test/...` likewise).

    Args:
        encoder: Turns the image into maps.
        decoder: Builds a decoder from the encoder's spec and a number of planes: a Decoder class,
            `functools.partial(UNetDecoder, dropout=0.1)`, or in YAML `class_path` and `init_args`.
        tasks: What to predict. One task is a list of one.
        share_decoder: One decoder for all tasks instead of one each.
        auxiliary: Builds a second decoder for each task on all maps but the coarsest, used in training only.
        auxiliary_depth: How many auxiliary decoders; the k-th sees all maps but the k coarsest (deep supervision).
        auxiliary_weight: Factor of the auxiliary losses.
        optimizer: Builds the optimizer from parameters; AdamW with learning rate 3e-4 and weight decay 0.01 by default.
        lr_scheduler: Builds a schedule, stepped every step, from the optimizer and the total number of steps.
        encoder_lr_scale: The encoder's learning rate as a multiple of the optimizer's (fine-tuning: 0.1).
        decoder_lr_scale: The decoders', which are new where the encoder is pretrained, as a multiple of it.
        bias_lr_scale: A further multiple for the biases of convolutions and linear layers (FCN, DeepLab: 2).
        lr_scales: Further multiples by glob patterns of the network's parameters: `{"decoders.*.score.*": 10}`.
        decay_norms_and_biases: Whether weight decay applies to the parameters of normalisations and to biases.
        reference_batch: The batch that the optimizer's learning rate is meant for; the rate is scaled linearly to the
            images of a step: batch size x accumulated batches x processes (Goyal et al. Accurate, Large Minibatch SGD.
            2017. arXiv:1706.02677). None takes the rate as it is.
        weights: A file of torchvision's `fcn_resnet*` or `deeplabv3_resnet*` to start from, encoder and decoder; the
            first task takes its classifier. `load_torchvision_segmentation` says what fits it.
        init_from: A checkpoint of densepred to start from, of the same encoder: what fits is taken, other scores and
            decoders start anew, and a table is printed (see `load_fitting`). Other than `ckpt_path`, which continues a
            run with its optimizer and epochs, this begins a new one.

    Shape:
        image: (B, C, H, W), uint8, or floating point in [0, 1]; more than 32 pixels a side.
        returns: predictions by task name: labels (B, H, W), metres (B, 1, H, W), unit vectors (B, 3, H, W).

    Raises:
        ConfigurationError: If two tasks share a name, a name cannot be used, or the classes differ from the data's.

    Example:
        >>> import torch
        >>> from densepred.decoders.unet import UNetDecoder
        >>> from densepred.encoders.resnet import ResNetEncoder
        >>> from densepred.tasks.depth import Depth
        >>> module = DensePredictor(ResNetEncoder("resnet18"), UNetDecoder, [Depth()]).eval()
        >>> module(torch.zeros(1, 3, 40, 50, dtype=torch.uint8))["depth"].shape
        torch.Size([1, 1, 40, 50])
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: DecoderFactory,
        tasks: list[Task],
        share_decoder: bool = False,
        auxiliary: DecoderFactory | None = None,
        auxiliary_depth: int = 1,
        auxiliary_weight: float = 0.4,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: SchedulerFactory | None = None,
        encoder_lr_scale: float = 1.0,
        decoder_lr_scale: float = 1.0,
        bias_lr_scale: float = 1.0,
        lr_scales: dict[str, float] | None = None,
        decay_norms_and_biases: bool = True,
        reference_batch: int | None = None,
        weights: str | Path | None = None,
        init_from: str | Path | None = None,
    ) -> None:
        super().__init__()
        self._remember()
        check_names([task.name for task in tasks])
        self.tasks = nn.ModuleList(tasks)
        self.network = DenseNetwork(
            encoder,
            decoder,
            {task.name: task.out_channels for task in tasks},
            share_decoder,
            auxiliary,
            auxiliary_depth,
        )
        if weights is not None:
            load_torchvision_segmentation(self.network, weights)
        if init_from is not None:
            rank_zero_only(print)(load_fitting(self.network, init_from))
        self.auxiliary_weight = auxiliary_weight
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.rate_scales = RateScales(encoder_lr_scale, decoder_lr_scale, bias_lr_scale, lr_scales or {})
        self.decay_norms_and_biases = decay_norms_and_biases
        self.reference_batch = reference_batch
        self.metrics = nn.ModuleDict(
            {f"{stage}/{task.name}": task.metrics(stage) for stage in ("val", "test") for task in tasks}
        )
        names = ["loss", *(f"{task.name}/loss" for task in tasks)]
        self.mean_losses = nn.ModuleDict(
            {f"{stage}/{name}": WeightedMean() for stage in ("val", "test") for name in names}
        )
        self._random_states: list[dict[str, Any]] = []

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Predictions by task name, at the image's size."""
        return self._predictions(self.network.planes(image), image)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch to the sum of the tasks' losses."""
        return self._losses("train", self._planes(batch), batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Updates the metrics; returns `loss` and `predictions` for the callbacks."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """As `validation_step`."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Predictions by task name."""
        return self.forward(batch["image"])

    def _planes(self, batch: Batch) -> dict[str, Tensor]:
        return self.network.planes(batch["image"])

    def _losses(self, stage: str, planes: dict[str, Tensor], batch: Batch) -> Tensor:
        # planes cover the image padded to the encoder's multiple, so the targets are padded (with "missing") alike
        image = batch["image"]
        size = self.network.padded_size(image.shape[-2], image.shape[-1])
        padded = {**batch, "image": pad_planes(image, size, Kind.IMAGE)}
        for task in self._tasks:
            padded |= task.pad(batch, size)
        losses = {task.name: task.loss_from_planes(planes[task.name], padded) for task in self._tasks}
        total = sum(task.weight * losses[task.name] for task in self._tasks)
        for task in self._tasks:
            self._log_loss(stage, f"{task.name}/loss", losses[task.name], batch)
            for key, extra in planes.items():
                if key.startswith(f"{task.name}/{AUXILIARY}"):
                    total = total + self.auxiliary_weight * task.weight * task.loss_from_planes(extra, padded)
        self._log_loss(stage, "loss", total, batch)  # type: ignore[arg-type]
        return total  # type: ignore[return-value]

    def _log_loss(self, stage: str, name: str, value: Tensor, batch: Batch) -> None:
        if stage == "train":
            self.log(f"train/{name}", value, batch_size=len(batch["image"]), prog_bar=name == "loss")
        else:
            cast(WeightedMean, self.mean_losses[f"{stage}/{name}"]).update(value, counted(batch))

    def _evaluate(self, stage: str, batch: Batch) -> dict[str, Any]:
        planes = self._planes(batch)
        loss = self._losses(stage, planes, batch)
        predictions = self._predictions(planes, batch["image"])
        for task in self._tasks if counted(batch) else []:
            self._metric(stage, task).update(predictions[task.name], task.target(batch))
        return {"loss": loss, "predictions": predictions}

    def _predictions(self, planes: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
        height, width = image.shape[-2:]
        size = self.network.padded_size(height, width)
        return {
            task.name: task.predict_from_planes(planes[task.name], size)[..., :height, :width] for task in self._tasks
        }

    def on_validation_epoch_start(self) -> None:
        """Forgets the sanity check's images."""
        self._reset("val")

    def on_test_epoch_start(self) -> None:
        """Starts from nothing."""
        self._reset("test")

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of the whole set."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Logs the metrics of the whole set."""
        self._log_metrics("test")

    def _reset(self, stage: str) -> None:
        for name, metric in [*self.metrics.items(), *self.mean_losses.items()]:
            if name.startswith(f"{stage}/"):
                cast(Metric, metric).reset()

    def _log_metrics(self, stage: str) -> None:
        for name, mean in self.mean_losses.items():
            if name.startswith(f"{stage}/"):
                self.log(name, cast(WeightedMean, mean).compute())
        for task in self._tasks:
            for key, value in self._metric(stage, task).compute().items():
                self.log(f"{stage}/{task.name}/{key}", value.float(), prog_bar=key in task.shown)

    def _metric(self, stage: str, task: Task) -> Metric:
        return cast(Metric, self.metrics[f"{stage}/{task.name}"])

    @property
    def _tasks(self) -> list[Task]:
        return [cast(Task, task) for task in self.tasks]

    def setup(self, stage: str) -> None:
        """Compares the classes with the data's before the first step; a mere number of classes gets their names."""
        data = getattr(self.trainer, "datamodule", None)
        for index, task in enumerate(self._tasks):
            expected = getattr(data, "classes", {}).get(task.name)
            if expected is not None and (names := missing_names(task, list(expected), type(data).__name__)):
                self._name_classes(index, task, names)

    def _name_classes(self, index: int, task: Task, names: list[str]) -> None:
        task.classes = task.init_args["classes"] = names  # type: ignore[assignment]
        self.hparams["tasks"][index]["init_args"]["classes"] = names  # so that a checkpoint knows them without the data
        for stage in ("val", "test"):
            self.metrics[f"{stage}/{task.name}"] = task.metrics(stage).to(self.device)

    def configure_optimizers(self) -> Any:
        """The optimizer over the parameters' groups, and the schedule, stepped every step."""
        optimizer = self.build_optimizer()
        if self.reference_batch is not None:
            rank_zero_only(print)(linear_scaling(self.trainer, self.reference_batch))
        if self.lr_scheduler is None:
            return optimizer
        total_steps = self.trainer.estimated_stepping_batches
        if total_steps == float("inf"):
            raise ConfigurationError(
                "lr_scheduler needs to know when training ends: max_epochs and max_steps are both -1. Set "
                "trainer.max_epochs or trainer.max_steps, or lr_scheduler to null."
            )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer, int(total_steps)), "interval": "step"},
        }

    def build_optimizer(self) -> Optimizer:
        """The optimizer at its configured rates, before any schedule."""
        groups = parameter_groups(self, self.rate_scales, self.decay_norms_and_biases)
        options = [{"params": group.parameters, "name": group.name, "names": group.names} for group in groups]
        optimizer = (self.optimizer or _default_optimizer)(options)
        for index, group in enumerate(groups):
            group.apply(optimizer, index)
        if self.reference_batch is not None and self._trainer is not None:
            for scaled in optimizer.param_groups:
                scaled["lr"] *= linear_scaling(self.trainer, self.reference_batch).factor
        return optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps where the random numbers of each process stand."""
        if self._trainer is not None:
            checkpoint["random_states"] = all_random_states(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """On resuming, the configured rates win over those in the optimizer's saved state."""
        self._random_states = checkpoint.get("random_states", [])
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if fitting and checkpoint.get("optimizer_states"):
            keep_configured_rates(checkpoint, self.build_optimizer())

    def on_train_start(self) -> None:
        """A resumed run draws on, on its own curve of rates, also where it is now longer than it was."""
        if self.global_rank < len(self._random_states):
            set_random_state(self._random_states[self.global_rank], self.device)
        self._random_states = []
        continue_after_epoch(self.trainer)
        keep_on_the_curve(self.trainer)

    def _remember(self) -> None:
        """Hyperparameters as plain values: the command line's own, or read off the parts built in Python."""
        bound = inspect.signature(type(self).__init__).bind_partial(self, **self.init_args)
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        own = inspect.signature(DensePredictor.__init__).parameters  # of which a subclass may pass on what it likes
        self.save_hyperparameters(ignore=[*own, *arguments])
        if "_instantiator" in self.hparams:
            self.save_hyperparameters()
        else:
            plain = {name: recipe(value, name) for name, value in arguments.items()}
            self.save_hyperparameters({"_class_path": class_path(type(self)), **plain})
            self.hparams["_instantiator"] = "pytorch_lightning.cli.instantiate_module"
        # what a checkpoint holds: the weights are inside it. Dashboards see the initial ones, where they came from
        self.hparams.update(without_starting_weights(dict(self.hparams)))


def _default_optimizer(parameters: Iterable[Any]) -> Optimizer:
    # not a default of the constructor's: its weight decay would leak into the SGD of a config
    return AdamW(parameters, lr=3e-4, weight_decay=0.01)
