"""Finding a run's checkpoint again, and what a resumed run takes from it and what from its configuration."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from densepred.errors import ConfigurationError
from densepred.recipe import refuse_foreign
from densepred.vouched import RUN_PACKAGES
from densepred.yaml_text import read_yaml

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

RATES = ("lr", "initial_lr", "max_lr", "min_lr")


def keep_configured_rates(checkpoint: dict[str, Any], configured: Optimizer) -> None:
    """Makes the saved optimizer and schedule continue at the configured learning rate and options.

    PyTorch restores an optimizer's options with its state, so that a changed learning rate would be ignored. The
    checkpoint's rates are rescaled by new base rate / old base rate, which keeps the schedule's progress; other options
    (weight decay, momentum, ...) are taken as configured. Where parameters are grouped otherwise now, each takes its
    state along.

    Args:
        checkpoint: Changed in place.
        configured: An optimizer as the configuration builds it, before any schedule.
    """
    _regroup(checkpoint, configured)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    if len(groups) != len(configured.param_groups):
        return  # other parameters are trained: loading the state tells it
    ratios = []
    for saved, wanted in zip(groups, configured.param_groups, strict=True):
        base = saved.get("initial_lr", saved["lr"])
        ratio = wanted["lr"] / base if base else 1.0
        ratios.append(ratio)
        for key in RATES:
            if key in saved:
                saved[key] = saved[key] * ratio
        cycled = {"momentum", "betas"} if "max_momentum" in saved else set()
        saved |= {k: v for k, v in wanted.items() if k not in {"params", *RATES, *cycled}}
    for schedule in checkpoint.get("lr_schedulers", []):
        for key in ("base_lrs", "_last_lr"):
            if key in schedule and len(schedule[key]) == len(ratios):
                schedule[key] = [rate * ratio for rate, ratio in zip(schedule[key], ratios, strict=True)]


def _regroup(checkpoint: dict[str, Any], configured: Optimizer) -> None:
    """Sorts the saved state of parameters into the configured groups, by the parameters' names."""
    saved = checkpoint["optimizer_states"][0]
    old, new = saved["param_groups"], configured.param_groups
    names = [[group.get("names", []) for group in groups] for groups in (old, new)]
    home = {name: index for index, group in enumerate(names[0]) for name in group}
    if names[0] == names[1] or sorted(home) != sorted(name for group in names[1] for name in group):
        return
    places = {name: place for group in old for name, place in zip(group["names"], group["params"], strict=True)}
    # an optimizer counts its parameters through its groups
    order = [places[name] for group in names[1] for name in group]
    saved["state"] = {number: saved["state"][place] for number, place in enumerate(order) if place in saved["state"]}
    origins = [home[group[0]] for group in names[1]]
    counts = iter(range(len(order)))
    saved["param_groups"] = [
        {**old[origin], "names": list(group), "params": [next(counts) for _ in group]}
        for origin, group in zip(origins, names[1], strict=True)
    ]
    for schedule in checkpoint.get("lr_schedulers", []):
        for key, values in schedule.items():
            if isinstance(values, list) and len(values) == len(old):
                schedule[key] = [values[origin] for origin in origins]


def continue_after_epoch(trainer: "Trainer") -> None:
    """Lets a run that is resumed at the end of an epoch begin the next one.

    Lightning takes every resumed run with `max_steps` for one that was interrupted within an epoch. It would end the
    finished epoch a second time, and count it, so that the order of the data would skip one.
    """
    from pytorch_lightning.loops.loop import _Loop  # 4 s, for verbs that only read checkpoints

    loop = trainer.fit_loop
    if loop.restarted_on_epoch_end:
        # the fit loop's own setter keeps it for such runs
        _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]
        loop.reset_restart_stage()
        loop.epoch_progress.increment_completed()


def keep_on_the_curve(trainer: "Trainer") -> None:
    """Sets the rates to where the schedules stand: a resumed run may be longer now than it was."""
    for entry in trainer.lr_scheduler_configs:
        if isinstance(schedule := entry.scheduler, LambdaLR):
            groups = zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True)
            for group, base, factor in groups:
                group["lr"] = base * factor(schedule.last_epoch)


