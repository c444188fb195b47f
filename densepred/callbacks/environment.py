"""What a run ran on: versions, devices, the commit of the code and the command line."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from densepred import __version__
from densepred.callbacks.panels import run_folder
from densepred.callbacks.run_files import write_json
from densepred.reports.run import ENVIRONMENT, read_json

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "albumentations", "numpy")


class Environment(pl.Callback):
    """Writes `environment.json` into the run's folder when it starts: an entry for each start, so also for a resume.

    An entry holds the verb, the time, the command line, the versions of Python and of the packages that make the
    numbers, the device, the number of processes, the precision, and the commit of the working folder, if it is in Git,
    with whether files differ from it.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Adds this start."""
        path = run_folder(trainer) / ENVIRONMENT
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            starts = read_json(path) or []
            write_json(path, [*starts, environment(trainer)])


def environment(trainer: pl.Trainer) -> dict[str, Any]:
    """This process and its trainer, as plain values."""
    return {
        "verb": str(trainer.state.fn.value) if trainer.state.fn else "",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "continues": str(trainer.ckpt_path) if trainer.ckpt_path else None,
        "densepred": __version__,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "platform": platform.platform(),
        "device": device_name(trainer.strategy.root_device),
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "precision": str(trainer.precision),
        "git": git_state(Path.cwd()),
    }


def device_name(device: torch.device) -> str:
    """The device as its maker calls it."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda})"
    return f"{device.type} {platform.processor() or platform.machine()}" if device.type == "cpu" else device.type


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that a folder stands at, and whether followed files differ from it; None where there is no Git."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *words: str) -> str | None:
    try:
        # without the optional lock: another git command of the user must not fail because of this one
        command = ["git", "--no-optional-locks", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
