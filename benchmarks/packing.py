"""How large photos become by the quality they are packed with; print one JSON object. Nothing is protected.

    python -m benchmarks.packing --photos 40 --json out/packing.json

The photos of the data are packed as they are (LFW: JPEG of quality 75), and again as WebP, AVIF and HEIC of an ordinary
quality, and each such file once more by `--quality same` and `best`. ``same`` and ``best`` are the bytes of all results
over the bytes of all files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pillow_heif
from PIL import Image

from benchmarks._command import LFW, at_least, make_parser, number, print_run
from diffusers_dedim.evaluation import read_protocol
from diffusers_dedim.images.coding import coding_steps
from diffusers_dedim.images.files import decode_photo, encode_photo

USUAL = {"JPEG": 90, "WEBP": 75, "AVIF": 60, "HEIF": 50}
QUALITIES = ("same", "best")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its JSON object."""
    print_run("benchmarks.packing", _parse, run_packing, arguments)


def run_packing(options: argparse.Namespace) -> dict[str, Any]:
    """Pack the photos; returns what the JSON object holds."""
    files = [record.read_bytes() for record in read_protocol(options.data).probes[: options.photos]]
    sets = {"as they are": files}
    for kind, quality in USUAL.items():
        sets[f"{kind} {quality}"] = [_pack(data, kind, quality) for data in files]
    return {"photos": len(files), "sizes": {name: ratios(packed) for name, packed in sets.items()}}


def ratios(files: Sequence[bytes]) -> dict[str, float | None]:
    """Size of all results over that of all files, by quality."""
    sizes = dict.fromkeys(QUALITIES, 0)
    for data in files:
        photo = decode_photo(data)
        for quality in QUALITIES:
            step = coding_steps(photo.format, photo.coding, quality)[0]
            sizes[quality] += len(encode_photo(photo, photo.pixels, coding=step))
    return {quality: number(size / sum(map(len, files)), 2) for quality, size in sizes.items()}


def _pack(data: bytes, kind: str, quality: int) -> bytes:
    image, buffer = Image.fromarray(decode_photo(data).pixels), BytesIO()
    if kind == "HEIF":
        pillow_heif.encode(image.mode, image.size, image.tobytes(), buffer, quality=quality)
    else:
        image.save(buffer, kind, quality=quality)
    return buffer.getvalue()


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.packing", __doc__)
    parser.add_argument(
        "--photos", type=at_least(1), default=40, help="first N probes of the data (default 40)"
    )
    parser.add_argument("--data", type=Path, default=LFW, help="parquet or folder")
    parser.set_defaults(seed=0)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
