"""Write labels beside the points of a figure so that they cover neither each other nor what is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusers_dedim.extras import import_extra

_FONT_SIZE = 6.5  # typographic points, as every length here
_MARKER = 7.0  # side of the square that a marker takes
_DISTANCES = (4.0, 12.0, 22.0, 34.0)  # of a label from its point, the nearest first
_DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))


@dataclass(frozen=True)
class Label:
    """A text that belongs to the point ``(x, y)``, in the axes' own units."""

    x: float
    y: float
    text: str
    colour: str


def place_labels(axes: Any, labels: Sequence[Label], points: Sequence[tuple[float, float]]) -> None:
    """Write each label beside its point, as near as is free; one that stands further off gets a thin line to it.

    Call it last: legend, limits and scales decide where a point is on the paper.

    Args:
        axes: of a matplotlib figure.
        labels: written in this order; the first have the choice.
        points: every point that has a marker, in the axes' own units.
    """
    if not labels:
        return  # drawing takes longer than all the rest
    axes.figure.draw_without_rendering()  # the layout is made when drawing
    unit = axes.figure.dpi / 72  # pixels a typographic point
    ground = _ground(axes, points, _MARKER * unit)
    for label in labels:
        size = _measure(axes, label.text)
        offsets = _offsets(size / unit)
        start = axes.transData.transform((label.x, label.y))
        boxes = [ground.box_of(*(start + offset * unit), *size) for offset in offsets]
        costs = [ground.cost(box) + place // len(_DIRECTIONS) for place, box in enumerate(boxes)]
        best = costs.index(min(costs))
        ground.labels.append(boxes[best])
        _write(axes, label, offsets[best], line=best >= len(_DIRECTIONS))


@dataclass(frozen=True)
class _Ground:
    """What is drawn already, in pixels: labels, squares of the markers, paths of the lines, and the frame."""

    labels: list[Any]
    markers: list[Any]
    strokes: list[Any]
    frame: Any
    box_of: Callable[..., Any]

    def cost(self, box: Any) -> int:
        """0 where the box is free; a line below it is as bad as standing one step further off, a label is worst."""
        frame = self.frame
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        crossed = sum(path.intersects_bbox(box, filled=False) for path in self.strokes)
        covered = box.count_overlaps(self.markers) * 4 + box.count_overlaps(self.labels) * 100
        return int(covered + crossed) + (0 if inside else 100)


def _ground(axes: Any, points: Sequence[tuple[float, float]], side: float) -> _Ground:
    box_of = import_extra("matplotlib.transforms", "the report's figures").Bbox.from_bounds
    places = [axes.transData.transform(point) for point in points]
    markers = [box_of(x - side / 2, y - side / 2, side, side) for x, y in places]
    strokes = [line.get_transform().transform_path(line.get_path()) for line in axes.lines]
    for lines in axes.collections:
        strokes += [lines.get_transform().transform_path(path) for path in lines.get_paths()]
    return _Ground([], markers, strokes, axes.bbox, box_of)


def _measure(axes: Any, text: str) -> NDArray[np.float64]:
    """Width and height of the text, pixels."""
    drawn = axes.text(0, 0, text, fontsize=_FONT_SIZE, transform=axes.transAxes)  # a log axis has no 0
    size: NDArray[np.float64] = drawn.get_window_extent().size
    drawn.remove()
    return size


def _offsets(size: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """From a point to the lower left corner of a label of this size, in the order in which they are liked."""
    # left of a point or below it, it is the label's far side that has the distance: move it by its own length
    steps = [(distance, np.array(direction)) for distance in _DISTANCES for direction in _DIRECTIONS]
    return [distance * direction - (1 - direction) / 2 * size for distance, direction in steps]


def _write(axes: Any, label: Label, offset: NDArray[np.float64], *, line: bool) -> None:
    stroke = {"arrowstyle": "-", "linewidth": 0.4, "color": label.colour, "shrinkA": 0, "shrinkB": 3}
    text = axes.annotate(
        label.text, (label.x, label.y), xytext=offset, textcoords="offset points", va="bottom",
        fontsize=_FONT_SIZE, color=label.colour, arrowprops=stroke if line else None,
    )  # fmt: skip
    text.set_in_layout(False)  # the layout would move the axes for it, and the labels away from what is free
