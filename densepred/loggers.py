"""Where a run's numbers go: always a CSV file in its own folder, and whatever loggers the user adds."""

import csv
import netrc
import os
import socket
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.csv_logs import _ExperimentWriter
from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only

from densepred.errors import ConfigurationError


class RunLogger(CSVLogger):
    """Lightning's CSVLogger, which continues an existing `metrics.csv` instead of deleting it.

    The run's folder is `<save_dir>/version_<N>`; checkpoints, panels and the configuration go there too.

    Args:
        save_dir: The experiment's folder.
        version: A run to continue; by default the next free one.
    """

    def __init__(self, save_dir: str | Path, version: int | None = None) -> None:
        super().__init__(save_dir, name=None, version=version)

    def _get_next_version(self) -> int:
        """Takes the next free folder by making it, so that two runs started together get one each."""
        while True:
            version: int = super()._get_next_version()
            if getattr(rank_zero_only, "rank", 0) != 0:
                return version  # the other processes of a run are told rank zero's folder
            try:
                Path(self._root_dir, f"version_{version}").mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError:
                pass  # a folder that cannot be written is refused, with its reason, where the run starts
            return version

    @property
    @rank_zero_experiment
    def experiment(self) -> _ExperimentWriter:
        """The writer of the CSV file; the first process has it alone, and so makes the run's folder alone."""
        if self._experiment is None:
            try:
                os.makedirs(self.log_dir, exist_ok=True)
            except OSError as error:
                raise ConfigurationError(
                    f"The run's folder cannot be made: {error}. Set trainer.default_root_dir to a folder that you may "
                    "write to."
                ) from error
            self._experiment = _ContinuingWriter(self.log_dir)
        return self._experiment


class _ContinuingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Keeps what an interrupted run has written."""
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        part = path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fieldnames)
            writer.writeheader()
            writer.writerows(rows)
        part.replace(path)


def drop_rows_after(metrics: Path, step: int) -> None:
    """Removes rows logged after `step`, which a resumed run will log again; the file is replaced in one go.

    A last line without its end was being written when the run was killed, and goes too.
    """
    lines = metrics.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    reader = csv.DictReader(whole)
    fields, rows = list(reader.fieldnames or []), list(reader)
    kept = [row for row in rows if int(row["step"] or 0) < step]
    if len(kept) == len(lines) - 1:
        return
    part = metrics.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=fields)
        writer.writeheader()
        writer.writerows(kept)
    part.replace(metrics)


def wandb_offline_unless_reachable(folder: str | Path) -> str | None:
    """Makes Weights & Biases run offline where it has no key or no network, so that it never prompts or hangs.

    Args:
        folder: Where its files go.

    Returns:
        What to tell the user, or None where nothing was changed.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    if os.environ.get("WANDB_MODE"):
        return None
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    name, _, port = host.partition(":")
    reason = None
    if not (os.environ.get("WANDB_API_KEY") or _in_netrc(name)):
        reason = "no API key (wandb login)"
    else:
        try:
            socket.create_connection((name, int(port or 443)), timeout=3).close()
        except OSError as error:
            reason = f"{host} cannot be reached ({error})"
    if reason is None:
        return None
    os.environ["WANDB_MODE"] = "offline"
    return f"Weights & Biases runs offline: {reason}. Upload later with: wandb sync {folder}/wandb/offline-run-*"


def _in_netrc(host: str) -> bool:
    """Whether `wandb login` has left a key."""
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        if path and Path(path).expanduser().is_file():
            try:
                return netrc.netrc(Path(path).expanduser()).authenticators(host) is not None
            except netrc.NetrcParseError:
                return False
    return False


def with_run_logger(loggers: Any, save_dir: str | Path, version: int | None) -> list[Any] | bool:
    """The trainer's `logger` argument with the run's CSV logger before the user's own; False stays False."""
    if loggers is False:
        return False
    if loggers is None or loggers is True:
        return [RunLogger(save_dir, version)]
    return [RunLogger(save_dir, version), *(loggers if isinstance(loggers, list) else [loggers])]
