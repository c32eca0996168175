"""What comes out of a run: what the page shows of each photo, the file or the ZIP, and the report in it."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from PIL import Image

from diffusers_dedim.demo import texts
from diffusers_dedim.demo.files import new_path
from diffusers_dedim.demo.people import OpenedPhotos
from diffusers_dedim.demo.photos import difference, shown
from diffusers_dedim.demo.protect import ProtectedPhoto
from diffusers_dedim.runs.report import data_uri

REPORT = "report.html"


@dataclass(frozen=True)
class PhotoView:
    """What became of a photo, as page and report show it; the pixels lie on disk.

    Attributes:
        number: of the photo among those that were chosen, from 1.
        name: of the upload; for the page, not for the report.
        file_name: in the ZIP; None where nothing may be handed out.
        reason: why not.
        before, after, change: pictures for the page; None where the photo was not worked on.
        faces: what was done to each chosen face.
        left_out: the names of the faces that were left as they are, and a picture of each.
        scores: the page's explanation of the scores.
        table: the same for programs.
    """

    number: int
    name: str = ""
    file_name: str | None = None
    reason: str = ""
    before: str | None = None
    after: str | None = None
    change: str | None = None
    faces: tuple[texts.FaceCard, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    scores: str = ""
    table: dict[str, Any] | None = None

    @property
    def label(self) -> str:
        """For the user: its number and, on the page alone, its name."""
        return f"Photo {self.number}" + (f" ({self.name})" if self.name else "")


@dataclass(frozen=True)
class RunView:
    """The result of a run.

    Attributes:
        photos: what became of each.
        verdict: the page's words on all of them.
        download: the photo, or the ZIP of several; None where nothing may be handed out.
        label: of the button for it.
    """

    photos: tuple[PhotoView, ...]
    verdict: str
    download: str | None
    label: str


class Bundle:
    """Collects what a run hands out, on disk.

    Args:
        file: gets it; nameless, so that no age takes it from a long run.
        folder: where it goes at the end, deleted by age.
        single: whether the run has one photo, which is handed out by itself; several go into a ZIP with a report.
    """

    def __init__(self, file: IO[bytes], folder: str, *, single: bool) -> None:
        self._file, self._folder, self._single = file, folder, single
        self._zip = None if single else zipfile.ZipFile(file, "w", zipfile.ZIP_STORED)

    def add(
        self, opened: OpenedPhotos, index: int, result: ProtectedPhoto, unseen: str | None, note: str
    ) -> PhotoView:
        """Put a photo in, if it may be handed out, and say what the page shows of it."""
        photo, tags = opened.photos[index], [texts.who(tag) for tag in opened.tags(index)]
        suffix = {"JPEG": "jpg", "TIFF": "tif"}.get(result.photo.format, result.photo.format.lower())
        stem = "dedim" if self._single else f"photo-{photo.number:02d}"
        name = f"{stem}-some-faces.{suffix}" if result.left_out else f"{stem}.{suffix}"
        if result.is_protected and self._zip is None:
            self._file.write(result.data)
        elif result.is_protected and self._zip is not None:
            self._zip.writestr(name, result.data)
        cards = texts.face_cards(result, photo.faces, tags)
        return PhotoView(
            photo.number,
            photo.name,
            name if result.is_protected else None,
            result.reason,
            self._picture(shown(result.photo.pixels)),
            self._picture(shown(result.pixels)),
            self._picture(difference(result.photo.pixels, result.pixels)),
            cards,
            tuple((tags[face], data_uri(photo.squares[face])) for face in result.left_out),
            (*([note] if note else []), *result.photo.notes),
            texts.render_scores(result, cards, unseen),
            texts.score_table(result, note),
        )

    def close(self) -> None:
        """No more photos come."""
        if self._zip is not None:
            self._zip.close()

    def hand_out(self, views: Sequence[PhotoView]) -> str | None:
        """Where the photo, or the ZIP with its report, lies; None where there is nothing to hand out."""
        names = [view.file_name for view in views if view.file_name]
        if self._zip is not None:
            self._zip.writestr(REPORT, texts.render_report(views))
        self.close()
        if not names:
            return None
        some = any(view.left_out for view in views)
        path = new_path(
            self._folder, names[0] if self._single else f"dedim{'-some-faces' if some else ''}.zip"
        )
        self._file.seek(0)
        with path.open("wb") as target:
            shutil.copyfileobj(self._file, target)
        return str(path)

    def _picture(self, image: Image.Image) -> str:
        path = new_path(self._folder, "picture.png")  # PNG: nothing is to look changed that is not
        image.save(path, "PNG", compress_level=1)
        return str(path)
