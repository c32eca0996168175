"""How a WebP file is packed: without loss, or by which quality; the format does not say so in so many words."""

from __future__ import annotations

from collections.abc import Iterator

_KEY_FRAME_START = b"\x9d\x01\x2a"
_HEADER = 10  # bytes of a frame before what is coded bit by bit
_EVEN = 128  # of 256: the odds of the bits that are read here
_LARGEST_INDEX = 127  # of the table of quantisers
_COARSEST = 1 + 127 * 0.9 * 0.5 / 128  # exponent of the part that is packed most coarsely, at -sns 50


def webp_quality(data: bytes) -> int | None:
    """The quality by which libwebp would pack such a file, 1..100; None where there is no loss, or it is no WebP.

    Read from the quantisers in the head of the frame (RFC 6386, sections 7, 9.3 and 9.6), as libwebp sets them by
    default; of what others have packed it is the nearest.

    Example:
        >>> webp_quality(b"GIF89a") is None
        True
    """
    for name, content in _chunks(data):
        if name == b"VP8L":
            return None
        if name == b"VP8 " and content[3:6] == _KEY_FRAME_START and not content[0] & 1:
            return _as_quality(*_quantiser(_Bits(content[_HEADER:])))
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = 12 if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else len(data)
    while start + 8 <= len(data):
        length = int.from_bytes(data[start + 4 : start + 8], "little")
        yield data[start : start + 4], data[start + 8 : start + 8 + length]
        start += 8 + length + length % 2


def _quantiser(bits: _Bits) -> tuple[int, bool]:
    """Index of the coarsest quantiser of a frame, 0 (finest) to 127, and whether its parts have several."""
    bits.number(2)  # colour space, clamping
    parted = bool(bits.number(1))
    if parted:
        new_map, new_values = bits.number(1), bits.number(1)
        if new_values:
            bits.number(1)  # absolute or not
            bits.skip_optional(7, 4)  # their quantisers
            bits.skip_optional(6, 4)  # and filters
        if new_map:
            bits.skip_optional(8, 3, signed=False)
    bits.number(1 + 6 + 3)  # filter
    if bits.number(1) and bits.number(1):
        bits.skip_optional(6, 8)
    bits.number(2)  # how the rest is divided
    return bits.number(7), parted


def _as_quality(index: int, parted: bool) -> int:
    """The inverse of libwebp's map from quality to quantiser (``QualityToCompression``, ``VP8SetSegmentParams``)."""
    linear = (1 - index / _LARGEST_INDEX) ** (3 / _COARSEST if parted else 3)
    quality = linear * 1.5 if linear < 0.5 else (linear + 1) / 2
    return max(1, round(100 * quality))


class _Bits:
    """The boolean decoder of RFC 6386, section 7.3, for bits of even odds."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data[2:])
        self._value, self._range, self._shifted = int.from_bytes(data[:2], "big"), 255, 0

    def number(self, bits: int) -> int:
        """A whole number of so many bits."""
        value = 0
        for _ in range(bits):
            value = 2 * value + self._bit()
        return value

    def skip_optional(self, bits: int, times: int, *, signed: bool = True) -> None:
        """Pass over numbers each of which may not be given."""
        for _ in range(times):
            if self.number(1):
                self.number(bits + signed)

    def _bit(self) -> int:
        split = 1 + (((self._range - 1) * _EVEN) >> 8)
        bit = int(self._value >= split << 8)
        if bit:
            self._range -= split
            self._value -= split << 8
        else:
            self._range = split
        while self._range < 128:
            self._value <<= 1
            self._range <<= 1
            self._shifted += 1
            if self._shifted == 8:
                self._shifted = 0
                self._value |= next(self._data, 0)
        return bit
