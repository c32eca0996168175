"""HEIC and AVIF: which of them a file is, reading and writing HEIC, and what phones put beside a photo."""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any, Literal

from PIL import Image, features

from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.extras import import_extra

# https://github.com/nokiatech/heif/blob/master/docs/index.md and https://aomediacodec.github.io/av1-avif/
_AVIF_BRANDS = frozenset((b"avif", b"avis", b"avio"))
_HEIF_BRANDS = frozenset(
    (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1")
)
_MOST_BRANDS = 64
_INSTALL = 'pip install "diffusers-dedim[heif]"'
# Of films as phones append them to a photo, or put them into its container.
_FILM = re.compile(rb"ftyp(?:mp4[12]|isom|iso[2-9]|qt  |M4V |avc1|3gp[4-9])")
# What libheif takes by itself ("slow") makes a photo of a phone wait for half a minute, for 5 % smaller files.
_PRESET = "fast"
_SRGB = (1, 13)  # primaries and transfer as in H.273, which is what is taken where nothing is said
_UNKNOWN = 2
_COLOUR_NAMES = ("color_primaries", "transfer_characteristics", "matrix_coefficients", "full_range_flag")

ColourCode = tuple[int, int, int, int]
"""Primaries, transfer, matrix and full range of ITU-T H.273, as in the box ``nclx``."""


def container_kind(data: bytes) -> Literal["AVIF", "HEIF"] | None:
    """Which of the two a file is by its brands, or None.

    Example:
        >>> container_kind(b"....ftypheic....mif1heic"), container_kind(b"GIF89a")
        ('HEIF', None)
    """
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), 16 + 4 * _MOST_BRANDS)
    brands = {data[8:12], *(data[start : start + 4] for start in range(16, end, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def can_read(kind: Literal["AVIF", "HEIF"]) -> str | None:
    """None where this installation reads such files, else what to do about it, in words."""
    if kind == "AVIF":
        if features.check("avif"):
            return None
        return 'AVIF photos need Pillow 11.3 or later with AVIF; run: pip install -U "pillow>=11.3"'
    try:
        import_extra("pillow_heif", "a HEIC photo", _INSTALL)
    except ImportError as error:
        return str(error)
    return None


def open_heif(data: bytes) -> Image.Image:
    """Read the header of a HEIC file; its picture is upright whatever its EXIF block says.

    Not registered with Pillow: what other code in the process opens is not ours to change.

    Raises:
        UnreadablePhotoError: the package for it is missing; says how to install it.
        SyntaxError: the file is damaged, or its picture is packed in a way that is not known.
    """
    missing = can_read("HEIF")
    if missing is not None:
        raise UnreadablePhotoError(missing)
    image: Image.Image = import_extra("pillow_heif", "a HEIC photo", _INSTALL).HeifImageFile(BytesIO(data))
    return image


def write_heif(
    image: Image.Image,
    *,
    icc_profile: bytes | None,
    exif: bytes | None,
    colours: ColourCode | None,
    **coding: Any,
) -> bytes:
    """A HEIC file with this picture alone: no thumbnail, depth or second picture.

    Args:
        image: L, LA, RGB or RGBA.
        icc_profile, exif, colours: what goes along.
        coding: ``quality`` (0..100, -1 without loss) and ``chroma`` (420, 422 or 444).
    """
    along: dict[str, Any] = {"icc_profile": icc_profile, "exif": exif}
    if colours is not None:
        along |= zip(_COLOUR_NAMES, colours, strict=True)
    buffer = BytesIO()
    import_extra("pillow_heif", "a HEIC photo", _INSTALL).encode(
        image.mode, image.size, image.tobytes(), buffer, enc_params={"preset": _PRESET}, **along, **coding
    )
    return buffer.getvalue()


def colour_code(data: bytes, info: Mapping[Any, Any]) -> ColourCode | None:
    """What the colours of a HEIC or AVIF photo mean where that is not plain sRGB; None otherwise.

    Args:
        data: the file.
        info: of its image as it was opened.
    """
    profile = info.get("nclx_profile")
    if isinstance(profile, Mapping):
        code = tuple(int(profile[name]) for name in _COLOUR_NAMES)
    else:
        place = data.find(b"colrnclx", 0, 2**16)
        if place < 0 or len(data) < place + 15:
            return None
        start = place + 8
        code = (*(int.from_bytes(data[at : at + 2], "big") for at in (start, start + 2, start + 4)), 1)
    primaries, transfer, matrix, full = code
    if all(
        value in (_UNKNOWN, usual, 1, 6) for value, usual in zip((primaries, transfer), _SRGB, strict=True)
    ):
        return None
    return primaries, transfer, matrix, full


def notes_of_container(image: Image.Image, kind: str | None, colours: ColourCode | None) -> list[str]:
    """What writing the photo of a HEIC or AVIF file leaves out, in words."""
    notes: list[str] = []
    if kind is None:
        return notes
    depth = image.info.get("bit_depth", 8)
    if isinstance(depth, int) and depth > 8:
        notes.append(f"{depth} bits a channel became 8")
    if getattr(image, "n_frames", 1) > 1 and kind == "HEIF":
        notes.append("only the main picture of several in the HEIC is written")
    if image.info.get("depth_images") or image.info.get("aux"):
        notes.append("what the HEIC holds beside the picture (depth, light) was left out")
    if colours is not None and kind == "AVIF":
        notes.append(
            "the AVIF says that its colours are of a wider range, which is not kept: they may look paler"
        )
    return notes


def holds_film(data: bytes) -> bool:
    """Whether a film lies in the file of a photo, as a phone's "motion photo" has it.

    Example:
        >>> holds_film(b"a photo, and then ....ftypmp42....")
        True
    """
    return _FILM.search(data, 12) is not None
