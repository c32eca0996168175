"""Write what an evaluation found: results.json, a Markdown table, one HTML page, figures and the panel."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from diffusers_dedim.atomic import write_atomic
from diffusers_dedim.evaluation.figures import (
    NATURAL_SSIM,
    calls_figure,
    det_figure,
    to_png,
    to_svg,
    trade_off_figure,
)
from diffusers_dedim.evaluation.mates import PROTECTED, UNPROTECTED
from diffusers_dedim.evaluation.panels import Panel
from diffusers_dedim.evaluation.results import Evaluation, MethodEntry, RateEntry
from diffusers_dedim.metrics.intervals import Estimate
from diffusers_dedim.pipeline.guides import WHITE, is_guide

_PAPER_FMR = 0.001
PAPER_BLACK_BOX = "SE-Net50"
_NONE = "\N{EN DASH}"
_MATES = (
    " In protected: the person's own photos in the gallery are protected by the same method, each by itself with "
    "another seed."
)

RESULTS, TABLE, REPORT, PANEL = "results.json", "table.md", "report.html", "panel.png"
BLOCK_BEGIN, BLOCK_END = "<!-- dedim evaluate: Table 1 -->", "<!-- end of Table 1 -->"
DET_PNG, TRADE_OFF_PNG, CALLS_PNG = "det.png", "trade-off.png", "calls.png"


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's Table 1: rates in [0, 1], PSNR in dB; ``wb`` MobileFaceNet, ``bb`` SE-Net50."""

    method: str
    rank1_wb: float
    rank1_bb: float
    psnr: float | None
    ssim: float
    fnmr_wb: float
    fnmr_bb: float


PAPER = (
    PaperRow("original", 0.818, 0.892, None, 1.00, 0.17, 0.10),
    PaperRow("tip-im", 0.000, 0.254, 29.3, 0.78, 1.00, 0.77),
    PaperRow("dedim", 0.008, 0.124, 28.1, 0.91, 0.99, 0.85),
)


@dataclass(frozen=True)
class Table:
    """A table for text or HTML: ``rows`` are cells, ``paper`` says which of them are the paper's."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    paper: tuple[bool, ...]


def table_1(evaluation: Evaluation) -> Table:
    """The paper's Table 1 with a column for each recogniser; rows of the paper follow the methods they name.

    Args:
        evaluation: as many methods and recognisers as it has; each kind of gallery has columns of its own.
    """
    names = [recogniser.name for recogniser in evaluation.recognisers]
    searched = [(name, kind) for kind in evaluation.galleries for name in names]
    columns = (
        "method",
        *(f"rank-1{_in(kind)}, {_title(name)}" for name, kind in searched),
        f"rank-1, {PAPER_BLACK_BOX}",
        "PSNR, dB",
        "mean SSIM",
        *(f"FNMR at FMR 0.1 %{_in(kind)}, {_title(name)}" for name, kind in searched),
        f"FNMR at FMR 0.1 %, {PAPER_BLACK_BOX}",
    )
    rows, paper = [], []
    # the paper searched unprotected photos
    left = {row.method: row for row in PAPER if UNPROTECTED in evaluation.galleries}
    named = [method.method for method in evaluation.methods]
    # "dedim:fast@h=0.5" -> "dedim"; the paper's row follows the first of them, or the paper's own setting
    followed = {_base(name): name for name in reversed(named)}
    followed |= {_base(name): name for name in reversed(named) if name.startswith("dedim:paper")}
    for method in evaluation.methods:
        rows.append(_our_row(method, [evaluation.rate(method.method, *each) for each in searched]))
        paper.append(False)
        base = _base(method.method)
        printed = left.pop(base, None) if followed[base] == method.method else None
        if printed is not None:
            rows.append(_paper_row(printed, len(searched)))
            paper.append(True)
    return Table(columns, tuple(rows), tuple(paper))


def pick_columns(table: Table, wanted: Callable[[str], bool]) -> Table:
    """The same rows with the first column and those whose title is wanted.

    Example:
        >>> pick_columns(Table(("m", "a", "b"), (("x", "1", "2"),), (False,)), lambda title: title == "b").rows
        (('x', '2'),)
    """
    kept = [index for index, title in enumerate(table.columns) if index == 0 or wanted(title)]
    rows = tuple(tuple(row[index] for index in kept) for row in table.rows)
    return Table(tuple(table.columns[index] for index in kept), rows, table.paper)


def effort_table(evaluation: Evaluation) -> Table:
    """What each method cost and what it did to the face besides the recognisers' numbers."""
    columns = (
        "method",
        "probes",
        "faces",
        "seconds a face",
        "rounds",
        "UNet calls",
        "reached its threshold",
        "no face found after",
        "HaarPSI",
        "LPIPS",
        "landmark shift",
    )
    rows = tuple(
        (
            each.method,
            str(each.probes),
            str(each.faces),
            _number(each.seconds_per_face, 2),
            _number(each.rounds, 1),
            _number(each.unet_calls, 0),
            _number(each.reached_threshold, 3),
            str(len(each.undetected)),
            _estimate(each.haarpsi),
            _estimate(each.lpips),
            _estimate(each.landmark_shift),
        )
        for each in evaluation.methods
    )
    return Table(columns, rows, (False,) * len(rows))


