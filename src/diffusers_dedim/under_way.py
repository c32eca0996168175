"""Which photos are under way, on disk: a run that dies leaves behind what it may have died of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from diffusers_dedim.image_io import write_atomic

UNDER_WAY_NAME = ".dedim-under-way.jsonl"
MOST_DEATHS = 4
"""Dead runs a photo may be named by: once in company, then alone. It is not tried again after that.

Most runs that die are killed from outside, by chance while some photo was alone: once or twice must not condemn it.
"""

_MOST_LINES = 1000  # then the file is written anew: it does not grow with the number of photos


class UnderWay:
    """The file ``.dedim-under-way.jsonl`` in an output folder.

    A line is added before a photo is read and another once it is recorded: what was begun and not ended was under way
    when the run died. Several photos are at any time, so one mention says little. Nothing is synced: what a process has
    written outlives it, and a machine that crashes does so without the photo's help.

    Args:
        out: output folder.
        settled: photos of which nothing is to be found out any more, which are forgotten; None for all.

    Attributes:
        deaths: how many dead runs each photo was under way in; the others are not in it.

    Raises:
        OSError: the folder cannot be read or written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     UnderWay(Path(folder)).begin("a.png")  # and the process is killed
        ...     UnderWay(Path(folder), ()).deaths
        Counter({'a.png': 1})
    """

    def __init__(self, out: Path, settled: Container[str] | None = None) -> None:
        self._path = out / UNDER_WAY_NAME
        self._lock = Lock()  # photos are read in several threads
        found = Counter[str]() if settled is None else _read(self._path)
        # photos that are not this run's stay, for their files on disk are known by nothing else
        self.deaths = Counter({name: times for name, times in found.items() if name not in (settled or ())})
        self._begun: set[str] = set()
        self._lines, self._closed = 0, False
        self._save()

    def begin(self, name: str) -> None:
        """Say that a photo is about to be read."""
        with self._lock:
            if not self._closed:  # a thread may still be at it when the run is stopped
                self._begun.add(name)
                self._add("begun", name)

    def end(self, name: str) -> None:
        """Say that a photo was recorded, whatever became of it; nothing where it was not begun."""
        with self._lock:
            if name in self._begun:
                self._begun.remove(name)
                self.deaths.pop(name, None)
                self._add("ended", name)

    def close(self) -> None:
        """The run ends alive, so nothing that is under way is to blame: leave earlier deaths only, or no file."""
        with self._lock:
            self._closed = True
            self._begun.clear()
            self._save()

    def _add(self, event: str, name: str) -> None:
        if self._lines >= _MOST_LINES:
            self._save()  # with the event in it
            return
        with self._path.open("ab") as file:
            file.write(_line(event, name))
        self._lines += 1

    def _save(self) -> None:
        lines = [_line("died", name) for name in self.deaths.elements()]
        lines += [_line("begun", name) for name in sorted(self._begun)]
        self._lines = 0
        if lines:
            write_atomic(self._path, b"".join(lines))
        else:
            self._path.unlink(missing_ok=True)


def names_under_way(out: Path) -> frozenset[str]:
    """Photos in whose course earlier runs have died: their outputs may be on disk without a record.

    Raises:
        OSError: the file cannot be read.
    """
    return frozenset(_read(out / UNDER_WAY_NAME))


@contextmanager
def all_under_way(out: Path, names: Collection[str], settled: Container[str] = ()) -> Iterator[None]:
    """Say that all photos of a run are under way until it ends well: whatever is theirs on disk is no stranger's.

    For runs whose workers write without a record: a kill leaves many such files.

    Args:
        out: output folder.
        names: photos that the run may write.
        settled: photos that an earlier run has recorded.

    Raises:
        OSError: the folder cannot be read or written.
    """
    path = out / UNDER_WAY_NAME
    others = {name for name in names_under_way(out) if name not in settled}.difference(names)
    if names:
        write_atomic(path, b"".join(_line("begun", name) for name in sorted({*others, *names})))
    yield
    if others:  # of an earlier run with other inputs
        write_atomic(path, b"".join(_line("begun", name) for name in sorted(others)))
    else:
        path.unlink(missing_ok=True)


def _line(event: str, name: str) -> bytes:
    # ASCII also carries names that are not valid UTF-8, as in the manifest
    return json.dumps([event, name]).encode("ascii") + b"\n"


def _read(path: Path) -> Counter[str]:
    """The deaths in a file that a run has left, those of its end included."""
    deaths, begun = Counter[str](), set[str]()
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            event, name = json.loads(line)
        except (ValueError, TypeError):
            continue  # torn by the kill
        if event == "died":
            deaths[name] += 1
        elif event == "begun":
            begun.add(name)
        else:
            begun.discard(name)
            deaths.pop(name, None)
    deaths.update(begun)
    return deaths
