"""Whom a worker died of: a journal beside the output, so that a photo that kills its worker takes no other along."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ATTEMPTS_NAME = ".dedim-attempts"
DIED = "its worker died each time"
_MOST_DEATHS = 2  # of a row by itself
_TOGETHER = "together"


@contextmanager
def attempts_folder(out: Path) -> Iterator[None]:
    """Keep the journals of one run below an output folder that all workers share; nothing is left at the end.

    Where a worker's ``out`` is not the others', its journal helps only those that are tried again on its own machine.
    """
    shutil.rmtree(out / ATTEMPTS_NAME, ignore_errors=True)  # a killed run's
    try:
        yield
    finally:
        shutil.rmtree(out / ATTEMPTS_NAME, ignore_errors=True)


def batch_key(stage: str, names: Sequence[str]) -> str:
    """Tells a batch from others, the same each time it is tried."""
    return hashlib.sha256("\0".join([stage, *names]).encode("utf-8", "surrogatepass")).hexdigest()


def survive(
    out: Path, key: str, rows: Sequence[Row], work: Callable[[list[Row]], list[Row]],
    give_up: Callable[[Row], Row],
) -> list[Row]:  # fmt: skip
    """``work(rows)``, tried so that a row that kills the process is known when the batch is tried again.

    The first attempt works on all rows. If its journal is still there, the process has died of one of them: rows are
    worked on one by one then, with a line before and after each, and a row that was begun twice and never done is
    given up. So every death brings the batch further: it costs one, and two for each such row.

    Args:
        out: output folder, see `attempts_folder`.
        key: `batch_key` of the rows.
        rows: a batch.
        work: results of rows, in their order.
        give_up: the result of a row that is not tried any more.

    Returns:
        A result for each row, in their order: Ray may have handed on the first rows of an earlier attempt.

    Raises:
        OSError: the journal cannot be written.
    """
    if not rows:
        return []
    journal = out / ATTEMPTS_NAME / key
    journal.parent.mkdir(parents=True, exist_ok=True)
    try:
        journal.open("x").close()
    except FileExistsError:
        return _one_by_one(journal, rows, work, give_up)
    results = work(list(rows))
    journal.unlink(missing_ok=True)
    return results


def _one_by_one(
    journal: Path, rows: Sequence[Row], work: Callable[[list[Row]], list[Row]], give_up: Callable[[Row], Row]
) -> list[Row]:
    """As `survive`, from the second attempt on; the journal stays, as the whole task may be tried again."""
    begun, done = _read(journal)
    deaths = begun - done
    results: dict[int, Row] = {}
    for index, row in enumerate(rows):
        if deaths[str(index)] >= _MOST_DEATHS:
            results[index] = give_up(row)
        elif not done[str(index)]:
            results[index] = _noted(journal, str(index), [row], work)[0]
    # those that got through by themselves in an earlier attempt, whose results died with the process
    known = [index for index in range(len(rows)) if index not in results]
    if known and not deaths[_TOGETHER]:
        again = _noted(journal, _TOGETHER, [rows[index] for index in known], work)
    else:
        again = [work([rows[index]])[0] for index in known]
    results.update(zip(known, again, strict=True))
    return [results[index] for index in range(len(rows))]


def _noted(journal: Path, what: str, rows: list[Row], work: Callable[[list[Row]], list[Row]]) -> list[Row]:
    _add(journal, "begun", what)
    results = work(rows)
    _add(journal, "done", what)
    return results


def _add(journal: Path, event: str, what: str) -> None:
    with journal.open("a") as file:
        file.write(f"{event} {what}\n")


def _read(journal: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each row was begun and done; the rows are numbers, as the journal's name holds their ids."""
    # it is gone where another batch of the same ids has come to its end meanwhile
    text = journal.read_text() if journal.exists() else ""
    events = [line.split() for line in text.splitlines()]
    return tuple(  # type: ignore[return-value]
        Counter(words[1] for words in events if len(words) == 2 and words[0] == event)
        for event in ("begun", "done")
    )