def rates_table(entries: Sequence[RateEntry]) -> Table:
    """Every rate of every method and recogniser with its interval; a transform is named where there is one."""
    transformed = any(entry.transform for entry in entries)
    kinds = any(entry.gallery != UNPROTECTED for entry in entries)
    columns = (
        "method",
        *(("after",) if transformed else ()),
        *(("gallery",) if kinds else ()),
        "recogniser",
        "rank-1",
        "rank-5",
        "FNMR at FMR 0.1 %",
        "FNMR at FMR 1 %",
        "strangers matched at FMR 0.1 %",
        "similarity to the own person",
    )
    rows = tuple(
        (
            entry.method,
            *((entry.transform,) if transformed else ()),
            *((entry.gallery,) if kinds else ()),
            _title(entry.recogniser),
            _estimate(entry.rank1),
            _estimate(entry.rank5),
            *(_estimate(_fnmr(entry, fmr)) for fmr in (_PAPER_FMR, 0.01)),
            _number(
                next((v.impostor_match_rate for v in entry.verification if v.fmr == _PAPER_FMR), None), 4
            ),
            _estimate(entry.similarity),
        )
        for entry in entries
    )
    return Table(columns, rows, (False,) * len(rows))


def to_markdown(table: Table) -> str:
    """GitHub's table syntax; the paper's rows in italics.

    Example:
        >>> print(to_markdown(Table(("a", "b"), (("1", "2"),), (True,))))
        | a | b |
        |---|---|
        | *1* | *2* |
    """
    styled: Callable[[str], str]
    lines = [table.columns, ("---",) * len(table.columns)]
    text = [f"| {' | '.join(lines[0])} |", f"|{'|'.join(lines[1])}|"]
    for row, printed in zip(table.rows, table.paper, strict=True):
        styled = _italic if printed else _verbatim
        text.append(f"| {' | '.join(styled(cell.replace('|', chr(92) + '|')) for cell in row)} |")
    return "\n".join(text)


def problems(evaluation: Evaluation) -> list[str]:
    """What could not be measured and why, one line each."""
    return [
        f"{entry.method}, {_title(entry.recogniser)}{_in(entry.gallery)}, FMR {rate.fmr:g}: {rate.problem}"
        for entry in evaluation.rates
        for rate in entry.verification
        if rate.problem
    ] + [
        f"{entry.method}, {_title(entry.recogniser)}{_in(entry.gallery)}: {entry.not_compared} probes have no face in "
        "their own gallery photo; they count as never found"
        for entry in evaluation.rates
        if entry.not_compared
    ]


