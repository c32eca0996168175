"""Rows in a file that tell, after a kill at any moment, what was done and what was under way."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from diffusers_dedim.atomic import named_errors

BEGUN, STOPPED = "begun", "stopped"
"""Kinds of rows that say when work on a thing began, and that it was under way when the process ended alive."""


class Journal:
    """A file of JSON objects, one a line, that is only ever added to.

    A row with a ``name`` is about that thing: it was ``begun``; or ``stopped``, with the process that worked on it
    alive; or, any other ``kind``, it is done. What was begun and neither done nor stopped was under way when a process
    died. Several things are at any time, so one death says little; who is there each time is to blame.

    Only what is done is synced: what a process has written outlives it, and a machine that crashes does so without the
    things' help. A last line torn by a kill, or by a full disk, is cut off before the next one is written.

    Args:
        path: the file; it need not exist, its folder must.

    Attributes:
        deaths: how many dead processes each thing was under way in, once `rows` are read; the others are not in it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Journal(Path(folder, "journal")).begin("a.png")  # and the process is killed
        ...     Journal.read(Path(folder, "journal")).deaths
        Counter({'a.png': 1})
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.deaths: Counter[str] = Counter()
        self._lock = Lock()  # photos are read in several threads, and written in another
        self._whole: int | None = None  # bytes up to a torn line
        self._begun: set[str] = set()  # in this process
        self._stopped = False

    @classmethod
    def read(cls, path: Path) -> Journal:
        """A journal whose rows have been read.

        Raises:
            OSError: the file cannot be read.
        """
        journal = cls(path)
        for _ in journal.rows():
            pass
        return journal

    def rows(self) -> Iterator[dict[str, Any] | None]:
        """Yield each whole line, or None where it is no JSON object, and count `deaths` on the way.

        Raises:
            OSError: the file is there and cannot be read.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            end = 0
            for line in file:
                if not line.endswith(b"\n"):
                    self._whole = end
                    return
                end += len(line)
                row = parse_row(line)
                if row is not None:
                    self._count(row)
                yield row

    def begin(self, name: str) -> None:
        """Say that work on a thing is about to begin; nothing once the process has said that it stops.

        Raises:
            OSError: the row cannot be written.
        """
        with self._lock:
            if not self._stopped:  # a thread may still be at it
                self._begun.add(name)
                self._add([{"kind": BEGUN, "name": name}])

    def begin_all(self, names: Iterable[str]) -> None:
        """The same of many at once, where only what is under way is of interest: who has a row gets no other one.

        Raises:
            OSError: the rows cannot be written.
        """
        with self._lock:
            new = set(names) - self._begun
            self._begun |= new
            self._add({"kind": BEGUN, "name": name} for name in sorted(new - self.deaths.keys()))

    def end(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add a row for each thing that is done; on return they are on disk.

        What was not begun was not even tried: the deaths it is blamed for stay, in its row.

        Raises:
            OSError: the disk is full or gone; nothing counts as done.
        """
        with self._lock:
            done = list(rows)
            kept = {row["name"]: self.deaths[row["name"]] for row in done if row["name"] not in self._begun}
            self._add(
                ({**row, "deaths": kept[row["name"]]} if kept.get(row["name"]) else row for row in done), True
            )
            for name in {row["name"] for row in done} - kept.keys():
                self._begun.discard(name)
                self.deaths.pop(name, None)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Things may be begun in the block; where it is left, for any reason, nothing that is under way is to blame.

        Raises:
            OSError: the rows that say so cannot be written.
        """
        self._stopped = False
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """Say that the process ends alive.

        Raises:
            OSError: the rows cannot be written.
        """
        with self._lock:
            self._stopped = True
            self._add({"kind": STOPPED, "name": name} for name in sorted(self._begun))
            self._begun.clear()

    def _add(self, rows: Iterable[Mapping[str, Any]], sync: bool = False) -> None:
        data = b"".join(map(row_line, rows))
        if not data:
            return
        with named_errors(self.path), self.path.open("ab") as file:
            if self._whole is not None:
                file.truncate(self._whole)
            self._whole = file.seek(0, os.SEEK_END)  # until all of it is there
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        self._whole = None

    def _count(self, row: Mapping[str, Any]) -> None:
        kind, name = row.get("kind"), row.get("name")
        if not isinstance(name, str):
            return
        times: int = row.get("deaths", 0)
        if kind == BEGUN:
            times = self.deaths[name] + 1
        elif kind == STOPPED:
            times = self.deaths[name] - 1
        self.deaths[name] = times
        if times <= 0:
            del self.deaths[name]


def row_line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSON."""
    # ASCII also carries names that are not valid UTF-8 (lone surrogates) through unharmed
    return json.dumps(row, ensure_ascii=True, allow_nan=True).encode("ascii") + b"\n"


def parse_row(line: bytes) -> dict[str, Any] | None:
    """The inverse of `row_line`; None where the line is no JSON object."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
