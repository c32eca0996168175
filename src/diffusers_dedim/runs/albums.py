"""The album of a run: in memory, or in a file where the user asks for that."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers_dedim.atomic import remove_unfinished
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.pipeline.album import Album
from diffusers_dedim.runs.jobs import READ_SUFFIXES, RunError, display_name, follow

# Up to so many faces the file is written after each photo, in 14 ms; of twice as many after every other one.
_FACES_A_PHOTO = 200

NEW_ALBUM = (
    "the album begins anew with this resumed run: the photos done before are not told apart from these "
    "(--keep-album FILE keeps it from one run to the next)"
)

NO_ALBUM_ON_RAY = (
    "Ray's workers have no album: protected photos of one person may find each other; protect those that will be seen "
    "beside one another in a run without Ray (--no-album leaves out this note)"
)


@dataclass(eq=False)
class AlbumKeeper:
    """Makes a run's album, and keeps its file.

    Attributes:
        album: while a run is under way; None where there is none.
        path: where it is kept; None for nowhere.
    """

    wanted: bool
    path: Path | None
    album: Album | None = None
    _guide: Any = None
    _unsaved: int = 0
    _seen: Any = None  # the people of the run's videos

    @classmethod
    def of(
        cls, wanted: bool, path: str | os.PathLike[str] | None, out: Path, inputs: Iterable[Path]
    ) -> AlbumKeeper:
        """Check what was asked for.

        Args:
            wanted: whether there is to be an album.
            path: file to keep it in, or None; of a link, what it leads to.
            out: output folder, where it may not lie: what is there is meant to be shared, and might be replaced.
            inputs: photos and their folders; with a photo's ending it may not lie there, for it would be taken for one.

        Raises:
            RunError: a file without an album, a folder, a file in a folder that is not there, or in one of these.
        """
        if path is None:
            return cls(wanted, None)
        file = Path(path)
        if not wanted:
            raise RunError(f"{file}: there is no album to keep; leave out one of --keep-album and --no-album")
        if file.is_dir() or not file.parent.is_dir():
            raise RunError(f"{file}: expected a file in a folder that is there, to keep the album in")
        place = follow(file)
        for folder in (out, *(inputs if place.suffix.lower() in READ_SUFFIXES else ())):
            if follow(folder) in (place, *place.parents):
                raise RunError(
                    f"{file}: lies in {folder}; the album is biometric data, keep it outside photos and results"
                )
        if not place.parent.is_dir():
            raise RunError(f"{file}: is a link to a folder that is not there")
        return cls(wanted, place)

    @contextmanager
    def open(self, pipe: Any) -> Iterator[None]:
        """Have an album while a run is under way, and keep what it holds in the end, whatever the end is.

        Args:
            pipe: the pipeline; None where nothing is to be done.

        Raises:
            RunError: the file is no album, or one of another guide's, or cannot be written.
        """
        if not self.wanted or pipe is None:
            yield
            return
        self._guide = getattr(pipe, "face_encoder", None)
        if self.path is not None:
            remove_unfinished(self.path)  # of a run that was killed while it wrote: biometric data too
        self.album = self._load() if self.path is not None and self.path.exists() else Album()
        try:
            yield
        finally:
            self._save()
            self.album = self._seen = None

    def tick(self) -> None:
        """Say that a photo is done."""
        self._unsaved += 1
        if self._unsaved > len(self.album or ()) / _FACES_A_PHOTO:
            self._save()

    def seen_in_videos(self) -> Any:
        """The `People` of the videos done so far, who wear the same face in the next one; None without an album."""
        if self.album is not None and self._seen is None:
            from diffusers_dedim.video.people import People  # PyTorch, which a dry run does without

            self._seen = People(album=self.album)
        return self._seen

    def notes(self, *, resumed: bool) -> tuple[str, ...]:
        """What the user should know of it.

        Args:
            resumed: whether photos were done by an earlier run.
        """
        if self.path is not None:
            name = display_name(str(self.path))
            return (
                f"{name} holds what faces are known by, which is biometric data: keep it as the originals",
            )
        return (NEW_ALBUM,) if self.wanted and resumed else ()

    def _load(self) -> Album:
        try:
            return Album.load(self.path or "", self._guide)
        except DeDiMError as error:
            raise RunError(str(error)) from error

    def _save(self) -> None:
        self._unsaved = 0
        if self.path is None or self.album is None:
            return
        try:
            self.album.save(self.path, self._guide)
        except OSError as error:
            raise RunError(f"{self.path}: the album cannot be kept ({error.strerror or error})") from error