def find_checkpoint(name: str, root: Path) -> Path:
    """The file that `--ckpt_path` means: a path, or `last`, `best`, `best-<task>` of the newest run below `root`.

    Raises:
        ConfigurationError: If there is none; it says where was looked and what is there.
    """
    if Path(name).is_file():
        return Path(name)
    if Path(name).name != name or name.endswith(".ckpt"):
        raise ConfigurationError(
            f"--ckpt_path {name}: there is no such file. Expected a checkpoint (.ckpt), or last or best."
        )
    runs = sorted(root.glob("version_*/checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in runs:
        if path.stem == name:
            return path
    known = (
        f"There are: {', '.join(sorted({path.stem for path in runs}))}." if runs else "No run there has a checkpoint."
    )
    raise ConfigurationError(
        f"--ckpt_path {name}: found no {name}.ckpt in {root}/version_*/checkpoints. {known} Give a file, or the "
        "experiment's folder with --trainer.default_root_dir."
    )


_SECTIONS = ("seed_everything", "trainer", "model", "data", "protocol")
"""What of a run's configuration goes with its checkpoints."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint as plain values and tensors (`weights_only=True`), without reading tensors that are not used.

    Raises:
        ConfigurationError: If the file is not a whole checkpoint.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise ConfigurationError(f"{path}: {what}. Expected a checkpoint (.ckpt) written by densepred fit.")
    try:
        refuse_compressed(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damaged pickles make the reader raise anything
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigurationError(
            f"{path} cannot be read as a checkpoint: {cause}. Expected a .ckpt file written by densepred fit, whole "
            "and without Python objects beside plain values and tensors."
        ) from error
    if not isinstance(checkpoint, dict):
        raise ConfigurationError(
            f"{path} holds a {type(checkpoint).__name__}, not a checkpoint. Expected a .ckpt file written by densepred "
            "fit."
        )
    return checkpoint


def refuse_compressed(path: Path) -> None:
    """Raises a ValueError where a file of torch.save is compressed: small ones could hold much, torch writes none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise ValueError("its records are compressed, which torch.save never does")


def check_same_network(path: Path, built: Mapping[str, Tensor]) -> None:
    """Compares a checkpoint's tensors with those of the network as it is configured now.

    Raises:
        ConfigurationError: If names or shapes differ; it counts them and gives an example of each.
    """
    saved = read_checkpoint(path)["state_dict"]
    missing = [name for name in built if name not in saved]
    surplus = [name for name in saved if name not in built]
    other = [
        f"{name} {tuple(saved[name].shape)} there, {tuple(tensor.shape)} here"
        for name, tensor in built.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    found = {"not in the checkpoint": missing, "in the checkpoint alone": surplus, "of another shape": other}
    if any(found.values()):
        lines = [f"  {len(names)} {what}, such as {names[0]}" for what, names in found.items() if names]
        raise ConfigurationError(
            "\n".join([f"{path} holds another network than the one configured now. Tensors", *lines])
            + "\nLeave the model's options as they were in that run, or leave --ckpt_path out to train the new one."
        )


def checkpoint_config(path: Path, allow: Sequence[str] = ()) -> dict[str, Any]:
    """The configuration a checkpoint was trained with; of one trained from Python, the model's part.

    Args:
        path: The checkpoint.
        allow: Packages or classes that it may name, beside those of a run: densepred, torch, torchvision, Lightning and
            albumentations.

    Raises:
        ConfigurationError: If the checkpoint holds none, or one that names other classes.
    """
    config = _configured(path)
    refuse_foreign(config, str(path), allow, RUN_PACKAGES)
    return config


def _configured(path: Path) -> dict[str, Any]:
    checkpoint = read_checkpoint(path)
    if "config" in checkpoint:
        try:
            config = read_yaml(str(checkpoint["config"]), f"{path}: its configuration")
        except yaml.YAMLError as error:
            raise ConfigurationError(f"{path}: its configuration is no YAML: {error}") from error
        if not isinstance(config, dict):
            raise ConfigurationError(f"{path}: its configuration is a {type(config).__name__}, not a mapping.")
        return {key: config[key] for key in _SECTIONS if key in config}
    hyperparameters = checkpoint.get("hyper_parameters")
    hyperparameters = dict(hyperparameters) if isinstance(hyperparameters, dict) else {}
    hyperparameters.pop("_instantiator", None)
    if "_class_path" not in hyperparameters:
        raise ConfigurationError(f"{path} does not say how its model was built. Give the run's --config as well.")
    return {"model": {"class_path": hyperparameters.pop("_class_path"), "init_args": hyperparameters}}
