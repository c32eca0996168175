"""Photos of the demo: opened with their faces, drawn with boxes, shown in small, compared."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from diffusers_dedim.encoders.recogniser import embed_faces
from diffusers_dedim.faces import Face
from diffusers_dedim.faces.find import FaceDetection
from diffusers_dedim.images.files import decode_photo
from diffusers_dedim.images.modes import PixelArray
from diffusers_dedim.runs.report import face_square

MAX_DEMO_PIXELS = 25_000_000
"""Largest photo the page takes, in pixels: a phone's 24 megapixels and a little more."""
SHOWN_SIDE = 1280
"""Longest side of the copies that the page shows, in pixels; the file to keep has the photo's own size."""
DIFFERENCE_GAIN = 8

_ACCENT, _LEFT_OUT, _DARK = "#2f9d94", "#f2efe8", "#101418"
_DASH = 9  # px of a dash in the shown copy


@dataclass(frozen=True, eq=False)  # eq=False: holds arrays
class OpenedPhoto:
    """A photo and the faces found in it, from left to right, and after them those drawn by hand.

    Attributes:
        data: the file: a twentieth of its pixels, which are decoded again where they are needed.
        shape: height and width, px.
        copy: what the page shows of it, a JPEG of the size of `shown`.
        faces: every face found, also those too small to be changed, which are blurred; in photo px.
        squares: a picture of each face, for its person.
        embeddings: of each face by the pipeline's recogniser, ``[N, D]`` or ``[N, K, D]``; None where nobody asked.
        number: of the file among those that were chosen, from 1.
        name: of the upload, for the page of who uploaded it alone.
    """

    data: bytes
    shape: tuple[int, int]
    copy: bytes
    faces: tuple[Face, ...]
    squares: tuple[Image.Image, ...] = ()
    embeddings: NDArray[np.float32] | None = None
    number: int = 1
    name: str = ""

    @property
    def everybody(self) -> list[int]:
        """Indices of all faces."""
        return list(range(len(self.faces)))

    @property
    def shown(self) -> Image.Image:
        """The copy."""
        return Image.open(BytesIO(self.copy)).convert("RGB")

    @property
    def scale(self) -> float:
        """Photo px per px of the copy."""
        return self.shape[1] / shown_size(self.shape)[0]

    def with_face(self, face: Face, pixels: PixelArray) -> OpenedPhoto:
        """The same with one more face."""
        square = face_square(Image.fromarray(pixels), face.box)
        return replace(self, faces=(*self.faces, face), squares=(*self.squares, square))


def open_photo(
    data: bytes,
    detector: FaceDetection,
    max_pixels: int = MAX_DEMO_PIXELS,
    encoder: nn.Module | None = None,
    number: int = 1,
    name: str = "",
) -> OpenedPhoto:
    """Read a photo and find its faces, of which there may be none.

    Args:
        data: the file.
        detector: photo -> faces.
        max_pixels: largest width times height.
        encoder: embeds its faces; None where they need not be compared.
        number, name: of the upload.

    Raises:
        UnreadablePhotoError: no photo, damaged, too large.
    """
    pixels = decode_photo(data, max_pixels).pixels
    faces = tuple(detector(pixels))
    image = Image.fromarray(pixels)
    buffer = BytesIO()
    shown(pixels).save(buffer, "JPEG", quality=92, subsampling=0)
    embeddings = None
    if encoder is not None and faces:
        embeddings = embed_faces(encoder, [pixels] * len(faces), faces)
    return OpenedPhoto(
        data,
        pixels.shape[:2],
        buffer.getvalue(),
        faces,
        tuple(face_square(image, face.box) for face in faces),
        embeddings,
        number,
        name,
    )


def shown(pixels: PixelArray) -> Image.Image:
    """A copy for the page, no side longer than `SHOWN_SIDE`, without metadata."""
    image = Image.fromarray(pixels)
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    return image


