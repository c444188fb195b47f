"""How long a training waits for its data."""

import time

import torch


class DataWait:
    """A clock of the time that a training spends, and of the part in which it had no batch to work on.

    On the CPU that is the time from the end of a step to the arrival of the next batch. A GPU works on while the
    process waits, so there it is the time in which the GPU had nothing to do in between, measured by events on the GPU
    itself; they are read when somebody asks, which waits for the GPU.

    Args:
        device: Where the network is.

    Attributes:
        starting: Seconds of it spent on the first batch of an epoch, before which workers start and fill their queues.
    """

    def __init__(self, device: torch.device) -> None:
        self.starting = 0.0
        self._device = device
        self._waited = self._total = 0.0
        self._since: float | None = None
        self._fresh = False
        self._idle_from: torch.cuda.Event | None = None
        self._idle: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self, epoch: bool) -> None:
        """The next batch is asked for, at the beginning of an epoch or after something else."""
        self._since = time.perf_counter()
        self._idle_from = None
        self._fresh = epoch

    def pause(self) -> None:
        """Something else is done."""
        self._since = self._idle_from = None

    def came(self) -> None:
        """A batch is there."""
        if self._since is None:
            self._since = time.perf_counter()
            return
        waited = self._add()
        if self._idle_from is not None:
            self._idle.append((self._idle_from, self._event()))
        else:
            self._waited += waited
        self.starting += waited if self._fresh else 0.0
        self._fresh = False

    def done(self) -> None:
        """Its step is over, for the process."""
        self._add()
        self._idle_from = self._event() if self._device.type == "cuda" else None

    def _add(self) -> float:
        now = time.perf_counter()
        passed = 0.0 if self._since is None else now - self._since
        self._total += passed
        self._since = now
        return passed

    def _event(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def read(self) -> tuple[float, float]:
        """Seconds without data, and all seconds, since the beginning."""
        if self._idle:
            self._idle[-1][1].synchronize()
            self._waited += sum(begin.elapsed_time(end) for begin, end in self._idle) / 1000
            self._idle = []
        return self._waited, self._total
