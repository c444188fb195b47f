"""densepred fit, validate and test: LightningCLI with densepred's defaults.

The command line beats the config, and the config beats the checkpoint, learning rates included.
"""

import gc
import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from densepred.callbacks.checkpoints import WholeFileCheckpointIO, checkpoints_beside
from densepred.callbacks.diagnostics import Diagnostics
from densepred.callbacks.environment import Environment
from densepred.callbacks.loss_guard import LossGuard
from densepred.callbacks.panels import Panels
from densepred.callbacks.progress import EpochProgress
from densepred.callbacks.results import Results
from densepred.callbacks.summary import NetworkSummary
from densepred.callbacks.throughput import Throughput
from densepred.codewords import with_codewords_read
from densepred.commands.arguments import ROOT, RunParser, import_parts, nulls_as_configs, with_checkpoint
from densepred.commands.out_of_memory import memory_advice, where_memory_ended
from densepred.commands.refusals import full_precision_where_half_is_slow, refuse_what_misleads
from densepred.data.datamodule import DenseDataModule
from densepred.errors import ConfigurationError, TrainingError
from densepred.evaluation.callback import Evaluation
from densepred.evaluation.names import named
from densepred.hyperparameters import Remembering
from densepred.inference.options import InferenceOptions
from densepred.loggers import drop_rows_after, wandb_offline_unless_reachable, with_run_logger
from densepred.losses.class_weights import with_weights_read
from densepred.module import DensePredictor
from densepred.resume import check_same_network, read_checkpoint
from densepred.starting_weights import without_starting_weights
from densepred.vouched import only_vouched


def run(arguments: list[str]) -> int:
    """Runs `fit`, `validate` or `test`; `arguments` starts with the verb."""
    import_parts()
    silence_notices()
    saved, sys.argv[1:] = sys.argv[1:], arguments  # ranks launched by Lightning repeat sys.argv
    try:
        DensePredCLI()
    except SIGTERMException as end:  # `LastCheckpoint` has said how to continue
        return 128 + signal.SIGTERM if end.code is None else int(end.code)
    except MisconfigurationException as error:  # Lightning's own: an accelerator that is not there, ...
        raise ConfigurationError(str(error)) from error
    finally:
        sys.argv[1:] = saved
    _end_processes()
    return 0


