"""The order in which a set is drawn, by one process or by several."""

from collections.abc import Callable, Iterator
from itertools import repeat

import numpy as np
from torch.utils.data.distributed import DistributedSampler

from densepred.data.dataset import Filler


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Yields (epoch, index) pairs, shuffled anew every epoch as a function of (seed, epoch) only.

    The epoch travels with the index, so that a worker, a persistent one included, knows which random numbers a sample
    draws. The trainer calls `set_epoch`, so a resumed run continues with the order it would have had, within an epoch
    where `done` says how much of it was drawn. Being a `DistributedSampler`, it is left in place by the trainer on
    several processes, where each takes every `num_replicas`-th draw: batch k of all processes together is batch k of
    one process with that many times the batch size. What does not divide evenly is left out of the epoch, never drawn
    twice.

    Args:
        length: Number of samples.
        seed: Of the order.
        num_replicas: Number of processes that share an epoch.
        rank: Which of them this is.
        done: Asked when an epoch is set: how many draws of it this process has had before it was interrupted.

    Example:
        >>> sampler = EpochSampler(4)
        >>> sampler.set_epoch(7)
        >>> sorted(sampler)
        [(7, 0), (7, 1), (7, 2), (7, 3)]
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        done: Callable[[], int] | None = None,
    ) -> None:
        super().__init__(range(length), num_replicas, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.done = done
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Another epoch, or the rest of an interrupted one; its length stays the whole epoch's."""
        super().set_epoch(epoch)
        self.start = self.done() if self.done else 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.dataset))  # type: ignore[arg-type]
        draws = order[: self.total_size][self.rank :: self.num_replicas]
        # pairs as they are drawn: a million at once take ten times the memory of the order
        return zip(repeat(self.epoch), map(int, draws[self.start :]), strict=False)


class EvaluationSampler(DistributedSampler[int]):
    """Every sample once, in order, on any number of processes, in the very batches that one process would make.

    Batch k goes to process k modulo `num_replicas`. So a loss that is a mean over a batch, and the padding of images of
    different sizes, do not depend on the number of processes, and sums over all batches are the same. Where the batches
    do not divide evenly, the processes that have one fewer end with a `Filler`: all take the same number of steps,
    which keeps those that wait for each other (a sharded network's layers, the sums at the end) from waiting forever,
    and none counts anything twice.

    Args:
        length: Number of samples.
        batch_size: Of the loader that uses it.
        num_replicas: Number of processes.
        rank: Which of them this is.
        fill: Whether shorter processes end with a filler.

    Example:
        >>> [list(EvaluationSampler(5, batch_size=2, num_replicas=2, rank=rank)) for rank in (0, 1)]
        [[0, 1, 4], [2, 3, Filler(0)]]
    """

    def __init__(self, length: int, batch_size: int, num_replicas: int = 1, rank: int = 0, fill: bool = True) -> None:
        super().__init__(range(length), num_replicas, rank, shuffle=False)  # type: ignore[arg-type]
        starts = range(0, length, batch_size)
        mine = [i for start in starts[rank::num_replicas] for i in range(start, min(start + batch_size, length))]
        short = len(starts[rank::num_replicas]) < len(starts[::num_replicas])
        self.indices = [*mine, Filler(0)] if fill and short else mine

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)