def write_results(evaluation: Evaluation, folder: Path) -> None:
    """Write ``results.json``, atomically: called after every method, so that a kill leaves the last one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RESULTS, evaluation.to_json().encode())


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write the table, the figures and the page; returns the page's path.

    The page loads nothing from elsewhere and holds no photo; see `write_panel`.

    Args:
        evaluation: what was measured; at least one method.
        folder: where to.
    """
    write_results(evaluation, folder)
    write_atomic(folder / TABLE, render_markdown(evaluation).encode())
    for name, draw in ((DET_PNG, det_figure), (TRADE_OFF_PNG, trade_off_figure), (CALLS_PNG, calls_figure)):
        figure = draw(evaluation)
        if figure is None:
            (folder / name).unlink(missing_ok=True)  # of an earlier run with other methods
        else:
            write_atomic(folder / name, to_png(figure))
    write_atomic(folder / REPORT, render_report(evaluation).encode())
    return folder / REPORT


def write_panel(evaluation: Evaluation, panel: Panel, folder: Path) -> Path:
    """Write ``panel.png``; if its faces may be shown, write the page anew with the picture in it.

    Args:
        evaluation: what was measured.
        panel: from `draw_panel`.
        folder: where to.
    """
    picture = BytesIO()
    panel.image.save(picture, "PNG", optimize=True)
    write_atomic(folder / PANEL, picture.getvalue())
    if not panel.of_probes:
        address = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
        write_atomic(folder / REPORT, render_report(evaluation, address, panel.recogniser).encode())
    return folder / PANEL


def render_block(evaluation: Evaluation) -> str:
    """Table 1 as a block of Markdown for a README or a model card: what was measured, two tables, the command.

    It begins and ends with `BLOCK_BEGIN` and `BLOCK_END`, comments that readers do not see, so that a later block can
    take its place.
    """
    data, run, table = evaluation.data, evaluation.run, table_1(evaluation)
    not_found = f" ({data.gallery_without_face} without a face)" if data.gallery_without_face else ""
    parts = [
        BLOCK_BEGIN,
        f"{data.probes} probes against {data.gallery} gallery photos{not_found}. Rank-1: share of probes whose own "
        "person is found first, ties count as found. FNMR: share of comparisons with the own person that do not match "
        "at the threshold which 0.1 % of the comparisons of different, unprotected gallery people pass. In brackets: "
        "95 % bootstrap intervals over people; 0 of n leaves up to 3 / n. Rows in italics are printed in the paper, "
        "measured on other photos with other networks and settings: dedim is preset fast here, the paper's setting is "
        "dedim:paper (docs/evaluation.md)." + (_MATES if PROTECTED in evaluation.galleries else ""),
        to_markdown(pick_columns(table, lambda title: not title.startswith("FNMR"))),
        to_markdown(pick_columns(table, lambda title: title.startswith("FNMR"))),
        *(f"Not measured: {line}" for line in problems(evaluation)),
        f"    {run.get('command', '')}",
        f"Seed {run.get('seed')}, commit {run.get('commit')}.",
        BLOCK_END,
    ]
    return "\n\n".join(parts)


def render_markdown(evaluation: Evaluation) -> str:
    """`render_block`, then costs and every rate, as Markdown."""
    parts = [
        "# Table 1",
        render_block(evaluation),
        "## Cost and change",
        to_markdown(effort_table(evaluation)),
        "## All rates",
        to_markdown(rates_table(evaluation.rates)),
    ]
    if evaluation.robustness:
        parts += ["## Robustness", to_markdown(rates_table(evaluation.robustness))]
    return "\n\n".join(parts) + "\n"