def mark_faces(
    opened: OpenedPhoto,
    tags: Sequence[str],
    chosen: Collection[int],
    corner: tuple[float, float] | None = None,
) -> Image.Image:
    """The photo with a named box around each face: solid where chosen, dashed where left out.

    Args:
        opened: the photo and its faces.
        tags: the name of each face.
        chosen: indices of the chosen faces.
        corner: where a box that is being drawn begins, px of the copy; None for none.

    Returns:
        RGB image of the size of `shown`.
    """
    image = opened.shown
    draw = ImageDraw.Draw(image)
    line = max(3, round(max(image.size) / 190))
    font = ImageFont.load_default(size=max(16, round(max(image.size) / 24)))
    for index, (face, tag) in enumerate(zip(opened.faces, tags, strict=True)):
        x0, y0, x1, y1 = (edge / opened.scale for edge in face.box)
        corners = (max(x0, 0.0), max(y0, 0.0), min(x1, image.width - 1.0), min(y1, image.height - 1.0))
        if index in chosen:
            draw.rectangle(corners, outline=_DARK, width=line + 2)
            draw.rectangle(corners, outline=_ACCENT, width=line)
        else:
            _dashed(draw, corners, line)
        _tag(draw, corners, tag if index in chosen else f"{tag} left out", font, index in chosen)
    if corner is not None:
        _cross(draw, corner, line)
    return image


def face_at(opened: OpenedPhoto, x: float, y: float) -> int | None:
    """Index of the face whose box holds a point of the shown copy; of several the smallest box; or None."""
    x, y = x * opened.scale, y * opened.scale
    hits = [
        (face.size, index)
        for index, face in enumerate(opened.faces)
        if face.box[0] <= x <= face.box[2] and face.box[1] <= y <= face.box[3]
    ]
    return min(hits)[1] if hits else None


def shown_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of `shown` for a photo of this height and width."""
    height, width = shape[:2]
    factor = min(1.0, SHOWN_SIDE / max(height, width))
    return max(1, round(width * factor)), max(1, round(height * factor))


def difference(before: PixelArray, after: PixelArray) -> Image.Image:
    """What changed, `DIFFERENCE_GAIN` times enlarged around mid-grey, as the page shows it."""
    change = (after.astype(np.int16) - before.astype(np.int16)) * DIFFERENCE_GAIN + 128
    return shown(change.clip(0, 255).astype(np.uint8))


def largest(faces: Sequence[Face]) -> Face:
    """The face with the longest side."""
    return max(faces, key=lambda face: face.size)


def _dashed(draw: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], width: int) -> None:
    x0, y0, x1, y1 = corners
    edges = (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0)))
    for start, end in edges:
        a, b = np.array(start), np.array(end)
        count = max(1, round(float(np.linalg.norm(b - a)) / (2 * _DASH)))
        for step in range(count):
            piece = [tuple(a + (b - a) * part / count) for part in (step, step + 0.5)]
            draw.line(piece, fill=_DARK, width=width + 2)
            draw.line(piece, fill=_LEFT_OUT, width=width)


def _cross(draw: ImageDraw.ImageDraw, corner: tuple[float, float], width: int) -> None:
    x, y = corner
    for colour, line in ((_DARK, width + 2), (_ACCENT, width)):
        draw.line(((x - 2 * _DASH, y), (x + 2 * _DASH, y)), fill=colour, width=line)
        draw.line(((x, y - 2 * _DASH), (x, y + 2 * _DASH)), fill=colour, width=line)


def _tag(
    draw: ImageDraw.ImageDraw,
    corners: tuple[float, float, float, float],
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    is_chosen: bool,
) -> None:
    """The number of the face, above its box where there is room, else inside, always within the picture."""
    width, height = (edge + 10 for edge in draw.textbbox((0, 0), text, font=font, anchor="lt")[2:])
    x0, y0, _, _ = corners
    x = min(x0, draw.im.size[0] - width - 1)
    y = y0 - height if y0 >= height else y0
    draw.rectangle((x, y, x + width, y + height), fill=_ACCENT if is_chosen else _LEFT_OUT)
    draw.text((x + 5, y + 5), text, fill="white" if is_chosen else _DARK, font=font, anchor="lt")
