"""What is protected of each person in a session of the page, for as long as the session is used."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from diffusers_dedim.pipeline.album import Album

MOST_SESSIONS = 100
"""Albums that are held at a time; who has not come for longest is forgotten first."""


@dataclass
class SessionAlbums:
    """An album for each session: photos that one visitor protects one after another are told apart.

    Held in memory alone, and forgotten when the page is closed, or some time after the last photo.

    Example:
        >>> albums = SessionAlbums()
        >>> albums.open("me") is albums.open("me"), len(albums)
        (True, 1)
        >>> albums.close("me")
        >>> len(albums)
        0
    """

    _albums: dict[str, tuple[Album, float]] = field(default_factory=dict)  # the longest unused first
    _in_use: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        """Albums that are held."""
        return len(self._albums)

    def open(self, session: str) -> Album:
        """The session's album; used now."""
        with self._lock:
            album, _ = self._albums.pop(session, (Album(), 0.0))
            self._albums[session] = album, time.monotonic()
            while len(self._albums) > MOST_SESSIONS:
                del self._albums[next(iter(self._albums))]
        return album

    @contextmanager
    def use(self, session: str) -> Iterator[Album]:
        """The session's album during a run, however long that takes: it ages from the run's end on.

        A session that ends meanwhile has its album forgotten at once, here too.
        """
        with self._lock:
            self._in_use[session] += 1
        try:
            album = self.open(session)
            yield album
        finally:
            with self._lock:
                self._in_use[session] -= 1
                self._in_use += Counter()  # without those at 0
                known, _ = self._albums.get(session, (None, 0.0))
                if known is album:
                    del self._albums[session]
                    self._albums[session] = album, time.monotonic()

    def close(self, session: str) -> None:
        """Forget the session's album, if there is one."""
        with self._lock:
            self._albums.pop(session, None)

    def forget(self, age: float) -> None:
        """Forget albums that were not used for ``age`` seconds, by no run either."""
        with self._lock:
            limit = time.monotonic() - age
            self._albums = {
                name: (album, used)
                for name, (album, used) in self._albums.items()
                if used > limit or self._in_use[name]
            }
