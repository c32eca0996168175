"""Photo files in and out: read any common photo safely, write it so that the protection survives."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from diffusers_dedim.atomic import write_atomic
from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.images.coding import (
    LOSSLESS,
    Options,
    Quality,
    SourceCoding,
    check_quality,
    coding_steps,
    read_coding,
    turned_sideways,
)
from diffusers_dedim.images.heif import (
    ColourCode,
    can_read,
    colour_code,
    container_kind,
    holds_film,
    notes_of_container,
    open_heif,
    write_heif,
)
from diffusers_dedim.images.metadata import filtered_exif, is_sideways, read_dpi, turn_upright
from diffusers_dedim.images.modes import (
    NOTE_16_BIT,
    PixelArray,
    cmyk_to_srgb,
    is_16_bit,
    is_grey,
    is_neutral,
    join_rgb_alpha,
    same_pixels,
    split_rgb_alpha,
    white_is_zero,
)
from diffusers_dedim.images.png import ColourChunks, for_pillow, read_colours, write_colours

MAX_PIXELS = 300_000_000
"""Largest photo read by default, in pixels: phone cameras reach 200 megapixels, and their panoramas more."""

PHOTO_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif"),
        *(".heic", ".heif", ".hif", ".avif"),
    )
)
"""File name endings of the formats that are read and written; HEIC needs the extra ``heif``, AVIF Pillow 11.3."""

# Pillow opens multi-picture JPEG ("MPO") as JPEG first.
_READ_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF")
# What each is written as. GIF has 256 colours, which would undo the protection. The further frames of a
# multi-picture JPEG (depth, gain map, second lens) show the unprotected face and are left out.
_WRITTEN_AS = {"MPO": "JPEG", "GIF": "PNG", "DIB": "BMP"}
_MULTI_FRAME_KEPT_FIRST = ("MPO", "HEIF")
_WRITTEN = (*_READ_FORMATS, "AVIF", "HEIF")
_FILMED = ("JPEG", "MPO", "HEIF")  # that phones put films into
_DPI_FORMATS = ("JPEG", "PNG", "TIFF")  # that say how large they are on paper
_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
_RESTARTS = [bytes((0xFF, 0xD0 + number)) for number in range(8)]  # between parts of a JPEG's pixels, in turn
_NO_ENDING = bytes((0xA7, 0x5B, 0xE6, 0x13)) * 64  # what no picture ends with
_pillow_limit_lock = threading.Lock()


@dataclass(frozen=True)
class Photo:
    """One photo, upright, as 8-bit RGB, with what is needed to write it back as it came.

    Attributes:
        pixels: uint8 RGB ``[H, W, 3]`` in [0, 255], EXIF orientation applied.
        alpha: uint8 ``[H, W]`` in [0, 255], or ``None``.
        format: what it is written as: "JPEG", "PNG", "WEBP", "TIFF" or "BMP".
        icc_profile: colour profile the pixels are in, or ``None`` (taken as sRGB).
        exif: filtered EXIF block (orientation 1, no thumbnail), written only on request.
        grey: whether every pixel is grey, so that every pixel of the result is.
        one_channel: whether it came as greyscale and is written as greyscale.
        notes: what reading could not keep, in words, e.g. "16 bits a channel became 8".
        exif_notes: what ``exif`` could not keep, for where it is written.
        png_colours: of a PNG, what its colours mean where no profile says it (`read_colours`).
        dpi: dots an inch across and down, or ``None`` where the file does not say.
        colours: of a HEIC photo, what its colours mean where no profile says it (`colour_code`).
        coding: how finely its file was packed.
    """

    pixels: PixelArray
    alpha: PixelArray | None = None
    format: str = "PNG"
    icc_profile: bytes | None = None
    exif: bytes | None = None
    grey: bool = False
    notes: tuple[str, ...] = ()
    exif_notes: tuple[str, ...] = ()
    png_colours: ColourChunks = ()
    dpi: tuple[float, float] | None = None
    one_channel: bool = False
    colours: ColourCode | None = None
    coding: SourceCoding = LOSSLESS


def read_photo(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> Photo:
    """Read a photo of any common format and mode, upright.

    JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC (with the extra ``heif``) and AVIF (with Pillow 11.3), told by their
    content; greyscale, palette, CMYK, 16-bit, 1-bit, with or without alpha and colour profile. Files with several
    frames are refused, except multi-picture JPEGs and HEICs, whose main picture is the photo.

    Args:
        path: the file.
        max_pixels: largest width times height that is decoded; a guard against decompression bombs.

    Returns:
        The photo; ``notes`` say what 8-bit RGB could not keep.

    Raises:
        UnreadablePhotoError: empty, truncated, too large, of another kind, or not readable; names the file.
        MemoryError: its pixels do not fit into memory.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Image.new("L", (6, 4), 9).save(Path(folder) / "grey.png")
        ...     read_photo(Path(folder) / "grey.png").pixels.shape
        (4, 6, 3)
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadablePhotoError(f"{os.fspath(path)}: cannot be opened ({error.strerror})") from error
    try:
        return decode_photo(data, max_pixels)
    except UnreadablePhotoError as error:
        raise UnreadablePhotoError(f"{os.fspath(path)}: {error}") from error


