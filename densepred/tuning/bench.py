"""A run's configuration as `fit` reads it, changed and built as `fit` builds it, with the callbacks of a check."""

import copy
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Checkpoint, EarlyStopping

from densepred.commands.arguments import import_parts
from densepred.commands.fit import DensePredCLI, silence_notices
from densepred.errors import ConfigurationError
from densepred.module import DensePredictor
from densepred.recipe import class_path

Config = dict[str, Any]
OPTIMIZER = "model.optimizer"
SHORT_NAMES = {"lr": f"{OPTIMIZER}.lr", "weight_decay": f"{OPTIMIZER}.weight_decay"}

ONE_DEVICE: Config = {"devices": 1, "num_nodes": 1, "strategy": "auto"}
QUIET: Config = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
                 "num_sanity_val_steps": 0}  # fmt: skip
NO_FILES: Config = {"logger": False, "limit_val_batches": 0, "max_epochs": -1}


def read_arguments(arguments: Sequence[str]) -> Config:
    """The whole configuration that `densepred fit` would run with: every option, none left to a default.

    Args:
        arguments: As `fit` takes them, its verb left out.

    Raises:
        ConfigurationError: If a checkpoint is to be continued: a search starts runs anew.
    """
    import_parts()
    silence_notices()
    cli = _Reader(arguments)
    text: str = cli._parser("fit").dump(cli.config["fit"], skip_none=False)
    config = yaml.safe_load(text)
    if config.get("ckpt_path") is not None:
        raise ConfigurationError(
            "tune: --ckpt_path continues a run, and a search starts them anew. Leave it out; to start from a "
            "checkpoint's weights give --model.init_from."
        )
    return {key: config[key] for key in ("seed_everything", "trainer", "model", "data")}


class Bench(DensePredCLI):
    """A run that is built as `fit` builds it, but neither started nor told about.

    The configuration's own callbacks are there (they may freeze layers, or average weights), except those that write
    checkpoints or stop early. Those that `fit` adds are replaced.

    Args:
        config: A whole configuration.
        callbacks: In place of `fit`'s panels, tables and checkpoints.
    """

    model: DensePredictor

    def __init__(self, config: Config, callbacks: Sequence[pl.Callback] = ()) -> None:
        import_parts()
        silence_notices()
        self._callbacks = list(callbacks)
        try:
            with _command_line([f"--config={yaml.safe_dump(config)}"]):
                super().__init__()
        except MisconfigurationException as error:
            raise ConfigurationError(str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """The trainer, without callbacks that end or outlive a short run."""
        trainer = self._get(self.config_init, "trainer")
        own = trainer.get("callbacks") or []
        own = own if isinstance(own, list) else [own]
        trainer.callbacks = [one for one in own if not isinstance(one, Checkpoint | EarlyStopping)]
        return super().instantiate_trainer(**kwargs)

    def _standard_callbacks(self, options: Any, own: list[pl.Callback], logger: Any) -> list[pl.Callback]:
        return self._callbacks

    def _run_subcommand(self, subcommand: str) -> None:
        """Whoever built it runs it."""


class _Reader(DensePredCLI):
    """Reads and checks a command line, and builds nothing."""

    def __init__(self, arguments: Sequence[str]) -> None:
        with _command_line(arguments):
            super().__init__()

    def before_instantiate_classes(self) -> None:
        """Leaves the loggers alone."""

    def instantiate_classes(self) -> None:
        """Nothing to build."""

    def after_instantiate_classes(self) -> None:
        """Nothing to compare."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing to run."""


@contextmanager
def _command_line(arguments: Sequence[str]) -> Iterator[None]:
    saved, sys.argv[1:] = sys.argv[1:], ["fit", *arguments]
    try:
        yield
    finally:
        sys.argv[1:] = saved


@contextmanager
def freed() -> Iterator[None]:
    """Gives back what a run held, on the device too, so that a search needs no more memory than its largest run."""
    try:
        yield
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """A configuration with other values for some of its options.

    Args:
        config: Left as it is.
        values: By option, as `model.optimizer.lr` or `model.tasks.0.weight`; `init_args` may be left out.

    Raises:
        ConfigurationError: If there is no such option.

    Example:
        >>> config = {"model": {"class_path": "DensePredictor", "init_args": {"encoder_lr_scale": 1.0}}}
        >>> changed(config, {"model.encoder_lr_scale": 0.1})["model"]["init_args"]
        {'encoder_lr_scale': 0.1}
    """
    result = copy.deepcopy(config)
    for name, value in values.items():
        node, key = _find(result, SHORT_NAMES.get(name, name))
        node[key] = value
    return result


def value_of(config: Config, name: str) -> Any:
    """The value of an option."""
    node, key = _find(config, SHORT_NAMES.get(name, name))
    return node[key]


def _find(config: Config, name: str) -> tuple[Any, Any]:
    """The container of an option and its key in it."""
    node: Any = None
    key: Any = None
    inner: Any = config
    for part in name.split("."):
        if isinstance(inner, dict) and part not in inner and isinstance(inner.get("init_args"), dict):
            inner = inner["init_args"]
        if isinstance(inner, list) and part.isdigit() and int(part) < len(inner):
            node, key = inner, int(part)
        elif isinstance(inner, dict) and part in inner:
            node, key = inner, part
        else:
            there = ", ".join(map(str, inner)) if isinstance(inner, dict) else f"{len(inner)} entries" if isinstance(
                inner, list) else repr(inner)  # fmt: skip
            raise ConfigurationError(
                f"tune: the run has no option {name}: {part!r} is not among {there}. Give it as it stands in a "
                "configuration, such as model.encoder_lr_scale or model.tasks.0.weight."
            )
        inner = node[key]
    return node, key


def with_optimizer(config: Config) -> tuple[Config, bool]:
    """The configuration with the optimizer written out where it is left to the module, and whether decay is decoupled.

    Decoupled decay (AdamW) multiplies the weights directly; in other optimizers it is a gradient, of another size.
    """
    with freed():
        optimizer = Bench(changed(config, on_trainer({**ONE_DEVICE, **QUIET, **NO_FILES}))).model.build_optimizer()
    filled = copy.deepcopy(config)
    arguments = filled["model"]["init_args"]
    if arguments.get("optimizer") is None:
        known = {key: optimizer.defaults[key] for key in ("lr", "weight_decay")}
        arguments["optimizer"] = {"class_path": class_path(type(optimizer)), "init_args": known}
    return filled, bool(optimizer.defaults.get("decoupled_weight_decay", False))


def on_trainer(options: Mapping[str, Any]) -> Config:
    """Options of the trainer by their full names."""
    return {f"trainer.{name}": value for name, value in options.items()}
