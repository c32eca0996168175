"""Work in threads beside the consumer: reading and writing while the networks compute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of the items, computed in threads before it is asked for.

    Items are taken in the consumer's thread, at most ``ahead`` more than were yielded, so memory does not grow
    with their number. A result that is ready waits while the next item is taken, which may be long: what must not wait,
    such as the record of a written file, ``function`` does itself.

    Args:
        function: called in a thread; what it raises is raised here, at that item's turn.
        items: may be endless.
        threads: how many calls run at a time, at least 1.
        ahead: how many results may be under way or waiting, at least 1.

    Example:
        >>> list(map_ahead(abs, [-1, 2, -3], threads=2, ahead=2))
        [1, 2, 3]
    """
    futures: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            futures.append(pool.submit(function, item))
            while futures and (futures[0].done() or len(futures) > ahead):
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:  # also where the consumer stops early
        pool.shutdown(cancel_futures=True)
