"""What happens on the page, without the page: open, choose, draw, protect, stop. Gradio calls these."""

from __future__ import annotations

import reprlib
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image
from torch import nn

from diffusers_dedim.demo import texts
from diffusers_dedim.demo.albums import SessionAlbums
from diffusers_dedim.demo.choice import Openings
from diffusers_dedim.demo.drawn import Box, face_in_box
from diffusers_dedim.demo.job import Job
from diffusers_dedim.demo.people import OpenedPhotos, find_people
from diffusers_dedim.demo.photos import MAX_DEMO_PIXELS, OpenedPhoto, face_at, mark_faces, open_photo
from diffusers_dedim.demo.protect import SCALES, STRENGTHS, Progress, Protector
from diffusers_dedim.demo.queue import Line
from diffusers_dedim.demo.results import RunView
from diffusers_dedim.demo.texts import DemoError, plain_words
from diffusers_dedim.encoders.recogniser import Recogniser
from diffusers_dedim.errors import NoFaceError, UnreadablePhotoError
from diffusers_dedim.faces.find import FaceDetection
from diffusers_dedim.images.files import decode_photo

QUEUE_SIZE = 20
"""How many photos may wait for the one that is being protected."""
MAX_PHOTOS = 20
"""How many photos may be opened at a time."""
MAX_BYTES = 100_000_000
"""How large they may be together."""


@dataclass(frozen=True, eq=False)
class Upload:
    """A file that a visitor has sent: where it lies, and its name there, which the page alone shows."""

    path: str
    name: str = ""


