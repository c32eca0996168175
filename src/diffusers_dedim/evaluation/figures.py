"""The DET and the trade-off figure, as PNG for files and as SVG that takes the page's colours."""

from __future__ import annotations

import re
from html import escape
from io import BytesIO, StringIO
from typing import Any

from diffusers_dedim.evaluation.method_strength import split_strength
from diffusers_dedim.evaluation.schema import Evaluation, MethodEntry
from diffusers_dedim.extras import import_extra

# Okabe and Ito's colours, told apart by colour-blind readers; the pale ones left out: both grounds must bear them.
_COLOURS = ("#7f7f7f", "#d55e00", "#1f83c4", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#8f6fd0")
_INK = "#010203"  # in the SVG replaced by the page's text colour
_DET_TICKS = (0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)
_FMR_RANGE, _FNMR_RANGE = (0.00005, 0.6), (0.0005, 0.9995)
_DASHES = ("-", "--", ":", "-.")
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
    black = names["black boxes"]
    _finish(figure, evaluation, dict(zip(black, _DASHES * len(black), strict=False)), marker="")
    return figure


def trade_off_figure(evaluation: Evaluation) -> Any:
    """Rank-1 against mean SSIM, one point a method and black box: low and to the right is better.

    A method at several strengths (``dedim@h=0.5``) is one line a recogniser, from weak to strong. Without a black box
    the white box is drawn, and the axis says so.

    Args:
        evaluation: methods with measured SSIM.

    Returns:
        A matplotlib figure.

    Raises:
        ImportError: matplotlib is missing.
    """
    black = [each.name for each in evaluation.recognisers if not each.white_box]
    shown = black or [each.name for each in evaluation.recognisers]
    markers = dict(zip(shown, _MARKERS * len(shown), strict=False))
    figure = _figure(6.8, 4.2)
    axes = figure.subplots()
    for index, members in enumerate(_families(evaluation).values()):
        for name, marker in markers.items():
            _draw_family(axes, evaluation, members, name, marker, _colour(index), name == shown[0])
    kind = "black box" if black else "white box"
    axes.set(xlabel="mean SSIM (1: unchanged)", ylabel=f"rank-1, {kind}", ylim=(-0.04, 1.04))
    _finish(figure, evaluation, dict.fromkeys(markers, ""), marker="o", markers=markers)
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


def _families(evaluation: Evaluation) -> dict[str, list[MethodEntry]]:
    """Methods by their name without a strength, both in the order of the run."""
    families: dict[str, list[MethodEntry]] = {}
    for method in evaluation.methods:
        families.setdefault(split_strength(method.method)[0], []).append(method)
    return families


def _draw_family(
    axes: Any,
    evaluation: Evaluation,
    members: list[MethodEntry],
    recogniser: str,
    marker: str,
    colour: str,
    named: bool,
) -> None:
    """The points of one method at all its strengths by one recogniser, joined in the order of SSIM.

    The first recogniser's are named: those of the others stand above or below them, at the same SSIM.
    """
    points = []
    for member in members:
        rate = evaluation.rate(member.method, recogniser).rank1
        if member.ssim.value is not None and rate.value is not None:
            points.append((member.ssim.value, rate.value, member.method.partition("@")[2]))
            if rate.low is not None:
                axes.vlines(member.ssim.value, rate.low, rate.high, color=colour, linewidth=1.2)
    points.sort(reverse=True)
    axes.plot(
        [x for x, _, _ in points], [y for _, y, _ in points], marker=marker, color=colour, linewidth=0.8
    )
    for x, y, strength in points if named else ():
        axes.annotate(strength, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=6.5, color=colour)


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


def _finish(
    figure: Any,
    evaluation: Evaluation,
    dashes: dict[str, str],
    *,
    marker: str,
    markers: dict[str, str] | None = None,
) -> None:
    """Give axes the page's ink, and a legend beside them: colours are methods, strokes or markers recognisers."""
    line = import_extra("matplotlib.lines", "the report's figures").Line2D
    for axes in figure.axes:
        axes.grid(alpha=0.25, color=_INK, linewidth=0.6)
        axes.tick_params(colors=_INK)
        for part in (axes.xaxis.label, axes.yaxis.label, axes.title, *axes.spines.values()):
            (part.set_edgecolor if part in axes.spines.values() else part.set_color)(_INK)
    handles = [
        line([], [], color=_colour(index), marker=marker, linestyle="" if marker else "-", label=family)
        for index, family in enumerate(_families(evaluation))
    ]
    if len(dashes) > 1:
        handles += [
            line([], [], color=_INK, linestyle=dash, marker=(markers or {}).get(name, ""), label=name)
            for name, dash in dashes.items()
        ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, labelcolor=_INK)


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]
