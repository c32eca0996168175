"""One run: the chosen faces of one photo or many, each in its turn, and what is handed out at the end."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

from diffusers_dedim.demo import texts
from diffusers_dedim.demo.people import OpenedPhotos
from diffusers_dedim.demo.photos import OpenedPhoto
from diffusers_dedim.demo.protect import Progress, Protector
from diffusers_dedim.demo.queue import STOPPED, Line
from diffusers_dedim.demo.results import Bundle, PhotoView, RunView
from diffusers_dedim.demo.texts import DemoError, plain_words
from diffusers_dedim.pipeline.album import Album

NOBODY, NO_FACE = "nobody on it was chosen", "no face was found on it"


@dataclass(frozen=True, eq=False)
class Job:
    """A run.

    Attributes:
        protector: does the work.
        line: where each photo waits for its turn, so that a run of many lets others in between.
        strength: a name of `STRENGTHS`.
        album: what is protected of the same people already.
        stop: ends the run once it is set.
        report: gets the progress.
        folder: where what comes out goes.
        other: a second photo of a person, for the scores.
        note: what was wrong with that.
    """

    protector: Protector
    line: Line
    strength: str
    album: Album
    stop: threading.Event
    report: Progress
    folder: str
    other: OpenedPhoto | None = None
    note: str = ""

    def run(self, opened: OpenedPhotos, faces_of: Callable[[int], Sequence[int]]) -> RunView:
        """Protect faces of all photos; a photo that fails is left out, where there are others.

        Args:
            opened: the photos.
            faces_of: index of a photo -> indices of its faces that are to be protected.

        Raises:
            DemoError: nothing came of the only photo, or the run was stopped before anything came of it.
        """
        single = len(opened.photos) + len(opened.problems) == 1
        views = [PhotoView(number, name, reason=why) for number, name, why in opened.problems]
        with (
            tempfile.TemporaryFile(dir=self.folder) as file,
            closing(Bundle(file, self.folder, single=single)) as bundle,
        ):
            for index in range(len(opened.photos)):
                views.append(self._try_photo(opened, index, faces_of(index), bundle, may_fail=not single))
                if self.stop.is_set() and not any(view.file_name for view in views):
                    raise DemoError(STOPPED)
            views.sort(key=lambda view: view.number)
            download = bundle.hand_out(views)
        verdict = texts.render_verdict(views, texts.advise(self.strength))
        return RunView(tuple(views), verdict, download, _label(views))

    def _try_photo(
        self, opened: OpenedPhotos, index: int, faces: Sequence[int], bundle: Bundle, *, may_fail: bool
    ) -> PhotoView:
        try:
            return self._photo(opened, index, faces, bundle)
        except DemoError as error:
            if not may_fail:
                raise
            photo = opened.photos[index]
            return PhotoView(photo.number, photo.name, reason=str(error))

    def _photo(self, opened: OpenedPhotos, index: int, faces: Sequence[int], bundle: Bundle) -> PhotoView:
        photo, count = opened.photos[index], len(opened.photos)
        if not faces and count > 1:
            return PhotoView(photo.number, photo.name, reason=NOBODY if photo.faces else NO_FACE)
        if self.stop.is_set():
            raise DemoError(STOPPED)

        def report(share: float, words: str) -> None:
            where = f"Photo {index + 1} of {count}. " if count > 1 else ""
            self.report((index + share) / count, where + words)

        with plain_words(), self.line.turn(self.stop, report, again=index > 0):
            result = self.protector(
                photo, faces, self.strength, other=self.other, report=report, stop=self.stop, album=self.album
            )
            unseen = self.protector.unseen
            return bundle.add(opened, index, result, unseen.name if unseen else None, self.note)


def _label(views: Sequence[PhotoView]) -> str:
    """Of the button, so that nobody takes the file for more than it is."""
    left_out = sum(len(view.left_out) for view in views if view.file_name)
    label = "Download" if len(views) == 1 else "Download the ZIP"
    if left_out:
        return f"{label} ({left_out} face{'' if left_out == 1 else 's'} left out, not protected)"
    if any(card.still for view in views if view.file_name for card in view.faces):
        return f"{label} (see the scores first)"
    return label