def _end_processes() -> None:
    """Ends the threads of distributed training while Python still runs: at its exit they may abort a finished run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # what still holds the group
        torch.distributed.destroy_process_group()


def silence_notices() -> None:
    """Leaves out what Lightning says that no user can act on: advertisements, and its own use of torch."""
    for known in (
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        "Checkpoint directory .* exists and is not empty",
        # what an epoch logs at its end is summed across processes already
        r"It is recommended to use `self.log\('(val|test)/.*sync_dist=True",
    ):
        warnings.filterwarnings("ignore", known)
    log = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    if _is_news not in log.filters:
        log.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(("💡 Tip", "TPU available", "Loading `train_dataloader`"))


class DensePredCLI(LightningCLI):
    """LightningCLI for densepred's modules and DenseDataModule, with a run's loggers, callbacks and safe resuming."""

    def __init__(self) -> None:
        self.checkpoint: Path | None = None
        self.vouched: list[str] | None = None
        self._given_ids: list[Any] = []
        super().__init__(
            Remembering,  # DensePredictor, or a module of another make
            DenseDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=KeepConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            trainer_defaults={"default_root_dir": ROOT},
            parser_class=RunParser,
            # an error in one option would else print the names of all the others
            parser_kwargs={
                "prog": "densepred",
                "usage": "densepred",
                "allow_abbrev": False,  # an option cut short is a misspelt one
                **{
                    v: {"usage": f"densepred {v} [--config FILE] [--option VALUE ...] [--allow NAME]"}
                    for v in self.subcommands()
                },
            },
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.set_defaults({"verbose": False})  # Lightning's table; `Results` prints ours
            parser.add_class_arguments(InferenceOptions, "inference")
        parser.add_argument(
            "--protocol",
            type=list[str] | str,
            default="none",
            help="the named protocols to measure by: voc, nyu_depth, nyu_normals, own_size, ... or [several]; "
            "a training keeps it for its tests",
        )
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own, without `predict`, which densepred does itself."""
        arguments = LightningCLI.subcommands()
        return {verb: arguments[verb] for verb in ("fit", "validate", "test")}

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Puts a checkpoint's configuration before the user's own arguments."""
        arguments, self.checkpoint, self.vouched = with_checkpoint(sys.argv[1:])
        with only_vouched(self.vouched):
            self.config = parser.parse_args(nulls_as_configs(arguments))
        with_weights_read(self.config[self.config.subcommand].model)
        with_codewords_read(self.config[self.config.subcommand].model)
        if self.checkpoint is not None:
            config = self.config[self.config.subcommand]
            config.weights_only = True  # plain values and tensors, no code
            config.model.init_args = without_starting_weights(config.model.init_args)  # the checkpoint has them
        elif self.config.subcommand != "fit" and not self.config[self.config.subcommand].model.init_args.get("weights"):
            raise ConfigurationError(
                f"densepred {self.config.subcommand} needs --ckpt_path: best, last or a checkpoint's file (or "
                "--model.weights with a published network). Without one it would measure a network that has not been "
                "trained."
            )

    def _run_subcommand(self, subcommand: str) -> None:
        """Says which options help where memory does not suffice."""
        try:
            super()._run_subcommand(subcommand)
        except (RuntimeError, MemoryError) as error:
            if (where := where_memory_ended(error)) is None:
                raise
            config = yaml.safe_load(self._parser(subcommand).dump(self.config[subcommand], skip_none=False))
            advice = memory_advice(where, error, self.trainer, self.datamodule, config)
            raise TrainingError(advice) from error

    def instantiate_classes(self) -> None:
        """Builds what the configuration names; of a checkpoint's own, only what is vouched for."""
        with only_vouched(self.vouched):
            super().instantiate_classes()

    def _parse_ckpt_path(self) -> None:
        """Lightning's own would put the checkpoint's hyperparameters above the command line."""

    def before_instantiate_classes(self) -> None:
        """Weights & Biases writes to the run's root, and runs offline where it cannot run online."""
        if self.subcommand != "fit":
            self.save_config_kwargs["config_filename"] = f"{self.subcommand}.yaml"  # config.yaml is the training's
        trainer = self._get(self.config, "trainer")
        if told := full_precision_where_half_is_slow(trainer):
            print(told)
        for logger in _as_list(trainer.get("logger")):
            if "wandb" not in getattr(logger, "class_path", "").lower():
                continue
            if self.checkpoint is not None and _version(self.checkpoint, Path(trainer.default_root_dir)) is not None:
                self._continue_on_dashboard(logger.init_args, self.checkpoint)
            if logger.init_args.get("save_dir") == ".":  # WandbLogger's default
                logger.init_args.save_dir = str(trainer.default_root_dir)
            if message := wandb_offline_unless_reachable(logger.init_args.get("save_dir") or "."):
                print(message)

    def _continue_on_dashboard(self, options: Any, checkpoint: Path) -> None:
        if self.subcommand == "fit" and not (options.get("id") or options.get("version")):
            options.id = read_checkpoint(checkpoint).get("wandb_id")
            self._given_ids.append(options)

    def after_instantiate_classes(self) -> None:
        """A checkpoint of another network is refused before anything is read or written."""
        for options in self._given_ids:
            options.id = None  # a new run from this run's config.yaml must not continue it
        if self.checkpoint is not None:
            check_same_network(self.checkpoint, self.model.state_dict())

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer with the run's folder, loggers, checkpoints, panels and progress."""
        options = self._get(self.config_init, "trainer", default={})
        version = self._continued_version(Path(options["default_root_dir"]))
        kwargs["logger"] = with_run_logger(options.get("logger"), options["default_root_dir"], version)
        kwargs["plugins"] = [*_as_list(options.get("plugins")), WholeFileCheckpointIO()]
        own = _as_list(options.get("callbacks"))
        kwargs["callbacks"] = [*own, *self._standard_callbacks(options, own, kwargs["logger"])]
        kwargs["enable_model_summary"] = False  # Lightning's knows no encoder and no decoder
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except ValueError as error:  # Lightning's own: a strategy that needs a GPU, ...
            raise ConfigurationError(f"trainer: {error}") from error
        refuse_what_misleads(trainer)
        return trainer

    def _standard_callbacks(self, options: Any, own: list[pl.Callback], logger: Any) -> list[pl.Callback]:
        # pictures, protocols and constant predictors are those of pixels
        pixels = isinstance(self.model, DensePredictor)
        callbacks: list[pl.Callback] = [Environment(), Results(baseline=pixels)]
        callbacks += [Panels(), Diagnostics()] if pixels else []
        protocols, inference = self._protocols(), self._get(self.config_init, "inference")
        if not pixels and (protocols or inference not in (None, InferenceOptions())):
            raise ConfigurationError(
                f"--protocol and --inference are about predictions at pixels; {type(self.model).__name__} makes none."
            )
        if self.subcommand != "fit" and pixels:
            callbacks.append(Evaluation(protocols, inference))
        if options.get("enable_progress_bar") is not False:
            callbacks.append(EpochProgress())
        if options.get("enable_model_summary") is not False:
            callbacks.append(NetworkSummary())
        if logger is not False and self.subcommand == "fit":
            callbacks.append(LearningRateMonitor("step"))
        if self.subcommand == "fit":
            callbacks += [Throughput(), LossGuard()]
        callbacks = [new for new in callbacks if not any(isinstance(old, type(new)) for old in own)]
        if options.get("enable_checkpointing") is not False:
            callbacks += checkpoints_beside(own, list(self.model.tasks))
        return callbacks

    def _protocols(self) -> list[str]:
        names = [name for name in _as_list(self._get(self.config_init, "protocol")) if name != "none"]
        named(names)  # a misspelt one ends a training before its first step, not its test
        return names

    def _continued_version(self, root: Path) -> int | None:
        """The number of the run that goes on, with the rows that it will log again removed."""
        if self.checkpoint is None or (number := _version(self.checkpoint, root)) is None:
            return None
        metrics = self.checkpoint.resolve().parent.parent / "metrics.csv"
        if self.subcommand == "fit" and metrics.is_file() and getattr(rank_zero_only, "rank", 0) == 0:
            drop_rows_after(metrics, read_checkpoint(self.checkpoint)["global_step"])
        return number


class KeepConfig(SaveConfigCallback):
    """Writes the whole configuration to the run's folder, to the loggers and into each checkpoint."""

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Shows the whole configuration on every dashboard."""
        plain = yaml.safe_load(self._text())
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):  # config.yaml lies beside its file already
                logger.log_hyperparams({"config": plain})

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the configuration with the weights, so that a checkpoint alone can be tested or continued."""
        checkpoint["config"] = self._text()
        # a run on the dashboard, which a resumed one continues
        ids = [logger.version for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if ids and ids[0]:
            checkpoint["wandb_id"] = str(ids[0])

    def _text(self) -> str:
        text: str = self.parser.dump(self.config, skip_none=False)
        return text


def _version(checkpoint: Path, root: Path) -> int | None:
    """The number of the run that a checkpoint belongs to, if it lies in `root`."""
    folder = checkpoint.resolve().parent.parent
    number = folder.name.removeprefix("version_")
    return int(number) if folder.parent == root.resolve() and number.isdigit() else None


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
