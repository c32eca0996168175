"""The DET and the two trade-off figures, as PNG for files and as SVG that takes the page's colours.

The points of a method at several strengths are labelled beside their places, where the figure is free.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO, StringIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusers_dedim.evaluation.methods import split_strength
from diffusers_dedim.evaluation.results import Evaluation, MethodEntry
from diffusers_dedim.extras import import_extra

_FONT_SIZE = 6.5  # typographic points, as every length here
_MARKER = 7.0  # side of the square that a marker takes
_DISTANCES = (4.0, 12.0, 22.0, 34.0)  # of a label from its point, the nearest first
_DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))

NATURAL_SSIM = 0.9
"""Mean SSIM below which a method's points are hollow: a face changed by more is hardly a natural one."""

# Okabe and Ito's colours, told apart by colour-blind readers; the pale ones left out: both grounds must bear them.
_COLOURS = ("#7f7f7f", "#d55e00", "#1f83c4", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8f6fd0")
_INK = "#010203"  # in the SVG replaced by the page's text colour
_DET_TICKS = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
_FMR_RANGE, _FNMR_RANGE = (0.00005, 0.6), (0.0005, 0.9995)
_DASHES = ("-", "--", ":", "-.")
_LOG_FROM = 10  # times the smallest number of calls
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def det_figure(evaluation: Evaluation) -> Any:
    """FNMR over FMR on normal-deviate axes, the white box on the left, the black boxes on the right.

    Rates beyond the axes are drawn at their edge, so that a curve of 0 or 1 is seen. Of a method at several strengths
    the preset's own is drawn, or else the first.

    Args:
        evaluation: its ``det`` curves are drawn, one a family of methods and recogniser.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: matplotlib or scipy is missing.
    """
    names = {
        "white box": [each.name for each in evaluation.recognisers if each.white_box],
        "black boxes": [each.name for each in evaluation.recognisers if not each.white_box],
    }
    shown = {title: group for title, group in names.items() if group}
    figure = _figure(2 + 4 * len(shown), 4.2)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for part, (title, group) in zip(axes, shown.items(), strict=True):
        _draw_det(part, evaluation, group)
        part.set_title(title if len(group) > 1 or title == "white box" else f"black box: {group[0]}")
    axes[0].set_ylabel("FNMR, %")
    _finish(
        figure,
        [
            *(_handle(family, color=_colour(index)) for index, family in enumerate(_families(evaluation))),
            *_recogniser_handles(names["black boxes"], "linestyle", _DASHES),
        ],
    )
    return figure


def trade_off_figure(evaluation: Evaluation) -> Any:
    """Rank-1 against mean SSIM, one point a method and black box: low and to the right is better.

    A method at several strengths (``dedim@h=0.5``) is one line a recogniser, from weak to strong. Points left of the
    dashed line, `NATURAL_SSIM`, are hollow. Without a black box the white box is drawn, and the axis says so.

    Args:
        evaluation: methods with measured SSIM.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: matplotlib is missing.
    """
    figure = _figure(6.8, 4.2)
    axes = figure.subplots()
    axes.axvline(NATURAL_SSIM, color=_INK, linewidth=0.8, linestyle="--", alpha=0.5)
    axes.set_xlabel("mean SSIM (1: unchanged)")
    _draw_rank1(axes, evaluation, lambda method: method.ssim.value)
    return figure


def calls_figure(evaluation: Evaluation) -> Any | None:
    """Rank-1 against UNet calls a face, one point a method and black box: low and to the left is better.

    Drawn as `trade_off_figure`. Methods that do not call the UNet are left out: their cost is of another kind.

    Args:
        evaluation: methods with counted calls.

    Returns:
        A matplotlib figure; None where no method calls the UNet.

    Raises:
        ImportError: matplotlib is missing.
    """
    calls = [method.unet_calls for method in evaluation.methods if method.unet_calls]
    if not calls:
        return None
    figure = _figure(6.8, 4.2)
    axes = figure.subplots()
    if max(calls) > _LOG_FROM * min(calls):
        axes.set_xscale("log")
    axes.set_xlabel("UNet calls a face")
    _draw_rank1(axes, evaluation, lambda method: method.unet_calls or None)
    return figure


def to_png(figure: Any) -> bytes:
    """The figure on white, 160 dpi."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def to_svg(figure: Any, label: str) -> str:
    """The figure as an ``<svg>`` element without ground, its ink the text colour of the page around it.

    Args:
        figure: from this module.
        label: what it shows, for readers who do not see it; two figures on one page need two labels.
    """
    matplotlib = import_extra("matplotlib", "the report's figures")
    buffer = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": label, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = text.replace(_INK, "currentColor")
    # glyphs and clip paths of two figures on one page would otherwise share their names
    prefix = re.sub(r"\W+", "-", label)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    # matplotlib leaves out the fill of black shapes, letters among them: black is SVG's default
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" fill="currentColor" ', 1)


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


def _families(evaluation: Evaluation) -> dict[str, list[MethodEntry]]:
    """Methods by their name without a strength, both in the order of the run."""
    families: dict[str, list[MethodEntry]] = {}
    for method in evaluation.methods:
        families.setdefault(split_strength(method.method)[0], []).append(method)
    return families


@dataclass(frozen=True)
class _Point:
    """A method by one recogniser: where it stands, rank-1, and whether its faces are natural by SSIM."""

    x: float
    rate: float
    interval: tuple[float, float] | None
    method: str
    natural: bool


def _draw_rank1(axes: Any, evaluation: Evaluation, place: Callable[[MethodEntry], float | None]) -> None:
    """Rank-1 over what ``place`` says of a method; black boxes, or the white box where there is none.

    Where a method has several strengths they are named beside the first recogniser's points: those of the others
    stand above or below.
    """
    black = [each.name for each in evaluation.recognisers if not each.white_box]
    shown = black or [each.name for each in evaluation.recognisers]
    drawn: list[_Point] = []
    labels, handles = [], []
    for index, (family, members) in enumerate(_families(evaluation).items()):
        colour = _colour(index)
        lines = [_points(evaluation, members, name, place) for name in shown]
        for points, marker in zip(lines, _MARKERS * len(shown), strict=False):
            if points:
                _draw_line(axes, points, marker, colour)
            drawn += points
        if len(members) > 1:
            labels += [Label(p.x, p.rate, p.method.partition("@")[2] or family, colour) for p in lines[0]]
        if any(lines):
            handles.append(_handle(family, color=colour, marker="o", linestyle=""))
    handles += _recogniser_handles(shown, "marker", _MARKERS)
    if not all(point.natural for point in drawn):
        text = f"SSIM below {NATURAL_SSIM:g}"
        handles.append(_handle(text, color=_INK, marker="o", linestyle="", markerfacecolor="none"))
    axes.set(ylabel=f"rank-1, {'black box' if black else 'white box'}", ylim=(-0.04, 1.04))
    _finish(axes.figure, handles)
    place_labels(axes, labels, [(point.x, point.rate) for point in drawn])


def _points(
    evaluation: Evaluation,
    members: Sequence[MethodEntry],
    recogniser: str,
    place: Callable[[MethodEntry], float | None],
) -> list[_Point]:
    """One method at all its strengths by one recogniser, from the right to the left."""
    points = []
    for member in members:
        x, ssim = place(member), member.ssim.value
        rate = evaluation.rate(member.method, recogniser).rank1
        if x is not None and ssim is not None and rate.value is not None:
            interval = None if rate.low is None or rate.high is None else (rate.low, rate.high)
            points.append(_Point(x, rate.value, interval, member.method, ssim >= NATURAL_SSIM))
    return sorted(points, key=lambda point: point.x, reverse=True)


def _draw_line(axes: Any, points: Sequence[_Point], marker: str, colour: str) -> None:
    """Join the points, and draw their intervals."""
    xs, rates = [point.x for point in points], [point.rate for point in points]
    hollow = [index for index, point in enumerate(points) if not point.natural]
    filled = [index for index, point in enumerate(points) if point.natural]
    axes.plot(xs, rates, marker=marker, markevery=filled, color=colour, linewidth=0.8)
    if hollow:
        axes.plot(
            xs, rates, marker=marker, markevery=hollow, markerfacecolor="none", color=colour, linestyle=""
        )
    for point in points:
        if point.interval:
            axes.vlines(point.x, *point.interval, color=colour, linewidth=1.2)


def _draw_det(axes: Any, evaluation: Evaluation, recognisers: list[str]) -> None:
    special = import_extra("scipy.special", "the DET figure")
    for index, members in enumerate(_families(evaluation).values()):
        method = next((member for member in members if not split_strength(member.method)[1]), members[0])
        for name, dash in zip(recognisers, _DASHES * len(recognisers), strict=False):
            points = evaluation.rate(method.method, name).det
            fmr, fnmr = [rate for rate, _ in points], [_inside(rate) for _, rate in points]
            axes.step(fmr, fnmr, dash, where="post", color=_colour(index))
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("function", functions=(lambda rate: special.ndtri(rate.clip(1e-7, 1 - 1e-7)), special.ndtr))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(_DET_TICKS, [f"{100 * tick:g}" for tick in _DET_TICKS])
    axes.set(xlim=_FMR_RANGE, ylim=_FNMR_RANGE, xlabel="FMR, %")


def _inside(rate: float) -> float:
    """Move what the axis does not reach to just inside its edge, where the line is seen in full."""
    low, high = _FNMR_RANGE
    return min(max(rate, low * 1.15), 1 - (1 - high) * 1.15)


def _figure(width: float, height: float) -> Any:
    figure_module = import_extra(
        "matplotlib.figure", "the report's figures"
    )  # Agg by default, no window system
    return figure_module.Figure(figsize=(width, height), layout="constrained")


def _handle(label: str, **style: Any) -> Any:
    """An entry of a legend."""
    return import_extra("matplotlib.lines", "the report's figures").Line2D([], [], label=label, **style)


def _recogniser_handles(names: Sequence[str], stroke: str, styles: Sequence[str]) -> list[Any]:
    """What tells recognisers apart, a ``linestyle`` or a ``marker``; one alone needs no entry."""
    if len(names) < 2:
        return []
    plain = {"color": _INK, "linestyle": ""}
    return [_handle(name, **{**plain, stroke: style}) for name, style in zip(names, itertools.cycle(styles))]


def _finish(figure: Any, handles: Sequence[Any]) -> None:
    """Give axes the page's ink, and a legend beside them: colours are methods, strokes or markers recognisers."""
    for axes in figure.axes:
        axes.grid(alpha=0.25, color=_INK, linewidth=0.6)
        axes.tick_params(colors=_INK, which="both")
        for part in (axes.xaxis.label, axes.yaxis.label, axes.title, *axes.spines.values()):
            (part.set_edgecolor if part in axes.spines.values() else part.set_color)(_INK)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=_INK)


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


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
        label.text,
        (label.x, label.y),
        xytext=offset,
        textcoords="offset points",
        va="bottom",
        fontsize=_FONT_SIZE,
        color=label.colour,
        arrowprops=stroke if line else None,
    )
    text.set_in_layout(False)  # the layout would move the axes for it, and the labels away from what is free
