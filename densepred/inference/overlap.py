"""Reading, computing and writing at the same time, by threads: all three let go of Python's lock."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def done_ahead(function: Callable[[Given], Made], items: Iterable[Given], threads: int, ahead: int) -> Iterator[Made]:
    """`function` of each item, in order; other threads work at most `ahead` items before the one that is asked for.

    What the function raises is raised where its item is asked for.

    Example:
        >>> list(done_ahead(str.upper, ["a", "b", "c"], threads=2, ahead=2))
        ['A', 'B', 'C']
    """
    waiting: deque[Future[Made]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def drawn_ahead(items: Iterable[Made], ahead: int) -> Iterator[Made]:
    """The items of an iterator that cannot be split, such as a video, drawn by one other thread."""
    source = iter(items)
    end: Any = object()

    def draw(_: int) -> Made:
        return next(source, end)

    for item in done_ahead(draw, _forever(), 1, ahead):
        if item is end:
            return
        yield item


def _forever() -> Iterator[int]:
    while True:
        yield 0


class DoneBehind(Generic[Made]):
    """Does things in other threads, at most so many waiting, and tells of errors at the next call, or at the end.

    Args:
        threads: How many.
        waiting: How many things may wait; the caller waits for more.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._most = waiting
        self._futures: deque[Future[Made]] = deque()

    def __enter__(self) -> Self:
        return self

    def do(self, function: Callable[..., Made], *arguments: Any) -> None:
        """Does one more thing."""
        while self._futures and (len(self._futures) >= self._most or self._futures[0].done()):
            self._futures.popleft().result()
        self._futures.append(self._pool.submit(function, *arguments))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._futures:
                self._futures.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
