from __future__ import annotations

import itertools
import threading

import pytest

from diffusers_dedim.prefetch import map_ahead


def test_results_keep_the_order_of_the_items() -> None:
    gates = [threading.Event() for _ in range(3)]

    def late_first(index: int) -> int:
        gates[index].wait(5)
        return index

    results = map_ahead(late_first, range(3), threads=3, ahead=3)
    for gate in reversed(gates):
        gate.set()
    assert list(results) == [0, 1, 2]


def test_an_endless_source_is_taken_a_little_ahead_only() -> None:
    taken = 0

    def source():
        nonlocal taken
        for taken in itertools.count(1):  # noqa: UP028  # the loop variable is what the test reads
            yield taken

    results = map_ahead(abs, source(), threads=2, ahead=3)
    for wanted in range(1, 50):
        assert next(results) == wanted
        assert taken <= wanted + 3
    results.close()


def test_an_error_is_raised_at_its_turn() -> None:
    results = map_ahead(lambda value: 1 // value, [1, 0, 1], threads=1, ahead=2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
