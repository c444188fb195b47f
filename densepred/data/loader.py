"""The loader of every split, and its processes."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import cv2
from torch import Tensor
from torch.utils.data import DataLoader


class EpochLoader(DataLoader[dict[str, Tensor | str]]):
    """A DataLoader of which the trainer may know that it continues within an epoch.

    It has no state of its own: samples are a function of (seed, epoch, index), and how many batches were trained is the
    trainer's to know. A count kept here would include batches that workers have prepared and nobody has seen.

    Workers begin when the first batch is asked for. The trainer makes its iterator before a checkpoint is loaded, to
    count the steps for a schedule, and theirs would be batches of an epoch that is over.
    """

    def __iter__(self) -> Iterator[dict[str, Tensor | str]]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: `EpochSampler` asks the trainer for its place."""


def start_worker(worker: int) -> None:
    """Sets a loading process up.

    OpenCV keeps to the worker's own thread: workers are the parallelism, threads inside them fight over cores. SIGTERM
    ends a worker when it comes from the process that trains. A scheduler sends it to all, and there it is left to that
    process, which needs the batches under way until its checkpoint is written.
    """
    cv2.setNumThreads(0)
    # macOS has no sigwaitinfo; without a parent this is no worker but the process that trains
    if hasattr(signal, "sigwaitinfo") and multiprocessing.parent_process() is not None:
        # a handler could not tell who asks
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_the_parent, daemon=True).start()


def _obey_the_parent() -> None:
    parent = multiprocessing.parent_process()
    while parent and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