def decode_photo(data: bytes, max_pixels: int = MAX_PIXELS) -> Photo:
    """The same as :func:`read_photo` for the bytes of a file.

    Raises:
        UnreadablePhotoError, MemoryError: as :func:`read_photo`, without a file name.
    """
    if not data:
        raise UnreadablePhotoError("the file is empty (0 bytes)")
    kind = container_kind(data)
    missing = can_read(kind) if kind else None
    if missing:
        raise UnreadablePhotoError(missing)
    try:
        return _decode(data, max_pixels)
    except UnreadablePhotoError:
        raise
    except UnidentifiedImageError as error:
        known = "JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC, AVIF"
        raise UnreadablePhotoError(f"not a photo in a known format ({known})") from error
    except Image.DecompressionBombError as error:  # a GIF whose later frames are larger
        raise UnreadablePhotoError(f"too large, limit {max_pixels} pixels: {error}") from error
    except MemoryError:  # the file is sound, and another machine, or a later try, may have room for it
        raise
    except Exception as error:  # Pillow's decoders raise almost any type on damaged files
        raise UnreadablePhotoError(f"damaged or truncated ({error})") from error


def photo_from_image(image: Image.Image) -> Photo:
    """Take over a Pillow image of any mode: orientation applied, alpha and profile set aside.

    Args:
        image: any mode; a lazily opened file is loaded here. It is not changed.

    Raises:
        ValueError: floating-point or 32-bit pixels, which have no known range.
        OSError: from Pillow, where a lazily opened file turns out damaged.

    Example:
        >>> photo_from_image(Image.new("RGBA", (5, 4), (1, 2, 3, 4))).alpha.shape
        (4, 5)
    """
    file_format = image.format or "PNG"
    icc_profile = image.info.get("icc_profile") or None
    deep = is_16_bit(image)
    notes = [NOTE_16_BIT] if deep else []
    exif, exif_notes = filtered_exif(image)
    dpi = read_dpi(image)
    one_channel = is_grey(image)
    upright = turn_upright(image)
    if upright.mode == "CMYK":
        upright, note = cmyk_to_srgb(upright, icc_profile)
        notes.append(note)
    if image.mode in ("CMYK", "LAB"):
        icc_profile = None  # it describes the colours before the conversion to RGB
    pixels, alpha = split_rgb_alpha(upright, deep=deep)
    if deep and white_is_zero(image):
        pixels = 255 - pixels
    if file_format == "GIF":
        notes.append("GIF is written as PNG, because 256 colours would undo the protection")
    if file_format == "MPO":
        notes.append("only the main picture of a multi-picture JPEG is written")
    written_as = _WRITTEN_AS.get(file_format, file_format if file_format in _WRITTEN else "PNG")
    if written_as == "BMP" and alpha is not None:
        notes.append("BMP with transparency is written as PNG, because few programs read it from a BMP")
        written_as = "PNG"
    return Photo(
        pixels,
        alpha,
        written_as,
        icc_profile,
        exif,
        one_channel or is_neutral(pixels),
        tuple(notes),
        exif_notes,
        dpi=dpi,
        one_channel=one_channel,
    )


def save_photo(
    photo: Photo,
    pixels: PixelArray,
    path: str | os.PathLike[str],
    keep_metadata: bool = False,
    quality: Quality = "best",
) -> bytes:
    """Write new pixels as the photo came: same format, size, resolution, colour profile, alpha and greyness.

    JPEG is written at quality 97 without chroma subsampling, HEIC and AVIF nearly as fine, WebP and TIFF without
    loss, so that saving does not undo the protection: with another ``quality`` it may, and nobody has looked. Metadata
    (EXIF, GPS, XMP, comments, thumbnails) is dropped. The file appears at once and whole: it is written beside its
    place, flushed to disk and renamed.

    Args:
        photo: the photo the pixels came from.
        pixels: uint8 RGB ``[H, W, 3]``, same size as ``photo.pixels``.
        path: where to; the folder must exist. ``photo.format`` decides the format, not the file name.
        keep_metadata: write the filtered EXIF block too, with GPS position, without thumbnail.
        quality: "best", "same" for that of the photo's own file, or 1 to 100.

    Returns:
        The bytes written.

    Raises:
        ValueError: pixels of another shape or type, or no such quality.
        OSError: the file cannot be written; nothing is left behind.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> photo = photo_from_image(Image.new("RGB", (6, 4)))
        >>> with TemporaryDirectory() as folder:
        ...     save_photo(photo, photo.pixels, Path(folder) / "protected.png")[1:4]
        b'PNG'
    """
    if pixels.shape != photo.pixels.shape or pixels.dtype != np.uint8:
        raise ValueError(
            f"pixels must be uint8 of shape {photo.pixels.shape} like the photo, "
            f"got {pixels.dtype} of shape {pixels.shape}"
        )
    check_quality(quality)
    data = encode_photo(photo, pixels, keep_metadata, coding_steps(photo.format, photo.coding, quality)[0])
    write_atomic(path, data)
    return data


