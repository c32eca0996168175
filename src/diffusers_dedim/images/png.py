"""The chunks of a PNG: which of them say how its pixels look, and which only stand in the way of reading them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

from PIL.PngImagePlugin import PngInfo

ColourChunks = tuple[tuple[bytes, bytes], ...]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FRAME = 12  # bytes of length, name and checksum around a chunk's content
# Fixed lengths, so that nothing else can hide in them: https://www.w3.org/TR/png-3/
_COLOUR_LENGTHS = {b"cICP": 4, b"cHRM": 32, b"gAMA": 4, b"sRGB": 1}
# Damage in these changes how the photo looks: transparency, colours, the way up, frames. In the rest nobody sees it.
_LOOKS = frozenset((b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", *_COLOUR_LENGTHS))
_TEXTS = frozenset((b"tEXt", b"zTXt", b"iTXt"))
# The only texts that are read: they may hold the orientation.
_READ_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")
_PILLOWS_LIMIT = (
    2**20
)  # of an unpacked text or profile, bytes; Pillow refuses the whole file for a longer one
_LONGEST_PROFILE = 2**24


def read_colours(data: bytes) -> ColourChunks:
    """Name and content of the colour chunks in front of the pixels; none where the file is no PNG.

    Example:
        >>> read_colours(b"GIF89a")
        ()
    """
    found: dict[bytes, bytes] = {}
    for name, place in _chunks(data):
        if name == b"IDAT":
            break
        content = data[place][8:-4]
        if len(content) == _COLOUR_LENGTHS.get(name):
            found.setdefault(name, content)
    return tuple(found.items())


def write_colours(chunks: Sequence[tuple[bytes, bytes]]) -> PngInfo:
    """The same for Pillow's ``save(..., pnginfo=)``."""
    info = PngInfo()
    for name, content in chunks:
        info.add(name, content)
    return info


def for_pillow(data: bytes) -> tuple[bytes, bytes | None]:
    """Leave out of a PNG what Pillow refuses a sound photo for.

    Left out are texts (workflows of a few megabytes, say; they are dropped when writing anyway), chunks with a wrong
    checksum that do not change how the photo looks, and a colour profile that is longer than Pillow unpacks.

    Args:
        data: a file; anything but a PNG is handed back as it is.

    Returns:
        The file for Pillow, and the profile that was too long for it (up to 16 MiB), else None.

    Example:
        >>> for_pillow(b"GIF89a")
        (b'GIF89a', None)
    """
    profile: bytes | None = None
    left_out: list[slice] = []
    for name, place in _chunks(data):
        if name == b"iCCP" and (long_profile := _long_profile(data[place])) is not None:
            profile = profile or long_profile
            left_out.append(place)
        elif _is_unread_text(name, data[place]) or (_is_optional(name) and _is_damaged(data[place])):
            left_out.append(place)
    if not left_out:
        return data, profile
    starts, ends = [0, *(place.stop for place in left_out)], [*(place.start for place in left_out), len(data)]
    return b"".join(data[start:end] for start, end in zip(starts, ends, strict=True)), profile


def _chunks(data: bytes) -> Iterator[tuple[bytes, slice]]:
    """Name and place of each whole chunk, up to the end or to where the file breaks off."""
    start = len(_SIGNATURE) if data.startswith(_SIGNATURE) else len(data)
    while start + _FRAME <= len(data):
        end = start + _FRAME + int.from_bytes(data[start : start + 4], "big")
        if end > len(data):
            return
        yield data[start + 4 : start + 8], slice(start, end)
        start = end


def _is_optional(name: bytes) -> bool:
    """Lower case begins the names of chunks that a reader may pass over."""
    return name.isalpha() and name[:1].islower() and name not in _LOOKS


def _is_damaged(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big")


def _is_unread_text(name: bytes, chunk: bytes) -> bool:
    if name not in _TEXTS:
        return False
    keyword, _, rest = chunk[8:-4].partition(b"\0")
    if keyword not in _READ_TEXTS:
        return True
    if name == b"zTXt":
        return _unpack(rest[1:], _PILLOWS_LIMIT) is None
    packed = name == b"iTXt" and rest[:1] == b"\1"
    return packed and _unpack(rest[2:].split(b"\0", 2)[-1], _PILLOWS_LIMIT) is None


def _long_profile(chunk: bytes) -> bytes | None:
    """The profile of a sound chunk if it is longer than Pillow unpacks, and still one that may be unpacked."""
    _, _, rest = chunk[8:-4].partition(b"\0")
    if _is_damaged(chunk) or rest[:1] != b"\0" or _unpack(rest[1:], _PILLOWS_LIMIT) is not None:
        return None
    return _unpack(rest[1:], _LONGEST_PROFILE)


def _unpack(data: bytes, limit: int) -> bytes | None:
    """None where it is longer than ``limit``; empty where it is damaged, which Pillow passes over."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data, limit)
    except zlib.error:
        return b""
    return None if unpacker.unconsumed_tail else unpacked
