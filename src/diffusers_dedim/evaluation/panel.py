"""A picture for the eye: faces before, after, and the difference, with what the numbers say of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_ZOOM = 2
_LABEL_HEIGHT = 18
_GAP = 12
_NAME_WIDTH = 130


def make_panel(
    before: Tensor, after: Tensor, labels: Sequence[str], *, columns: int = 2, difference_gain: float = 8.0
) -> Image.Image:
    """Draw before, after and difference of each face side by side, twice enlarged.

    Args:
        before: ``[N, 3, H, W]`` RGB in [-1, 1].
        after: the same shape and range.
        labels: one line of text under each face.
        columns: faces in a row of the picture.
        difference_gain: grey levels shown, around middle grey, for each grey level of change.

    Raises:
        ValueError: there are no faces, or shapes and labels disagree.
    """
    if len(before) == 0 or before.shape != after.shape or len(labels) != len(before):
        raise ValueError(
            f"before, after, labels: expected N > 0 faces of one shape and N labels, "
            f"got {list(before.shape)}, {list(after.shape)} and {len(labels)}."
        )
    height, width = (_ZOOM * side for side in before.shape[2:])
    cell_width, cell_height = 3 * width + _GAP, height + _LABEL_HEIGHT
    rows = -(-len(before) // columns)
    panel = Image.new("RGB", (columns * cell_width - _GAP, rows * cell_height), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    for index, label in enumerate(labels):
        x, y = index % columns * cell_width, index // columns * cell_height
        original, changed = _to_levels(before[index]), _to_levels(after[index])
        difference = 127.5 + difference_gain * (changed - original)
        for place, levels in enumerate((original, changed, difference)):
            panel.paste(_enlarge(levels), (x + place * width, y))
        draw.text((x + 2, y + height + 2), label, fill="black", font=font)
    return panel


def make_rank_panel(
    rows: Mapping[str, Tensor], ranks: Mapping[str, Sequence[int]], notes: Mapping[str, str] | None = None
) -> Image.Image:
    """Draw the paper's Fig. 4: one row a method, one column a face, its rank in the search under each image.

    Args:
        rows: method -> ``[N, 3, H, W]`` RGB in [-1, 1], the same faces in every row.
        ranks: method -> ``[N]``, 1 = found first.
        notes: method -> lines of text below its name.

    Raises:
        ValueError: there are no faces, or the rows and ranks disagree.
    """
    shapes = {tuple(crops.shape) for crops in rows.values()}
    counts = {name: len(numbers) for name, numbers in ranks.items()}
    if len(shapes) != 1 or 0 in (shape := shapes.pop()) or counts != dict.fromkeys(rows, shape[0]):
        raise ValueError(
            "rows, ranks: expected the same N > 0 faces and N ranks for every method, got "
            f"{ {name: list(crops.shape) for name, crops in rows.items()} } and {counts}."
        )
    height, width = (_ZOOM * side for side in shape[2:])
    cell = height + _LABEL_HEIGHT + _GAP
    font = ImageFont.load_default(14)
    names = {method: f"{method}\n{(notes or {}).get(method, '')}" for method in rows}
    lines = "\n".join(names.values()).splitlines()
    left = max(_NAME_WIDTH, *(round(font.getlength(line)) + _GAP for line in lines))
    panel = Image.new("RGB", (left + shape[0] * (width + _GAP) - _GAP, len(rows) * cell), "white")
    draw = ImageDraw.Draw(panel)
    for row, (method, crops) in enumerate(rows.items()):
        draw.text((2, row * cell + height // 2), names[method], "black", font)
        for column, (crop, rank) in enumerate(zip(crops, ranks[method], strict=True)):
            x = left + column * (width + _GAP)
            panel.paste(_enlarge(_to_levels(crop)), (x, row * cell))
            draw.text((x + width / 2, row * cell + height + 1), str(rank), "black", font, anchor="ma")
    return panel


def _to_levels(crop: Tensor) -> NDArray[np.float64]:
    levels: NDArray[np.float64] = ((crop.detach().cpu().double() + 1) * 127.5).permute(1, 2, 0).numpy()
    return levels


def _enlarge(levels: NDArray[np.float64]) -> Image.Image:
    image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    return image.resize((_ZOOM * image.width, _ZOOM * image.height), Image.Resampling.LANCZOS)