def encode_photo(
    photo: Photo, pixels: PixelArray, keep_metadata: bool = False, coding: Options | None = None
) -> bytes:
    """The file :func:`save_photo` would write, as bytes.

    Args:
        photo, pixels, keep_metadata: as for `save_photo`.
        coding: one of `coding_steps`; None for the finest.
    """
    options = dict(coding_steps(photo.format, photo.coding, "best")[0] if coding is None else coding)
    image = join_rgb_alpha(pixels, photo.alpha, grey=photo.one_channel)
    exif = photo.exif if keep_metadata else None
    if photo.format == "HEIF":
        return write_heif(image, icc_profile=photo.icc_profile, exif=exif, colours=photo.colours, **options)
    if photo.icc_profile is not None:
        options["icc_profile"] = photo.icc_profile
    if exif is not None:
        options["exif"] = exif
        options.pop("compression", None)  # libtiff, which compresses, fails on EXIF and GPS directories
    if photo.png_colours:
        options["pnginfo"] = write_colours(photo.png_colours)
    if photo.dpi is not None and photo.format in _DPI_FORMATS:
        options["dpi"] = photo.dpi
    buffer = BytesIO()
    image.save(buffer, format=photo.format, **options)
    return buffer.getvalue()


def _decode(data: bytes, max_pixels: int) -> Photo:
    try:
        return _decode_strictly(data, max_pixels)
    except OSError:
        photo = _decode_without_end(data, max_pixels) if data.startswith(_JPEG_START) else None
        if photo is None:
            raise
        return photo


def _decode_strictly(data: bytes, max_pixels: int) -> Photo:
    sound, long_profile = for_pillow(data)
    kind = container_kind(data)
    with open_heif(data) if kind == "HEIF" else _open(sound, kind) as image:
        _check_size_and_frames(image, max_pixels)
        if long_profile is not None:
            image.info["icc_profile"] = long_profile
        colours = colour_code(data, image.info) if kind else None
        notes = notes_of_container(image, kind, colours)
        if image.format in _FILMED and holds_film(data):
            notes.append("the film of the motion photo was left out")
        coding = read_coding(image, data)
        photo = photo_from_image(image)
        return replace(
            photo,
            png_colours=read_colours(data),
            colours=colours if kind == "HEIF" else None,
            coding=turned_sideways(coding) if is_sideways(image) else coding,
            notes=(*photo.notes, *notes),
        )


def _decode_without_end(data: bytes, max_pixels: int) -> Photo | None:
    """A JPEG that lacks no more than the mark of its end; None where it lacks pixels too.

    Where pixels are missing, the decoder takes whatever follows for them: then it matters what that is. Of a
    progressive JPEG every pixel may be there and most of the detail not.
    """
    with _open(data, None) as image:
        if "progressive" in image.info:
            return None
    bare = data.rstrip(_JPEG_END[:1])
    last = max((bare.rfind(mark), number) for number, mark in enumerate(_RESTARTS))
    expected = _RESTARTS[(last[1] + 1) % 8 if last[0] >= 0 else 0]
    more = _NO_ENDING + expected + _NO_ENDING
    first, second = (_decode_strictly(bare + end + _JPEG_END, max_pixels) for end in (b"", more))
    return first if same_pixels(first.pixels, second.pixels) else None


def _check_size_and_frames(image: Image.Image, max_pixels: int) -> None:
    count = image.width * image.height
    if count > max_pixels:
        raise UnreadablePhotoError(
            f"too large: {image.width} x {image.height} = {count} pixels, limit {max_pixels}; raise it "
            "(--max-megapixels) if you trust the file"
        )
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in _MULTI_FRAME_KEPT_FIRST:
        raise UnreadablePhotoError(
            f"has {frames} frames or pages, and only single photos are supported; extract the frames first"
        )


def _open(data: bytes, kind: str | None) -> Image.Image:
    """Read the header alone, without Pillow's own limit of pixels: ours is checked before anything is decoded.

    That limit is global, so one thread at a time lifts it; decoding, which takes the time, is outside.
    """
    with _pillow_limit_lock:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(BytesIO(data), formats=(kind,) if kind else _READ_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = before
