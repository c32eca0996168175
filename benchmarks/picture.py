"""Draw faces we may show: before, after, and the difference times eight.

    python -m benchmarks.picture                        # the README's: docs/images/astronaut.png
    python -m benchmarks.picture --six                  # docs/images/faces.png, from a sheet of drawn faces

The README's photo is NASA's portrait of Eileen Collins, from scikit-image. The six are this one, the US Navy's portrait
of Grace Hopper, from matplotlib (both in the public domain), and four faces of nobody: those of ``--drawn``, in reading
order from 1, of the sixteen that `dedim sample --steps 100` drew into ``--sheet``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.models.blocks import CROP_SIZE

DIFFERENCE_GAIN = 8
MARGIN = 0.45  # of the face's size, left around it
DRAWN = 16
_TILE, _GAP, _COLUMNS = 224, 8, 2


def main(arguments: Sequence[str] | None = None, load: Callable[[], Any] | None = None) -> None:
    """Protect the faces and write the tiles of each side by side.

    Args:
        arguments: command line without the program; ``sys.argv`` by default.
        load: makes the pipeline; the bundled one by default. Tests put a toy here.
    """
    options = parse(arguments)
    pipe = (load or DeDiMPipeline.from_pretrained)()
    if options.six:
        faces = [astronaut(), grace_hopper(), *drawn_faces(options)]
        rows = [protect_face(pipe, face, options) for face in faces]
        picture = pages(rows)
    else:
        before, after = protect_face(pipe, astronaut(), options)
        picture = tiles(before, after)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(options.out, optimize=True)
    print(options.out)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Words of the command line -> options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="docs/images/astronaut.png, or faces.png there")
    parser.add_argument("--six", action="store_true", help="six faces instead of one")
    parser.add_argument(
        "--drawn", type=int, nargs=4, default=[1, 2, 10, 11], help=f"which of {DRAWN} drawn faces"
    )
    parser.add_argument("--sheet", type=Path, default=Path("out", "drawn.png"), help="the drawn faces")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if not all(1 <= number <= DRAWN for number in options.drawn):
        parser.error(f"--drawn: expected numbers from 1 to {DRAWN}, got {options.drawn}")
    options.out = options.out or Path("docs/images", "faces.png" if options.six else "astronaut.png")
    return options


def astronaut() -> NDArray[np.uint8]:
    """NASA's portrait of Eileen Collins."""
    from skimage.data import astronaut

    photo: NDArray[np.uint8] = astronaut()
    return photo


def grace_hopper() -> NDArray[np.uint8]:
    """The US Navy's portrait of Grace Hopper."""
    from matplotlib.cbook import get_sample_data

    with get_sample_data("grace_hopper.jpg") as file:
        return np.asarray(Image.open(file).convert("RGB"))


def drawn_faces(options: argparse.Namespace) -> list[Image.Image]:
    """Faces of nobody, aligned crops of 112 px, from the sheet that `dedim sample` wrote."""
    sheet = Image.open(options.sheet).convert("RGB")
    columns = sheet.width // CROP_SIZE
    places = [divmod(number - 1, columns) for number in options.drawn]
    return [
        sheet.crop(
            (CROP_SIZE * column, CROP_SIZE * row, CROP_SIZE * column + CROP_SIZE, CROP_SIZE * row + CROP_SIZE)
        )
        for row, column in places
    ]


def protect_face(
    pipe: Any, face: NDArray[np.uint8] | Image.Image, options: argparse.Namespace
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A photo's face before and after with a margin, or an aligned crop before and after."""
    generator = torch.Generator().manual_seed(options.seed)
    aligned = isinstance(face, Image.Image)
    out = pipe(face, preset=options.preset, generator=generator, aligned=aligned)
    before, after, found = np.asarray(face), np.asarray(out.images[0]), out.faces[0]
    print(f"similarity {found.similarity:.2f} after {found.rounds} rounds, {found.unet_calls} denoiser calls")
    if aligned:
        return before, after
    x0, y0, x1, y1 = found.box
    half = (0.5 + MARGIN) * max(x1 - x0, y1 - y0)
    left, top = round((x0 + x1) / 2 - half), round((y0 + y1) / 2 - half)
    window = np.s_[max(0, top) : top + round(2 * half), max(0, left) : left + round(2 * half)]
    return before[window], after[window]


def tiles(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Image.Image:
    """Before, after and the enlarged difference around mid-grey, side by side."""
    row = Image.fromarray(np.concatenate([before, after, difference(before, after)], axis=1))
    return row.resize((row.width * 3 // 2, row.height * 3 // 2), Image.Resampling.LANCZOS)


def difference(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The change, enlarged, around mid-grey."""
    change = (after.astype(np.float64) - before) * DIFFERENCE_GAIN + 128
    levels: NDArray[np.uint8] = change.round().clip(0, 255).astype(np.uint8)
    return levels


def pages(faces: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> Image.Image:
    """All faces in two columns, each as three tiles of one size: before, after, difference."""
    rows = -(-len(faces) // _COLUMNS)
    wide = 3 * _TILE + _GAP
    sheet = Image.new("RGB", (_COLUMNS * wide - _GAP, rows * (_TILE + _GAP) - _GAP), "white")
    for number, (before, after) in enumerate(faces):
        left, top = number % _COLUMNS * wide, number // _COLUMNS * (_TILE + _GAP)
        for place, pixels in enumerate((before, after, difference(before, after))):
            tile = Image.fromarray(pixels).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (left + place * _TILE, top))
    return sheet


if __name__ == "__main__":
    main()
