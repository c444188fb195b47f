"""DensePredictor: an encoder, a decoder for each task and a list of tasks, trained together by Lightning."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from densepred.balance.base import Balance
from densepred.balance.task_losses import TaskLosses, branch
from densepred.decoders.base import DecoderFactory
from densepred.encoders.base import Encoder
from densepred.network import AUXILIARY, EXIT, DenseNetwork
from densepred.parameter_groups import OptimizerFactory, RateScales, linear_scaling, optimizer_over
from densepred.penalties import penalties_of
from densepred.refine.base import Refiner
from densepred.resuming import Resuming
from densepred.sample import Kind, counted, pad_planes
from densepred.schedules import planned_steps
from densepred.starting_weights import load_fitting
from densepred.tasks.base import Batch, Task
from densepred.tasks.names import check_names, missing_names, refined_tasks
from densepred.tasks.scores import Scores
from densepred.torchvision_weights import load_torchvision_segmentation

SchedulerFactory = Callable[[Optimizer, int], LRScheduler]


class DensePredictor(Resuming):
    """Predicts labels, depth, normals, or any list of tasks, at every pixel of an image.

    The loss is the sum over tasks of `task.weight` times the task's loss; with an auxiliary decoder, plus
    `auxiliary_weight` times the same on its planes; of a decoder with several exits, plus the same on the planes of
    each; a `balance` multiplies each by a factor that it finds in training.
    In training, parts of the network may add terms of their own (`Penalised`), logged as `train/penalty/<name>`.
    Logged: `train/loss`, `train/<task>/loss`, `val/loss` and `val/<task>/<metric>` (`test/...` likewise), all without
    the balance's factors, which are in `train/<task>/weight`. Those of the training are handed over at the steps that
    the trainer logs and at the last of an epoch, as they are at that step.

    Attributes:
        step_losses: From a training step to the end of its backward pass, for callbacks.
        asked: What answers for a batch in evaluations, in place of the network alone; set by `Evaluation`. There are no
            losses then.

    Args:
        encoder: Turns the image into maps.
        decoder: Builds a decoder from the encoder's spec and a number of planes: a Decoder class,
            `functools.partial(UNetDecoder, dropout=0.1)`, or in YAML `class_path` and `init_args`.
        tasks: What to predict. One task is a list of one.
        share_decoder: One decoder for all tasks instead of one each.
        auxiliary: Builds a second decoder for each task on all maps but the coarsest, used in training only.
        auxiliary_depth: How many auxiliary decoders; the k-th sees all maps but the k coarsest (deep supervision).
        auxiliary_weight: Factor of the auxiliary losses.
        refine: Sees the image and the planes of label tasks, and makes better ones of them, in training and in
            evaluation: a dense CRF, or one that is trained with the network (`CRFAsRNN`). Others are left as they are.
        balance: Weighs the tasks' losses, auxiliary ones included, against each other while they train; each task's own
            weight stands before what it gives them. None leaves it at the tasks' own weights.
        optimizer: Builds the optimizer from parameters; AdamW with learning rate 3e-4 and weight decay 0.01 by default.
        lr_scheduler: Builds a schedule, stepped every step, from the optimizer and the total number of steps.
        encoder_lr_scale: The encoder's learning rate as a multiple of the optimizer's (fine-tuning: 0.1).
        decoder_lr_scale: The decoders', which are new where the encoder is pretrained, as a multiple of it.
        bias_lr_scale: A further multiple for the biases of convolutions and linear layers (FCN, DeepLab: 2).
        lr_scales: Further multiples by glob patterns of the network's parameters: `{"decoders.*.score.*": 10}`.
        decay_scales: Multiples of the optimizer's weight decay, likewise by patterns: `{"encoder.*": 0.1}`.
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
        ConfigurationError: If two tasks share a name, a name cannot be used, or the classes differ from the data's; if
            `refine` finds no labels to refine, or not as many as it is made for.

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
        refine: Refiner | None = None,
        balance: Balance | None = None,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: SchedulerFactory | None = None,
        encoder_lr_scale: float = 1.0,
        decoder_lr_scale: float = 1.0,
        bias_lr_scale: float = 1.0,
        lr_scales: dict[str, float] | None = None,
        decay_scales: dict[str, float] | None = None,
        decay_norms_and_biases: bool = True,
        reference_batch: int | None = None,
        weights: str | Path | None = None,
        init_from: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.remember()
        check_names([task.name for task in tasks])
        self.tasks = nn.ModuleList(tasks)
        channels = {task.name: task.out_channels for task in tasks}
        self.network = DenseNetwork(
            encoder, decoder, channels, share_decoder, auxiliary, auxiliary_depth, refine, refined_tasks(tasks, refine)
        )
        if weights is not None:
            load_torchvision_segmentation(self.network, weights)
        if init_from is not None:
            rank_zero_only(print)(load_fitting(self.network, init_from))
        self.auxiliary_weight = auxiliary_weight
        self.balance = balance
        if balance is not None:
            balance.begin(tasks)
        self.step_losses: TaskLosses | None = None
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.rate_scales = RateScales(
            encoder_lr_scale, decoder_lr_scale, bias_lr_scale, lr_scales or {}, decay_scales or {}
        )
        self.decay_norms_and_biases = decay_norms_and_biases
        self.reference_batch = reference_batch
        self.scores = nn.ModuleDict({stage: Scores(tasks, stage) for stage in ("val", "test")})
        self.asked: Callable[[Batch], dict[str, Tensor]] | None = None

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Predictions by task name, at the image's size."""
        return self._predictions(self.network.planes(image), image)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch to the sum of the tasks' losses, as their weights and the balance have it."""
        image = batch["image"]
        maps = branch(self.network.maps(image))
        planes = self.network.refined(self.network.planes_from(maps, (image.shape[-2], image.shape[-1])), image)
        step = self._losses("train", planes, batch, maps)
        self.step_losses = step if self._trainer is not None else None
        if self.balance is None:
            return step.total
        total = step.balance(self.balance)
        for name, weight in step.weights.items() if _is_logged(self._trainer) else ():
            self.log(f"train/{name}/weight", weight)
        return total

    def on_before_backward(self, loss: Tensor) -> None:
        """Lets the balance look at the losses while they can be differentiated."""
        if self.balance is not None and self.step_losses is not None and self.global_step % self.balance.every == 0:
            self.balance.observe(self.step_losses)

    def on_after_backward(self) -> None:
        """Forgets the losses, and what they were computed from."""
        self.step_losses = None

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Lets the balance draw its conclusions, once a step."""
        if self.balance is not None:
            self.balance.update()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Updates the metrics; returns `loss` and `predictions` for the callbacks."""
        return self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """As `validation_step`."""
        return self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Predictions by task name."""
        return self.forward(batch["image"])

    def _losses(self, stage: str, planes: dict[str, Tensor], batch: Batch, maps: Sequence[Tensor] = ()) -> TaskLosses:
        # planes cover the image padded to the encoder's multiple, so the targets are padded (with "missing") alike
        image = batch["image"]
        size = self.network.padded_size(image.shape[-2], image.shape[-1])
        padded = {**batch, "image": pad_planes(image, size, Kind.IMAGE)}
        for task in self._tasks:
            padded |= task.pad(batch, size)
        losses = {task.name: task.loss_from_planes(planes[task.name], padded) for task in self._tasks}
        for task in self._tasks:
            self._log_loss(stage, f"{task.name}/loss", losses[task.name], batch)
            for key, extra in planes.items():
                if key.startswith((f"{task.name}/{AUXILIARY}", f"{task.name}/{EXIT}")):
                    factor = 1.0 if key.startswith(f"{task.name}/{EXIT}") else self.auxiliary_weight
                    losses[task.name] = losses[task.name] + factor * task.loss_from_planes(extra, padded)
        penalties = penalties_of(self.network) if stage == "train" else {}
        for name, value in penalties.items():
            self._log_loss(stage, f"penalty/{name}", value, batch)
        whole = TaskLosses(losses, {task.name: task.weight for task in self._tasks}, maps, penalties)
        self._log_loss(stage, "loss", whole.total, batch)
        return whole

    def _log_loss(self, stage: str, name: str, value: Tensor, batch: Batch) -> None:
        if stage != "train":
            self._scores(stage).add_loss(name, value, counted(batch))
        elif _is_logged(self._trainer):
            self.log(f"train/{name}", value, batch_size=len(batch["image"]), prog_bar=name == "loss")

    def _evaluate(self, stage: str, batch: Batch) -> dict[str, Any]:
        if self.asked is not None:
            predictions = self.asked(batch)
            if counted(batch):
                self._scores(stage).add(predictions, self._tasks, batch)
            return {"predictions": predictions}
        planes = self.network.planes(batch["image"])
        loss = self._losses(stage, planes, batch).total
        predictions = self._predictions(planes, batch["image"])
        if counted(batch):
            self._scores(stage).add(predictions, self._tasks, batch)
        return {"loss": loss, "predictions": predictions}

    def _predictions(self, planes: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
        height, width = image.shape[-2:]
        size = self.network.padded_size(height, width)
        return {
            task.name: task.predict_from_planes(planes[task.name], size)[..., :height, :width] for task in self._tasks
        }

    def on_validation_epoch_start(self) -> None:
        """Forgets the sanity check's images."""
        self._scores("val").reset()

    def on_test_epoch_start(self) -> None:
        """Starts from nothing."""
        self._scores("test").reset()

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of the whole set."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Logs the metrics of the whole set."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        for key, (value, shown) in self._scores(stage).compute(losses=self.asked is None).items():
            self.log(key, value, prog_bar=shown)

    def _scores(self, stage: str) -> Scores:
        return cast(Scores, self.scores[stage])

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
        if self.balance is not None and stage == "fit":
            self.balance.check(self.trainer)

    def _name_classes(self, index: int, task: Task, names: list[str]) -> None:
        task.classes = task.init_args["classes"] = names  # type: ignore[assignment]
        self.hparams["tasks"][index]["init_args"]["classes"] = names  # so that a checkpoint knows them without the data
        for stage in ("val", "test"):
            self._scores(stage).metrics[task.name] = task.metrics(stage).to(self.device)

    def configure_optimizers(self) -> Any:
        """The optimizer over the parameters' groups, and the schedule, stepped every step."""
        optimizer = self.build_optimizer()
        if self.reference_batch is not None:
            rank_zero_only(print)(linear_scaling(self.trainer, self.reference_batch))
        if self.lr_scheduler is None:
            return optimizer
        schedule = self.lr_scheduler(optimizer, planned_steps(self.trainer))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def build_optimizer(self) -> Optimizer:
        """The optimizer at its configured rates, before any schedule."""
        optimizer = optimizer_over(self, self.optimizer, self.rate_scales, self.decay_norms_and_biases)
        if self.reference_batch is not None and self._trainer is not None:
            for scaled in optimizer.param_groups:
                scaled["lr"] *= linear_scaling(self.trainer, self.reference_batch).factor
        return optimizer


def _is_logged(trainer: Any) -> bool:
    """Whether a step's values are asked for, by a logger or at the end of an epoch: `log` takes milliseconds."""
    if trainer is None or getattr(trainer, "fast_dev_run", False):
        return True
    return bool(trainer.is_last_batch or trainer._logger_connector.should_update_logs)
