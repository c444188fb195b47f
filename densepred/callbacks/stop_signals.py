"""Signals by which a scheduler asks a training to end: heard at once, obeyed where it can end well."""

import os
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.utilities.exceptions import SIGTERMException


class StopSignals:
    """SIGTERM, and under SLURM the requeue signal (SIGUSR1), as a request that is remembered.

    The trainer's own handlers are replaced while it trains. They save in the middle of a step, and on several processes
    they communicate from within the handler, which hangs where the processes are not at the same place.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._replaced: dict[int, Any] = {}
        self._requeue: int | None = None

    @property
    def received(self) -> bool:
        """Whether this process was asked to end."""
        return self._number is not None

    def install(self, trainer: pl.Trainer) -> None:
        """Listens, where this is the main thread; a second call changes nothing."""
        if self._replaced or threading.current_thread() is not threading.main_thread():
            return
        self._number = signal.SIGTERM if trainer.received_sigterm else None  # it came while the run was being set up
        environment = getattr(trainer.strategy, "cluster_environment", None)
        numbers: list[int] = [signal.SIGTERM]
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue and environment.requeue_signal:
            self._requeue = environment.requeue_signal
            numbers.append(self._requeue)
        self._replaced = {number: signal.signal(number, self._hear) for number in numbers}

    def restore(self) -> None:
        """Gives the signals back to whom they belonged."""
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced = {}

    def end(self, trainer: pl.Trainer, checkpoint: str) -> None:
        """Ends the training, here and, as all call it at the same step, on the other processes.

        Raises:
            SIGTERMException: Always. Its status is 128 + signal on the first process and 0 on the others, since the
                trainer kills the first one where another fails.
        """
        number = self._number or signal.SIGTERM
        if trainer.is_global_zero:
            name = signal.Signals(number).name
            there = (
                f"Continue with: densepred fit --ckpt_path {checkpoint}"
                if checkpoint and os.path.exists(checkpoint)
                else "Nothing was trained yet, so there is no checkpoint."
            )
            print(
                f"\ndensepred: ended by {name} after step {trainer.global_step}. {there}", file=sys.stderr, flush=True
            )
            if number == self._requeue:
                requeue()
        raise SIGTERMException(128 + number if trainer.is_global_zero else 0)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._number = number


def requeue() -> None:
    """Asks SLURM to run this job again."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"densepred: job {job} could not be requeued: {error}. Submit it again.", file=sys.stderr, flush=True)
