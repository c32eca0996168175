from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from diffusers_dedim.demo.queue import Line, LineFullError, StoppedError


def nothing(share: float, words: str) -> None: ...


class Runs:
    """Runs that hold their turn until they are let go, in a line for two."""

    def __init__(self) -> None:
        self.line, self.order, self.pool = Line(2), list[str](), ThreadPoolExecutor(4)
        self.go: dict[str, threading.Event] = {}
        self.told: dict[str, str] = {}
        self.at_work = 0

    def join(self, name: str, stop: threading.Event | None = None) -> Future[None]:
        """Start a run, and return when it has its place."""
        self.go[name], places = threading.Event(), len(self.line._tickets)
        future = self.pool.submit(self._run, name, stop or threading.Event())
        deadline = time.monotonic() + 30
        while len(self.line._tickets) == places and not future.done() and time.monotonic() < deadline:
            time.sleep(0.001)
        return future

    def _run(self, name: str, stop: threading.Event) -> None:
        with self.line.turn(stop, lambda share, words: self.told.update({name: words})):
            self.order.append(name)
            self.at_work += 1
            assert self.at_work == 1
            self.go[name].wait(30)
            self.at_work -= 1


def test_first_come_first_served_one_at_a_time() -> None:
    runs = Runs()
    futures = [runs.join(name) for name in "abc"]
    runs.go["c"].set()
    runs.go["b"].set()
    runs.go["a"].set()
    for future in futures:
        future.result(30)
    assert runs.order == ["a", "b", "c"]
    assert runs.told["b"] == "Waiting: 1 photo before this one"


def test_a_run_that_waits_can_be_stopped_and_the_others_go_on() -> None:
    runs, stop = Runs(), threading.Event()
    first, second, third = runs.join("a"), runs.join("b", stop), runs.join("c")
    stop.set()
    with pytest.raises(StoppedError, match=r"^Stopped\. Nothing was changed\.$"):
        second.result(30)
    assert not first.done()
    runs.go["c"].set()
    runs.go["a"].set()
    third.result(30)
    assert runs.order == ["a", "c"]


def test_a_full_line_says_so_and_keeps_its_places() -> None:
    runs = Runs()
    futures = [runs.join(name) for name in "abc"]
    text = r"^2 photos are waiting here already\. Please try again in some minutes\.$"
    with pytest.raises(LineFullError, match=text):
        runs.join("d").result(30)
    for name in "abc":
        runs.go[name].set()
    for future in futures:
        future.result(30)
    with runs.line.turn(threading.Event(), nothing):  # empty again
        pass


def test_a_run_that_was_let_in_before_is_not_refused() -> None:
    line = Line(-1)
    with pytest.raises(LineFullError), line.turn(threading.Event(), nothing):
        pass
    with line.turn(threading.Event(), nothing, again=True):
        pass


def test_a_run_that_fails_leaves_its_place() -> None:
    line = Line(0)
    with pytest.raises(RuntimeError, match="broken"), line.turn(threading.Event(), nothing):
        raise RuntimeError("broken")
    with line.turn(threading.Event(), nothing):
        pass
