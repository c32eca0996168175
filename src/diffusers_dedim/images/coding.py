"""How finely a photo is packed: as its file was, as somebody asks, and finer where that would undo the protection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image, JpegImagePlugin

from diffusers_dedim.images.webp import webp_quality

Quality = Literal["same", "best"] | int
"""As the photo's own file; as fine as the format can; or 1 to 100."""

Table = tuple[int, ...]
Options = dict[str, Any]

_SUBSAMPLED = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}  # as Pillow numbers them
_FULL, _UNKNOWN = 0, -1
_FROM_HERE_FULL = 90  # quality from which a JPEG's colours are as fine as its brightness
_FINEST = 97
_BEST: dict[str, Options] = {
    # moves a pixel by about one level; the change is several levels
    "JPEG": {"quality": _FINEST, "subsampling": _FULL},
    "WEBP": {"lossless": True, "exact": True},
    "AVIF": {"quality": _FINEST, "subsampling": "4:4:4"},
    "HEIF": {"quality": 95, "chroma": 444},
    "TIFF": {"compression": "tiff_lzw"},
}
# Where a file does not say how finely it was packed.
_USUAL = {"JPEG": 90, "WEBP": 80, "AVIF": 75, "HEIF": 60}
_CODERS = tuple(_USUAL)


@dataclass(frozen=True)
class SourceCoding:
    """How the file of a photo was packed, as far as it says so.

    Attributes:
        tables: a JPEG's tables of quantisers, 64 numbers each.
        subsampling: of a JPEG's colours, as Pillow numbers it: 0, 1 or 2; -1 where Pillow cannot write it.
        progressive: whether a JPEG comes coarse first.
        quality: of a WebP with loss, 1 to 100.
        lossless: whether every pixel is as it was put in.
    """

    tables: tuple[Table, ...] = ()
    subsampling: int = _FULL
    progressive: bool = False
    quality: int | None = None
    lossless: bool = True


LOSSLESS = SourceCoding()


def read_coding(image: Image.Image, data: bytes) -> SourceCoding:
    """How a file is packed.

    Args:
        image: as Pillow opened it.
        data: the file.
    """
    if image.format in ("JPEG", "MPO"):
        return SourceCoding(
            _tables(image), JpegImagePlugin.get_sampling(image), "progressive" in image.info, lossless=False
        )
    if image.format == "WEBP":
        quality = webp_quality(data)
        return SourceCoding(quality=quality, lossless=quality is None)
    return SourceCoding(lossless=image.format not in _CODERS)


def _tables(image: Image.Image) -> tuple[Table, ...]:
    """The quantisers of each channel; none of CMYK, whose four channels are written as three."""
    tables: dict[int, list[int]] = getattr(image, "quantization", {})
    layers: list[tuple[int, int, int, int]] = getattr(image, "layer", [])
    used = [tables.get(layer[3], []) for layer in layers]
    if len(used) not in (1, 3) or any(len(table) != 64 for table in used):
        return ()
    if used[1:2] == used[2:]:
        used = used[:2]  # both colours share one
    # odd files have numbers that the usual kind of JPEG cannot hold
    return tuple(tuple(min(max(number, 1), 255) for number in table) for table in used)


def turned_sideways(coding: SourceCoding) -> SourceCoding:
    """The coding of the same photo once its rows are columns.

    Example:
        >>> turned_sideways(SourceCoding((tuple(range(64)),))).tables[0][:3]
        (0, 8, 16)
    """
    tables = tuple(tuple(table[8 * (at % 8) + at // 8] for at in range(64)) for table in coding.tables)
    # colours that are halved in one direction: Pillow writes it for the other one only
    subsampling = _UNKNOWN if coding.subsampling == _SUBSAMPLED["4:2:2"] else coding.subsampling
    return SourceCoding(tables, subsampling, coding.progressive, coding.quality, coding.lossless)


def check_quality(quality: Quality) -> None:
    """Refuse what is no quality.

    Raises:
        ValueError: it is neither of the words, nor a whole number from 1 to 100.
    """
    is_number = isinstance(quality, int) and not isinstance(quality, bool) and 1 <= quality <= 100
    if quality not in ("same", "best") and not is_number:
        raise ValueError(f'quality must be "same", "best" or a whole number from 1 to 100, got {quality!r}')


def coding_steps(written_as: str, source: SourceCoding, quality: Quality) -> tuple[Options, ...]:
    """Options for saving, from what is asked for to the finest that the format has.

    Each step is about twice as fine as the one before. Formats without loss, and WebP files that came without, have
    one step.

    Args:
        written_as: the format.
        source: how the photo's file was packed.
        quality: what is asked for.

    Example:
        >>> [step["quality"] for step in coding_steps("JPEG", LOSSLESS, 80)]
        [80, 90, 95, 97]
    """
    best = _BEST.get(written_as, {})
    kept_whole = written_as == "WEBP" and quality == "same" and source.lossless
    if written_as not in _CODERS or quality == "best" or kept_whole:
        return (best,)
    if quality == "same" and written_as == "JPEG" and source.tables:
        return (*_by_tables(source), best)
    first = quality if isinstance(quality, int) else source.quality or _USUAL[written_as]
    steps, step = [_by_number(written_as, int(first), source)], int(first)
    if step >= _FINEST:
        return tuple(steps)
    while (step := (step + 101) // 2) < _FINEST:  # half as far from 100
        steps.append(_by_number(written_as, step, source))
    return (*steps, best)


def _by_tables(source: SourceCoding) -> tuple[Options, ...]:
    """The source's own tables, and the same with every number halved."""
    subsampling = _FULL if source.subsampling == _UNKNOWN else source.subsampling
    same: Options = {"qtables": [list(table) for table in source.tables], "subsampling": subsampling}
    halved = [[max(1, number // 2) for number in table] for table in source.tables]
    extra: Options = {"progressive": True} if source.progressive else {}
    return same | extra, {"qtables": halved, "subsampling": _FULL} | extra


def _by_number(written_as: str, quality: int, source: SourceCoding) -> Options:
    fine = quality >= _FROM_HERE_FULL
    if written_as == "JPEG":
        subsampling = _FULL if fine else _SUBSAMPLED["4:2:0"]
        return {"quality": quality, "subsampling": subsampling, "progressive": source.progressive}
    if written_as == "WEBP":
        return {"quality": quality, "exact": True}
    if written_as == "AVIF":
        return {"quality": quality, "subsampling": "4:4:4" if fine else "4:2:0"}
    return {"quality": quality, "chroma": 444 if fine else 420}
