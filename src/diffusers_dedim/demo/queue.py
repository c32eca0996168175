"""The line in front of the pipeline: one photo at a time, first come first served.

Gradio's own queue is not used for it, because only ``cancels=`` stops a run that waits there. In Gradio 6.31, where
the server answers a cancellation late (a busy machine), messages of the old run overwrite what the page says since,
and a run started in between is ignored. Here a waiting run has begun already, and ends by itself when it is stopped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from diffusers_dedim.errors import DeDiMError

STOPPED = "Stopped. Nothing was changed."
_LOOK_EVERY = 0.1  # seconds


class StoppedError(DeDiMError):
    """The user stopped the run, or it took longer than the page allows."""


class LineFullError(DeDiMError):
    """Too many photos wait already."""


class Line:
    """Lets one run in at a time.

    Args:
        longest: how many may wait.

    Example:
        >>> with Line(1).turn(threading.Event(), lambda share, words: print(words)):
        ...     print("my turn")
        my turn
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._tickets: list[object] = []
        self._lock = threading.Lock()

    @contextmanager
    def turn(
        self, stop: threading.Event, report: Callable[[float, str], None], again: bool = False
    ) -> Iterator[None]:
        """Wait for one's turn, and hold it.

        Args:
            stop: ends the waiting once it is set.
            report: gets 0.0 and how many are before this one.
            again: this is a further photo of a run that was let in before: it waits like all, and is not refused.

        Raises:
            LineFullError: too many wait already. StoppedError: stopped while waiting.
        """
        ticket = self._join(again)
        try:
            while before := self._before(ticket):
                report(0.0, f"Waiting: {before} {'photo' if before == 1 else 'photos'} before this one")
                if stop.wait(_LOOK_EVERY):
                    raise StoppedError(STOPPED)
            yield
        finally:
            with self._lock:
                self._tickets.remove(ticket)

    def _join(self, again: bool) -> object:
        with self._lock:
            if not again and len(self._tickets) > self._longest:  # the first of them does not wait
                raise LineFullError(
                    f"{self._longest} photos are waiting here already. Please try again in some minutes."
                )
            self._tickets.append(ticket := object())
        return ticket

    def _before(self, ticket: object) -> int:
        with self._lock:
            return self._tickets.index(ticket)
