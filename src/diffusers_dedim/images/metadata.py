"""What of a photo's metadata may travel with it: the orientation is applied, the rest dropped or filtered.

Filtering is a list of what stays, never of what goes. Cameras put previews into many places (the EXIF
thumbnail, maker notes, Photoshop and XMP blocks) and each of them would show the face as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

_KEPT_TAGS = (
    Base.ImageDescription,
    Base.Make,
    Base.Model,
    Base.XResolution,
    Base.YResolution,
    Base.ResolutionUnit,
    Base.Software,
    Base.DateTime,
    Base.Artist,
    Base.Copyright,
)
# When, and how the camera was set. No tag of free bytes (maker note, user comment: some hold a preview of the
# original) and no size, which is as stored, before the orientation was applied.
_KEPT_DETAILS = frozenset(
    (
        Base.ExifVersion,
        Base.DateTimeOriginal,
        Base.DateTimeDigitized,
        Base.OffsetTime,
        Base.OffsetTimeOriginal,
        Base.OffsetTimeDigitized,
        Base.SubsecTime,
        Base.SubsecTimeOriginal,
        Base.SubsecTimeDigitized,
        Base.ExposureTime,
        Base.FNumber,
        Base.ExposureProgram,
        Base.ISOSpeedRatings,
        Base.SensitivityType,
        Base.RecommendedExposureIndex,
        Base.ShutterSpeedValue,
        Base.ApertureValue,
        Base.BrightnessValue,
        Base.ExposureBiasValue,
        Base.MaxApertureValue,
        Base.SubjectDistance,
        Base.MeteringMode,
        Base.LightSource,
        Base.Flash,
        Base.FocalLength,
        Base.FocalLengthIn35mmFilm,
        Base.ColorSpace,
        Base.SensingMethod,
        Base.ExposureMode,
        Base.WhiteBalance,
        Base.DigitalZoomRatio,
        Base.SceneCaptureType,
        Base.GainControl,
        Base.Contrast,
        Base.Saturation,
        Base.Sharpness,
        Base.LensSpecification,
        Base.LensMake,
        Base.LensModel,
    )
)

# Without the two of free bytes, and without what the standard does not know: vendors put anything there.
_KEPT_POSITION = frozenset(GPS) - {GPS.GPSProcessingMethod, GPS.GPSAreaInformation}
_MOST_BYTES = 4  # of a value without a type, such as a version: more could be a preview under a kept tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset((5, 6, 7, 8))  # orientations that swap width and height
_DPI_RANGE = (1.0, 65535.0)  # what a JPEG can say
_Block = dict[int, Any]


def filtered_exif(image: Image.Image) -> tuple[bytes | None, tuple[str, ...]]:
    """EXIF block that is safe beside the protected pixels, and what of it could not be kept.

    Kept: camera, date, artist, copyright, description, resolution, exposure data and GPS position.
    Dropped: thumbnail, maker notes, and any tag not listed here. The orientation tag is 1, because the
    pixels are upright once read. A listed tag of a type that cannot be written is left out with a note:
    odd EXIF is no reason to refuse a sound photo.

    Args:
        image: a photo as Pillow opened it; its pixels are not read.

    Returns:
        A block for the ``exif`` argument of ``PIL.Image.Image.save``, or None where the photo has none; notes
        in words.

    Example:
        >>> from PIL import Image
        >>> filtered_exif(Image.new("RGB", (8, 8)))
        (None, ())
    """
    try:
        source = image.getexif()
        if not source:
            return None, ()
        main: _Block = {tag: source[tag] for tag in _KEPT_TAGS if tag in source and not _is_long(source[tag])}
    except Exception:  # Pillow raises almost any type on odd EXIF, here and below
        return None, ("the EXIF block is damaged and was left out",)
    kept, lost = Image.Exif(), list[str]()
    for tag, value in main.items():
        if _can_be_written({tag: value}):
            kept[tag] = value
        else:
            lost.append(Base(tag).name)
    kept[Base.Orientation] = 1
    for block, allowed, name in ((IFD.Exif, _KEPT_DETAILS, Base), (IFD.GPSInfo, _KEPT_POSITION, GPS)):
        try:
            found = source.get_ifd(block)
        except Exception:
            lost.append(block.name)
            continue
        wanted = {tag: value for tag, value in found.items() if tag in allowed and not _is_long(value)}
        good = {tag: value for tag, value in wanted.items() if _can_be_written({tag: value}, block)}
        lost += [name(tag).name for tag in wanted if tag not in good]
        if good:
            kept.get_ifd(block).update(good)
    notes = (f"EXIF tags that cannot be written were left out: {', '.join(lost)}",) if lost else ()
    return kept.tobytes(), notes


def turn_upright(image: Image.Image) -> Image.Image:
    """Apply the orientation of the EXIF block; what is none of the eight counts as upright.

    Pillow's own `exif_transpose` writes the rest of the block anew on the way, which fails on odd tags.

    Example:
        >>> turn_upright(Image.new("RGB", (8, 4))).size
        (8, 4)
    """
    image.load()  # first: a TIFF is turned here, and says so by dropping the tag
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def is_sideways(image: Image.Image) -> bool:
    """Whether upright the photo's rows are its columns; a TIFF says so only before its pixels are loaded."""
    return _orientation(image) in _SIDEWAYS


def read_dpi(image: Image.Image) -> tuple[float, float] | None:
    """Dots an inch across and down of the upright photo; None where the file says nothing, or nonsense.

    Args:
        image: a photo as Pillow opened it; ask before its pixels are loaded.

    Example:
        >>> image = Image.new("RGB", (8, 8))
        >>> image.info["dpi"] = (300, 300)
        >>> read_dpi(image)
        (300.0, 300.0)
    """
    try:
        across, down = map(float, image.info["dpi"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    low, high = _DPI_RANGE
    if not all(math.isfinite(dots) and low <= dots <= high for dots in (across, down)):
        return None
    return (down, across) if _orientation(image) in _SIDEWAYS else (across, down)


def _orientation(image: Image.Image) -> int:
    with suppress(Exception):  # Pillow raises almost any type on odd EXIF
        found = image.getexif().get(Base.Orientation)
        if isinstance(found, int):
            return found
    return 1


def _is_long(value: object) -> bool:
    return isinstance(value, bytes) and len(value) > _MOST_BYTES


def _can_be_written(tags: Mapping[int, Any], block: IFD | None = None) -> bool:
    trial = Image.Exif()
    (trial if block is None else trial.get_ifd(block)).update(tags)
    try:
        trial.tobytes()
    except Exception:
        return False
    return True
