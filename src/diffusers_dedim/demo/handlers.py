"""What happens on the page, without the page: open, choose, protect, stop. Gradio calls these."""

from __future__ import annotations

import os
import reprlib
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image

from diffusers_dedim.demo import texts
from diffusers_dedim.demo.albums import SessionAlbums
from diffusers_dedim.demo.photos import (
    MAX_DEMO_PIXELS,
    OpenedPhoto,
    difference,
    face_at,
    mark_faces,
    open_photo,
    shown,
)
from diffusers_dedim.demo.protect import Progress, ProtectedPhoto, Protector
from diffusers_dedim.demo.queue import Line
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.faces.find import FaceDetection

QUEUE_SIZE = 20
"""How many photos may wait for the one that is being protected."""


class DemoError(Exception):
    """Carries a sentence for the user."""


@dataclass(frozen=True, eq=False)
class OpenedView:
    """An opened photo as the page shows it."""

    opened: OpenedPhoto
    picture: Image.Image
    sentence: str


@dataclass(frozen=True, eq=False)
class ResultView:
    """A result as the page shows it; ``file_name`` and ``data`` are None where nothing may be handed out.

    ``note`` says what was wrong with the second photo; empty where nothing was.
    """

    before: Image.Image
    after: Image.Image
    change: Image.Image
    verdict: str
    scores: str
    file_name: str | None
    data: bytes | None
    result: ProtectedPhoto
    note: str


