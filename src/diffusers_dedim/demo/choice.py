"""What a visitor has chosen, while clicks and their answers are on their way."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diffusers_dedim.demo.people import OpenedPhotos

_LONGEST_WAIT = 5.0  # seconds for one that was overtaken to end; it looks several times a second


class Corner(NamedTuple):
    """Where a box begins that is being drawn: index of the photo, px of its picture."""

    photo: int
    x: float
    y: float


class Choice:
    """The opened photos of a page and the clicks on them, which count from when they come, not from their answer.

    The ticks are the page's, and a click changes them at its answer. Until then the page speaks of the ticks before it:
    so each click is kept here, and the page says how many it has had the answer to.

    Args:
        opened: the photos.

    Example:
        >>> from diffusers_dedim.demo.people import Person
        >>> choice = Choice(OpenedPhotos((), tuple(Person(((0, face),)) for face in (0, 1, 2))))
        >>> with choice:
        ...     choice.toggle(2)
        >>> choice.settle([0, 1, 2], 0)[1], choice.settle([0, 1], 1)[1]
        ([0, 1], [0, 1])
    """

    def __init__(self, opened: OpenedPhotos) -> None:
        self.corner: Corner | None = None
        self._opened = opened
        self._clicks: list[_Click] = []
        self._away = False
        self._lock = threading.RLock()

    def __enter__(self) -> Choice:
        """One event of the page at a time."""
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def is_away(self) -> bool:
        """Whether the visitor has put these photos away for others: what still comes for them is not shown."""
        return self._away

    @property
    def count(self) -> int:
        """Of the clicks so far."""
        return len(self._clicks)

    def put_away(self) -> None:
        """Forget the photos; without waiting for a click that is at work."""
        self._away = True
        self._opened, self._clicks, self.corner = OpenedPhotos((), ()), [], None

    def settle(self, ticked: Any, heard: Any) -> tuple[OpenedPhotos, list[int]]:
        """The photos and who is chosen, after every click that has come.

        Args:
            ticked: indices of people, as the page has them.
            heard: how many clicks the page has had the answer to.
        """
        with self:
            known = int(heard or 0)
            people = set(ticked or ())
            for click in self._clicks[max(0, known) :]:
                people = click.after(people)
            return self._opened, [index for index in self._opened.everybody if index in people]

    def toggle(self, person: int) -> None:
        """A click on a face of this person."""
        self._clicks.append(_Click(toggled=person))

    def add(self, opened: OpenedPhotos, person: int) -> None:
        """A box was drawn: this person is new, and chosen."""
        if not self._away:
            self._opened = opened
            self._clicks.append(_Click(added=person))


@dataclass(frozen=True)
class _Click:
    toggled: int | None = None
    added: int | None = None

    def after(self, people: set[int]) -> set[int]:
        if self.added is None:
            return people ^ {self.toggled} if self.toggled is not None else people
        return {index + (index >= self.added) for index in people} | {self.added}


@dataclass(eq=False)
class Turn:
    """One opening of photos: whether a later one has taken its place, and whether it has ended.

    Attributes:
        files: that it opens.
    """

    files: Sequence[str] = ()
    _overtaken: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def is_overtaken(self) -> bool:
        """Nobody waits for it any more."""
        return self._overtaken.is_set()

    def overtake(self) -> None:
        """Let it end, and wait until its last word is said: it would come after the first of the next."""
        self._overtaken.set()
        self._ended.wait(_LONGEST_WAIT)

    def end(self) -> None:
        """Its last word is said."""
        self._ended.set()


class Openings:
    """Of the openings of one page only the last counts.

    Example:
        >>> openings = Openings()
        >>> with openings.begin("session", ["me.jpg"]) as turn, openings.begin("session", ["me.jpg"]) as again:
        ...     turn.is_overtaken, again
        (False, None)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: dict[str, Turn] = {}

    @contextmanager
    def begin(self, session: str, files: Sequence[str] = ()) -> Iterator[Turn | None]:
        """Take the place of the session's opening before, which has ended when this begins.

        None where that opens the very same files: Gradio's field may say twice that it was changed.
        """
        turn = Turn(files)
        with self._lock:
            before = self._last.get(session)
            is_same = before is not None and bool(files) and before.files == files
            if not is_same:
                self._last[session] = turn
        if is_same:
            yield None
            return
        try:
            if before is not None:
                before.overtake()
            yield turn
        finally:
            turn.end()
            with self._lock:
                if self._last.get(session) is turn:
                    del self._last[session]
