"""Draw the README's picture: a face we may show, before, after, and the difference times eight.

    python -m benchmarks.picture --out docs/images/astronaut.png

The photo is NASA's portrait of Eileen Collins (public domain), from scikit-image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusers_dedim import DeDiMPipeline

DIFFERENCE_GAIN = 8
MARGIN = 0.45  # of the face's size, left around it


def main(arguments: Sequence[str] | None = None) -> None:
    """Protect the portrait and write the three tiles side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/astronaut.png"))
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    from skimage.data import astronaut

    before = astronaut()
    pipe = DeDiMPipeline.from_pretrained()
    generator = torch.Generator().manual_seed(options.seed)
    out = pipe(before, preset=options.preset, generator=generator)
    face = out.faces[0]
    x0, y0, x1, y1 = face.box
    half = (0.5 + MARGIN) * max(x1 - x0, y1 - y0)
    left, top = round((x0 + x1) / 2 - half), round((y0 + y1) / 2 - half)
    window = np.s_[max(0, top) : top + round(2 * half), max(0, left) : left + round(2 * half)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    tiles(before[window], np.asarray(out.images[0])[window]).save(options.out, optimize=True)
    print(
        f"similarity {face.similarity:.2f} after {face.rounds} rounds, {face.unet_calls} denoiser calls: {options.out}"
    )


def tiles(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Image.Image:
    """Before, after and the enlarged difference around mid-grey, side by side."""
    change = (after.astype(np.float64) - before) * DIFFERENCE_GAIN + 128
    difference = change.round().clip(0, 255).astype(np.uint8)
    row = Image.fromarray(np.concatenate([before, after, difference], axis=1))
    return row.resize((row.width * 3 // 2, row.height * 3 // 2), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    main()
