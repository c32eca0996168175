"""What colours a PNG's numbers mean where no ICC profile says it: kept, so that a photo does not look otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from PIL.PngImagePlugin import PngInfo

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Fixed lengths, so that nothing else can hide in them: https://www.w3.org/TR/png-3/
_LENGTHS = {b"cICP": 4, b"cHRM": 32, b"gAMA": 4, b"sRGB": 1}

ColourChunks = tuple[tuple[bytes, bytes], ...]


def read_colours(data: bytes) -> ColourChunks:
    """Name and content of the colour chunks in front of the pixels; none where the file is no PNG.

    Example:
        >>> read_colours(b"GIF89a")
        ()
    """
    if not data.startswith(_SIGNATURE):
        return ()
    found: dict[bytes, bytes] = {}
    for name, content in _chunks(data):
        if len(content) == _LENGTHS.get(name):
            found.setdefault(name, content)
    return tuple(found.items())


def write_colours(chunks: Sequence[tuple[bytes, bytes]]) -> PngInfo:
    """The same for Pillow's ``save(..., pnginfo=)``."""
    info = PngInfo()
    for name, content in chunks:
        info.add(name, content)
    return info


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Chunks up to the pixels, or to where the file breaks off."""
    start = len(_SIGNATURE)
    while start + 8 <= len(data):
        length, name = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        if name == b"IDAT":
            return
        yield name, data[start + 8 : start + 8 + length]
        start += 12 + length