@dataclass
class DemoHandlers:
    """The page's actions.

    Attributes:
        protector: the pipeline and the recognisers.
        detector: photo -> faces; another one than the pipeline's, which may be at work at the same time.
        keen_detector: the same, with faces that it is less sure of: looks into a box that somebody drew.
        strengths: names that may be asked for.
        max_pixels: largest photo.
        albums: what is protected in each session, so that a visitor's photos are told apart.
        openings: which opening of photos is each session's last.
    """

    protector: Protector
    detector: FaceDetection
    keen_detector: FaceDetection
    strengths: tuple[str, ...] = tuple(STRENGTHS)
    max_pixels: int = MAX_DEMO_PIXELS
    albums: SessionAlbums = field(default_factory=SessionAlbums)
    openings: Openings = field(default_factory=Openings)
    _detector_lock: threading.Lock = field(default_factory=threading.Lock)  # one photo's pixels at a time
    _line: Line = field(default_factory=lambda: Line(QUEUE_SIZE))
    _running: dict[str, threading.Event] = field(default_factory=dict)

    def open(self, uploads: Sequence[Upload], report: Progress = lambda share, words: None) -> OpenedPhotos:
        """Open photos and find who is on them.

        Args:
            uploads: the files.
            report: gets the progress.

        Raises:
            DemoError: says in plain words why none of them can be used.
        """
        _check_uploads(uploads)
        photos: list[OpenedPhoto] = []
        problems: list[tuple[int, str, str]] = []
        for number, upload in enumerate(uploads, 1):
            report((number - 1) / len(uploads), f"Looking for faces: photo {number} of {len(uploads)}")
            try:
                photos.append(self._open(upload, number, compare=len(uploads) > 1))
            except DemoError as error:
                problems.append((number, upload.name, str(error)))
        if not photos:
            said = [why if len(problems) == 1 else f"{name}: {why}" for _, name, why in problems]
            raise DemoError(" ".join(said))
        return OpenedPhotos(tuple(photos), find_people(photos), tuple(problems))

    def picture(
        self,
        opened: OpenedPhotos,
        chosen: Sequence[int],
        photo: int,
        corner: tuple[float, float] | None = None,
    ) -> Image.Image:
        """A photo with a box around each face.

        Args:
            opened: the photos.
            chosen: indices of people.
            photo: index of the photo.
            corner: where a box begins that is being drawn, px of the picture.
        """
        faces = opened.faces_of(photo, chosen)
        return mark_faces(opened.photos[photo], opened.tags(photo), faces, corner)

    def person_at(self, opened: OpenedPhotos, photo: int, x: float, y: float) -> int | None:
        """The person under a point of the picture, or None."""
        face = face_at(opened.photos[photo], x, y)
        return None if face is None else opened.owner(photo, face)

    def draw(self, opened: OpenedPhotos, photo: int, box: Box) -> tuple[OpenedPhotos, int, str]:
        """Take in a face that somebody drew a box around: a person of its own.

        Args:
            opened: the photos.
            photo: index of the photo.
            box: x0, y0, x1, y1 as shares in [0, 1] of its width and height, corners in any order.

        Returns:
            The photos with that face, the index of the new person, and what to say.

        Raises:
            DemoError: the box is too small.
        """
        pixels = decode_photo(opened.photos[photo].data).pixels
        height, width = pixels.shape[:2]
        x0, y0, x1, y1 = (share * edge for share, edge in zip(box, (width, height) * 2, strict=True))
        try:
            with self._detector_lock:
                face = face_in_box(pixels, (x0, y0, x1, y1), self.keen_detector)
        except ValueError as error:
            raise DemoError(str(error)) from None
        opened = opened.with_face(photo, face, pixels)
        new = opened.owner(photo, len(opened.photos[photo].faces) - 1)
        done = f": {face.reason}, so it will be blurred." if face.reason else "."
        return opened, new, f"Added as person {opened.names[new]}{done}"

    def expect(self, session: str) -> None:
        """A run of this session is on its way: from now on `stop` reaches it."""
        known = self._running.get(session)
        if known is None or known.is_set():
            self._running[session] = threading.Event()

    def protect(
        self,
        opened: OpenedPhotos | None,
        chosen: Sequence[int],
        strength: str,
        other: Upload | None,
        session: str,
        folder: str,
        report: Progress = lambda share, words: None,
    ) -> RunView:
        """Protect the chosen people on all photos.

        Args:
            opened: as `open` gave it; None where the session has ended.
            chosen: indices of people.
            strength: a name.
            other: another photo of the same person, or None.
            session: whose run it is, for `stop`.
            folder: where the files go that come out; they are deleted by age.
            report: gets the progress.

        Raises:
            DemoError: says in plain words why there is no result.
        """
        if opened is None:
            raise DemoError(texts.GONE)
        if not chosen:
            raise DemoError("Choose at least one person.")
        people = list(chosen)
        return self._run(
            opened, lambda photo: opened.faces_of(photo, people), strength, other, session, folder, report
        )

    def protect_file(
        self,
        upload: Upload,
        strength: str,
        folder: str,
        faces: Sequence[int] | None = None,
        other: Upload | None = None,
    ) -> RunView:
        """`open` and `protect` of one photo, for programs; only a protected photo comes back.

        Args:
            upload: the photo.
            strength: a name.
            folder: where the file goes.
            faces: numbers from left to right, from 1; None for all.
            other: another photo of the same person, or None.

        Raises:
            DemoError: says in plain words why there is no result.
        """
        chosen = None if faces is None else _indices(faces)
        opened = self.open([upload])
        (photo,) = opened.photos
        if not photo.faces:
            raise DemoError(texts.explain(NoFaceError("no face was found")))
        wanted = photo.everybody if chosen is None else chosen
        session = f"api-{secrets.token_hex(8)}"
        try:
            view = self._run(opened, lambda _: wanted, strength, other, session, folder)
        finally:
            self.albums.close(session)  # a program says nothing of who it asks for
        if view.download is None:
            raise DemoError(f"Not protected, so there is no file: {view.photos[0].reason}.")
        return view

    def _run(
        self,
        opened: OpenedPhotos,
        faces_of: Callable[[int], Sequence[int]],
        strength: str,
        other: Upload | None,
        session: str,
        folder: str,
        report: Progress = lambda share, words: None,
    ) -> RunView:
        if strength not in list(self.strengths):  # a program may send what has no hash
            raise DemoError(f"strength: expected one of {list(self.strengths)}, got {strength!r}.")
        stop = self._running.setdefault(session, threading.Event())
        try:
            second, note = self._open_other(other)
            with self.albums.use(session) as album:
                job = Job(self.protector, self._line, strength, album, stop, report, folder, second, note)
                return job.run(opened, faces_of)
        finally:
            if self._running.get(session) is stop:
                del self._running[session]

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

    def _open(self, upload: Upload, number: int = 1, compare: bool = False) -> OpenedPhoto:
        with plain_words(), self._detector_lock:
            data = _read(upload)
            encoder = self._guide if compare else None
            return open_photo(data, self.detector, self.max_pixels, encoder, number, upload.name)

    def _open_other(self, upload: Upload | None) -> tuple[OpenedPhoto | None, str]:
        """The second photo and what to say of it; one that cannot be used does not stop the run."""
        if upload is None:
            return None, ""
        try:
            other = self._open(upload)
        except DemoError as error:
            return None, f"The second photo was left aside. {error}"
        if not other.faces:
            return None, "The second photo was left aside. No face was found in it."
        if len(other.faces) > 1:
            return other, "The second photo shows several faces; the largest was compared."
        return other, ""

    @cached_property
    def _guide(self) -> nn.Module | None:
        """The pipeline's recogniser, where it is known what its scores mean: only then may it say who is who."""
        encoder = self.protector.pipe.face_encoder
        return encoder if Recogniser.of("", encoder).fingerprint in SCALES else None


def _check_uploads(uploads: Sequence[Upload]) -> None:
    if len(uploads) > MAX_PHOTOS:
        raise DemoError(
            f"This page takes up to {MAX_PHOTOS} photos at a time, and these are {len(uploads)}. For whole folders "
            "there is the command dedim run."
        )
    size = sum(Path(upload.path).stat().st_size for upload in uploads)
    if size > MAX_BYTES:
        raise DemoError(
            f"This page takes up to {MAX_BYTES // 1_000_000} MB at a time, and these photos are "
            f"{size / 1e6:.0f} MB. Choose fewer."
        )


def _read(upload: Upload) -> bytes:
    try:
        return Path(upload.path).read_bytes()
    except OSError as error:
        raise UnreadablePhotoError(f"cannot be opened ({error.strerror})") from None


def _indices(faces: Sequence[int]) -> list[int]:
    """From numbers, which programs may send as anything, to indices."""
    if not isinstance(faces, (list, tuple)) or any(type(number) is not int for number in faces):
        raise DemoError(
            "faces: expected a list of whole numbers, counted from left to right from 1, such as [1, 3], or none for "
            f"all; got {reprlib.repr(faces)}."
        )
    return [number - 1 for number in faces]
