"""One HTML page about a run: each photo before and after, its faces, their scores, and what failed."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader
from PIL import Image

from diffusers_dedim.atomic import write_pieces
from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.images.files import read_photo
from diffusers_dedim.runs.jobs import PhotoJob, RunError, display_name, is_video, one_line
from diffusers_dedim.runs.manifest import MANIFEST_NAME
from diffusers_dedim.runs.records import PhotoRecord, RunResult

if TYPE_CHECKING:
    from diffusers_dedim.pipeline.output import FaceResult

REPORT_NAME = "report.html"
PHOTO_SIDE = 720
"""Longest side of a photo on the page, in pixels."""
PHOTOS_SHOWN = 200
"""Photos whose pictures are on the page, about 0.5 MB each; browsers do not open pages without limit."""
FACE_SIDE = 224
"""Side of a face on the page, in pixels: twice the 112 the networks work at."""
_FACE_MARGIN = 0.25  # of the box on each side, so that chin and hair are seen
_JPEG_QUALITY = 90
_TITLE, _HEAD_BYTES = b"<title>dedim: ", 1024  # by which a report is known, and where it is

STATUS_WORDS = {
    "protected": "protected",
    "not_protected": "threshold not reached",
    "no_face": "no face found",
    "face_too_small": "face too small",
    "unreadable": "unreadable",
    "error": "error",
}


@dataclass(frozen=True)
class FacePair:
    """A face before and after as data URIs, with its scores."""

    before: str
    after: str
    scores: FaceResult

    @property
    def done(self) -> str:
        """What was done to it, in words."""
        words: list[str] = [self.scores.treatment]
        if self.scores.reason:
            words.append(self.scores.reason)
        if len(self.scores.attempts) > 1:
            words.append(f"tried {len(self.scores.attempts)} times")
        return ", ".join(words)


@dataclass(frozen=True)
class PhotoPair:
    """A photo before and after as data URIs; ``caption`` says how it ended."""

    name: str
    caption: str
    ok: bool
    before: str
    after: str
    width: int
    height: int
    faces: tuple[FacePair, ...]
    notes: tuple[str, ...]


def write_report(result: RunResult, path: Path | None = None) -> Path:
    """Write a self-contained page that loads nothing from elsewhere, photo by photo.

    It shows the pictures of the first `PHOTOS_SHOWN` photos that were written, and says so where there are more;
    numbers and failures are of all. It holds small copies of the original photos, so it is as private as they are, and
    says so.

    Args:
        result: a finished run; its input and output files must still be there.
        path: where to; default ``report.html`` in the output folder.

    Returns:
        The path written.

    Raises:
        RunError: a file that is no such page is there; it is not replaced.
        OSError: the page cannot be written.

    Example:
        >>> write_report(result)  # doctest: +SKIP
        PosixPath('out/report.html')
    """
    path = path or result.out / REPORT_NAME
    refuse_foreign_page(path)
    write_pieces(path, (piece.encode("utf-8", "replace") for piece in render_report(result)))
    return path


def refuse_foreign_page(path: Path) -> None:
    """Refuse to replace what is no report of a run.

    Raises:
        RunError: such a file is there.
        OSError: it cannot be read.
    """
    if not os.path.lexists(path):
        return
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    if _TITLE not in head:
        raise RunError(
            f"{path}: is no report of a run and would be replaced; move it away, or do without a report"
        )


def render_report(result: RunResult) -> Iterator[str]:
    """The page of :func:`write_report` in pieces, so that the pictures of one photo only are in memory."""
    environment = Environment(loader=PackageLoader("diffusers_dedim"), autoescape=True, trim_blocks=True)
    written = [
        (job, record) for job, record in zip(result.jobs, result.records, strict=True) if record.output
    ]
    faces = [face for record in result.protected for face in record.faces]
    scores = [face.similarity for face in faces if face.treatment == "changed"]
    yield from environment.get_template("report.html").generate(
        photos=_photo_pairs(written[:PHOTOS_SHOWN], result.out),
        written_photos=len(written),
        shown_photos=min(len(written), PHOTOS_SHOWN),
        manifest=MANIFEST_NAME,
        failures=[
            (display_name(record.name), STATUS_WORDS[record.status], one_line(record.reason))
            for record in result.failures
        ],
        settings={
            key: ", ".join(map(display_name, value)) if isinstance(value, tuple) else value
            for key, value in asdict(result.settings).items()
            if value not in (None, ())
        },
        total=len(result.records),
        protected=len(result.protected),
        faces=len(scores),
        covered=len(faces) - len(scores),
        median=median(scores) if scores else None,
        other_files=result.other_files,
        written=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    )


def _photo_pairs(photos: Iterable[tuple[PhotoJob, PhotoRecord]], out: Path) -> Iterator[PhotoPair]:
    for job, record in photos:
        pair = _photo_pair(job, record, out)
        if pair is not None:
            yield pair


def _photo_pair(job: PhotoJob, record: PhotoRecord, out: Path) -> PhotoPair | None:
    """Pictures of a photo that was written, or ``None``; a file that has gone since is left out."""
    if record.output is None or is_video(job.source):
        return None
    try:
        before = Image.fromarray(read_photo(job.source).pixels)
        after = Image.fromarray(read_photo(out / record.output).pixels)
    except UnreadablePhotoError:
        return None
    faces = tuple(
        FacePair(data_uri(face_square(before, face.box)), data_uri(face_square(after, face.box)), face)
        for face in record.faces
    )
    small_before, small_after = _thumbnail(before), _thumbnail(after)
    caption = "protected" if record.status == "protected" else f"NOT PROTECTED: {record.reason}"
    return PhotoPair(
        display_name(record.output),
        caption,
        record.status == "protected",
        data_uri(small_before),
        data_uri(small_after),
        small_before.width,
        small_before.height,
        faces,
        record.notes,
    )


def _thumbnail(image: Image.Image) -> Image.Image:
    small = image.copy()
    small.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS)
    return small


def face_square(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """The square around a face box, with margin; black where it leaves the photo."""
    x0, y0, x1, y1 = box
    half = max(x1 - x0, y1 - y0, 1.0) * (0.5 + _FACE_MARGIN)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    square = image.crop((round(x - half), round(y - half), round(x + half), round(y + half)))
    return square.resize((FACE_SIDE, FACE_SIDE), Image.Resampling.LANCZOS)


def data_uri(image: Image.Image) -> str:
    """The image as a JPEG inside a URI, for a page that is one file."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