@dataclass
class DemoHandlers:
    """The page's actions.

    Attributes:
        protector: the pipeline and the recognisers.
        detector: photo -> faces; another one than the pipeline's, which may be at work at the same time.
        presets: names that may be asked for, the usual one first.
        max_pixels: largest photo.
        albums: what is protected in each session, so that a visitor's photos are told apart.
    """

    protector: Protector
    detector: FaceDetection
    presets: tuple[str, ...] = ("fast",)
    max_pixels: int = MAX_DEMO_PIXELS
    albums: SessionAlbums = field(default_factory=SessionAlbums)
    _detector_lock: threading.Lock = field(default_factory=threading.Lock)  # MTCNN keeps settings in itself
    _line: Line = field(default_factory=lambda: Line(QUEUE_SIZE))
    _running: dict[str, threading.Event] = field(default_factory=dict)

    def open(self, path: str | os.PathLike[str]) -> OpenedView:
        """Open a photo, all its faces chosen.

        Raises:
            DemoError: says in plain words why it cannot be used.
        """
        opened = self._open(path)
        return OpenedView(opened, mark_faces(opened, opened.everybody), texts.face_list(opened))

    def toggle(self, opened: OpenedPhoto, chosen: Sequence[int], x: float, y: float) -> list[int]:
        """The choice after a click on a point of the shown picture."""
        index = face_at(opened, x, y)
        if index is None:
            return sorted(chosen)
        return sorted(set(chosen) ^ {index})

    def expect(self, session: str) -> None:
        """A run of this session is on its way: from now on `stop` reaches it."""
        known = self._running.get(session)
        if known is None or known.is_set():
            self._running[session] = threading.Event()

    def protect(
        self,
        opened: OpenedPhoto | None,
        chosen: Sequence[int],
        preset: str,
        strength: str,
        other_path: str | None,
        session: str,
        report: Progress = lambda share, words: None,
    ) -> ResultView:
        """Protect the chosen faces and put the page's result together.

        Args:
            opened: as `open` gave it; None where the session has ended.
            chosen: indices of faces.
            preset, strength: names.
            other_path: another photo of the same person, or None.
            session: whose run it is, for `stop`.
            report: gets the progress.

        Raises:
            DemoError: says in plain words why there is no result.
        """
        if opened is None:
            raise DemoError("The photo is not here any more; please choose it again.")
        if preset not in self.presets:
            raise DemoError(f"preset: expected one of {list(self.presets)}, got {preset!r}.")
        stop = self._running.setdefault(session, threading.Event())
        try:
            other, note = self._open_other(other_path)
            with self._line.turn(stop, report):
                result = self.protector(
                    opened,
                    chosen,
                    preset,
                    strength,
                    other=other,
                    report=report,
                    stop=stop,
                    album=self.albums.open(session),
                )
        except ValueError as error:  # DeDiMError is one
            raise DemoError(texts.explain(error)) from None  # the traceback would name the user's file
        except Exception as error:
            raise DemoError(
                f"Something went wrong here ({type(error).__name__}), and nothing was protected. Please try again."
            ) from None
        finally:
            if self._running.get(session) is stop:
                del self._running[session]
        return self._view(opened, result, note, texts.advise(preset, strength, self.presets))

    def protect_file(
        self,
        path: str,
        preset: str,
        strength: str,
        faces: Sequence[int] | None = None,
        other_path: str | None = None,
    ) -> ResultView:
        """`open` and `protect` in one, for programs; only a protected photo comes back.

        Args:
            path: the photo.
            preset, strength: names.
            faces: numbers from left to right, from 1; None for all.
            other_path: another photo of the same person, or None.

        Raises:
            DemoError: says in plain words why there is no result.
        """
        chosen = None if faces is None else _indices(faces)
        opened = self._open(path)
        chosen = opened.everybody if chosen is None else chosen
        session = f"api-{secrets.token_hex(8)}"
        try:
            view = self.protect(opened, chosen, preset, strength, other_path, session)
        finally:
            self.albums.close(session)  # a program says nothing of who it asks for
        if view.data is None:
            raise DemoError(f"Not protected, so there is no file: {view.result.reason}.")
        return view

    def stop(self, session: str) -> None:
        """End the run of a session, if there is one: at its next step, or at once where it waits."""
        running = self._running.get(session)
        if running is not None:
            running.set()

    def leave(self, session: str) -> None:
        """The session has ended: stop its run, expect none, and forget whom it showed."""
        self.stop(session)
        self.albums.close(session)
        self._running.pop(session, None)

    def _view(self, opened: OpenedPhoto, result: ProtectedPhoto, note: str, advice: str) -> ResultView:
        unseen = self.protector.unseen
        verdict, scores = texts.render_result(opened, result, unseen.name if unseen else None, note, advice)
        before = opened.photo.pixels
        return ResultView(
            shown(before),
            shown(result.pixels),
            difference(before, result.pixels),
            verdict,
            scores,
            file_name(opened, result) if result.is_protected else None,
            result.data if result.is_protected else None,
            result,
            note,
        )

    def _open(self, path: str | os.PathLike[str]) -> OpenedPhoto:
        try:
            with self._detector_lock:
                return open_photo(path, self.detector, self.max_pixels)
        except DeDiMError as error:
            raise DemoError(texts.explain(error)) from None  # the traceback would name the user's file

    def _open_other(self, path: str | None) -> tuple[OpenedPhoto | None, str]:
        """The second photo and what to say of it; one that cannot be used does not stop the run."""
        if not path:
            return None, ""
        try:
            other = self._open(path)
        except DemoError as error:
            return None, f"The second photo was left aside. {error}"
        if len(other.faces) > 1:
            return other, "The second photo shows several faces; the largest was compared."
        return other, ""


def file_name(opened: OpenedPhoto, result: ProtectedPhoto) -> str:
    """A name that tells nothing of the original's, and that some faces were left out."""
    suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(opened.photo.format, opened.photo.format.lower())
    return f"dedim-some-faces.{suffix}" if result.left_out else f"dedim.{suffix}"


def _indices(faces: Sequence[int]) -> list[int]:
    """From numbers, which programs may send as anything, to indices."""
    if not isinstance(faces, (list, tuple)) or any(type(number) is not int for number in faces):
        raise DemoError(
            "faces: expected a list of whole numbers, counted from left to right from 1, such as [1, 3], or none for "
            f"all; got {reprlib.repr(faces)}."
        )
    return [number - 1 for number in faces]
