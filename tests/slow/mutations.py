"""Photo files of every format, and what disks, mail and cut-off downloads make of them; the same by a seed."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

SIZE = (36, 48)  # height, width: small, so that thousands take a minute


def sound_files(rng: np.random.Generator) -> dict[str, bytes]:
    """A few sound files of every format that is read, by a name with its ending."""
    colour = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1))
    grey, alpha = colour.convert("L"), colour.convert("RGBA")
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a phone"
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "a.jpg": (colour, "JPEG", {"exif": exif, "quality": 60}),
        "b.jpg": (grey, "JPEG", {"progressive": True}),
        "c.jpg": (colour.convert("CMYK"), "JPEG", {}),
        "d.mpo": (colour, "MPO", {"save_all": True, "append_images": [grey.convert("RGB")]}),
        "a.png": (alpha, "PNG", {"exif": exif}),
        "b.png": (colour.convert("P"), "PNG", {"transparency": 3}),
        "c.png": (Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG", {}),
        "a.webp": (colour, "WEBP", {"quality": 60}),
        "b.webp": (alpha, "WEBP", {"lossless": True}),
        "a.tif": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "b.tif": (colour, "TIFF", {"compression": "jpeg"}),
        "a.bmp": (colour, "BMP", {}),
        "a.gif": (colour.convert("P"), "GIF", {}),
        "a.avif": (colour, "AVIF", {"speed": 10}),
    }
    files = {name: _pack(lambda out, k=kind: k[0].save(out, k[1], **k[2])) for name, kind in kinds.items()}
    files["a.heic"] = _pack(
        lambda out: pillow_heif.encode(colour.mode, colour.size, colour.tobytes(), out, quality=60)
    )
    return files


def _pack(save: Callable[[BytesIO], object]) -> bytes:
    buffer = BytesIO()
    save(buffer)
    return buffer.getvalue()


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One of the ways in which files go wrong, drawn at random; sometimes two."""
    for _ in range(1 + int(rng.random() < 0.3)):
        data = _MUTATIONS[rng.integers(len(_MUTATIONS))](data, rng)
    return data


def _flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(0, max(1, len(data)), int(rng.integers(1, 12))):
        if changed:
            changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _flip_head(data: bytes, rng: np.random.Generator) -> bytes:
    """Most of what a decoder trusts lies in front."""
    return _flip_bits(data[:200], rng) + data[200:]


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, len(data) + 1))]


def _blank(data: bytes, rng: np.random.Generator) -> bytes:
    """A hole, as a lost block of a disk leaves it."""
    start, length = int(rng.integers(0, len(data) + 1)), int(rng.integers(1, 600))
    return data[:start] + bytes(min(length, len(data) - start)) + data[start + length :]


def _leave_out(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(0, len(data) + 1)), int(rng.integers(1, 60))
    return data[:start] + data[start + length :]


def _double(data: bytes, rng: np.random.Generator) -> bytes:
    start, length = int(rng.integers(0, len(data) + 1)), int(rng.integers(1, 200))
    return data[: start + length] + data[start:]


def _append(data: bytes, rng: np.random.Generator) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 200)))


def _large_number(data: bytes, rng: np.random.Generator) -> bytes:
    """A length, a width or a count that cannot be."""
    start = int(rng.integers(0, max(1, min(len(data), 400) - 4)))
    return data[:start] + rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)]) + data[start + 4 :]


def _swap(data: bytes, rng: np.random.Generator) -> bytes:
    """Two pieces in each other's place, as a bad recovery has them."""
    first, second = sorted(int(place) for place in rng.integers(0, len(data) + 1, 2))
    return data[second:] + data[first:second] + data[:first]


_MUTATIONS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    *(_flip_bits, _flip_head, _flip_head, _cut, _blank, _leave_out, _double, _append, _large_number, _swap),
)
