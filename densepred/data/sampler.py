"""The order in which a training set is drawn."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data.distributed import DistributedSampler


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Yields (epoch, index) pairs, shuffled anew every epoch as a function of (seed, epoch) only.

    The epoch travels with the index, so that a worker, a persistent one included, knows which random numbers a sample
    draws. The trainer calls `set_epoch`, so a resumed run continues with the order it would have had. Being a
    `DistributedSampler`, it is left in place by the trainer on several processes, where each takes every
    `num_replicas`-th draw and the list is filled up from its start, so that all take equally many.

    Args:
        length: Number of samples.
        seed: Of the order.
        num_replicas: Number of processes that share an epoch.
        rank: Which of them this is.

    Example:
        >>> sampler = EpochSampler(4)
        >>> sampler.set_epoch(7)
        >>> sorted(sampler)
        [(7, 0), (7, 1), (7, 2), (7, 3)]
    """

    def __init__(self, length: int, seed: int = 0, num_replicas: int = 1, rank: int = 0) -> None:
        super().__init__(range(length), num_replicas, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.dataset))  # type: ignore[arg-type]
        draws = np.resize(order, self.total_size)[self.rank :: self.num_replicas]
        return iter([(self.epoch, index) for index in draws.tolist()])