def render_report(evaluation: Evaluation, picture: str = "", ranked_by: str = "") -> str:
    """The page of `write_report` as text.

    Args:
        evaluation: what was measured.
        picture: data address of a panel that may be shown; empty for a page without photos.
        ranked_by: the recogniser of the panel's ranks.
    """
    calls = calls_figure(evaluation)
    environment = Environment(loader=PackageLoader("diffusers_dedim"), autoescape=True, trim_blocks=True)
    return environment.get_template("evaluation.html").render(
        evaluation=evaluation,
        data=evaluation.data,
        methods=", ".join(method.method for method in evaluation.methods),
        finished=evaluation.run.get("finished", True),
        table_1=table_1(evaluation),
        rates=rates_table(evaluation.rates),
        effort=effort_table(evaluation),
        robustness=rates_table(evaluation.robustness) if evaluation.robustness else None,
        det=to_svg(det_figure(evaluation), "Detection error trade-off"),
        trade_off=to_svg(trade_off_figure(evaluation), "Rank-1 against mean SSIM"),
        calls=to_svg(calls, "Rank-1 against UNet calls") if calls else "",
        natural_ssim=NATURAL_SSIM,
        problems=problems(evaluation),
        panel=PANEL,
        picture=picture,
        ranked_by=ranked_by,
        facts=_facts(evaluation),
        written=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    )


def _in(gallery: str) -> str:
    return "" if gallery == UNPROTECTED else f" in {gallery}"


def _base(method: str) -> str:
    return method.partition("@")[0].partition(":")[0]


def _our_row(method: MethodEntry, rates: Sequence[RateEntry]) -> tuple[str, ...]:
    return (
        method.method,
        *(_estimate(rate.rank1) for rate in rates),
        "",
        _estimate(method.psnr, 1),
        _estimate(method.ssim),
        *(_estimate(_fnmr(rate, _PAPER_FMR)) for rate in rates),
        "",
    )


def _paper_row(row: PaperRow, columns: int) -> tuple[str, ...]:
    """The paper's white box is not ours, but the role is the same; its black box gets a column of its own."""
    blanks = ("",) * (columns - 1)
    return (
        f"{row.method} (paper)",
        _number(row.rank1_wb, 3),
        *blanks,
        _number(row.rank1_bb, 3),
        _number(row.psnr, 1),
        _number(row.ssim, 2),
        _number(row.fnmr_wb, 2),
        *blanks,
        _number(row.fnmr_bb, 2),
    )


def _fnmr(entry: RateEntry, fmr: float) -> Estimate | None:
    return next((rate.fnmr for rate in entry.verification if rate.fmr == fmr), None)


def _estimate(estimate: Estimate | None, digits: int = 3) -> str:
    if estimate is None or estimate.value is None:
        return _NONE
    text = f"{estimate.value:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _number(value: float | None, digits: int) -> str:
    return _NONE if value is None else f"{value:.{digits}f}"


def _title(recogniser: str) -> str:
    if is_guide(recogniser):
        return recogniser.replace(WHITE, "white box ").rstrip()
    return recogniser


def _italic(cell: str) -> str:
    return f"*{cell}*" if cell else ""


def _verbatim(cell: str) -> str:
    return cell


def _facts(evaluation: Evaluation) -> dict[str, Any]:
    """Environment, seed, commit, command, data and recognisers as rows of a table."""
    data = evaluation.data
    facts: dict[str, Any] = {
        key: ", ".join(f"{name} {each}" for name, each in value.items() if each)
        if isinstance(value, dict)
        else value
        for key, value in evaluation.run.items()
    }
    facts["data"] = data.source
    without = ", ".join(data.probes_without_face) or "none"
    facts["probes without a face of 40 px or more, left out"] = without
    facts["gallery photos without a face"] = data.gallery_without_face
    for each in evaluation.recognisers:
        kind = "guides" if each.white_box else "black box"
        facts[f"recogniser {each.name}"] = (
            f"{kind}, SHA-256 {each.fingerprint[:16]}, {each.impostors} impostor comparisons"
        )
    return facts
