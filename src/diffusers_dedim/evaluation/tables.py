"""The tables of an evaluation, as cells: the paper's Table 1, every rate, what hides and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from diffusers_dedim.evaluation.mates import UNPROTECTED
from diffusers_dedim.evaluation.results import AdaptiveEntry, Evaluation, MethodEntry, RateEntry
from diffusers_dedim.metrics.intervals import Estimate
from diffusers_dedim.pipeline.guides import WHITE, is_guide

PAPER_BLACK_BOX = "SE-Net50"
_PAPER_FMR, _LOOSE_FMR = 0.001, 0.01
_NONE = "\N{EN DASH}"


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
        *(f"rank-1{in_gallery(kind)}, {title_of(name)}" for name, kind in searched),
        f"rank-1, {PAPER_BLACK_BOX}",
        "PSNR, dB",
        "mean SSIM",
        *(f"FNMR at FMR 0.1 %{in_gallery(kind)}, {title_of(name)}" for name, kind in searched),
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
        "cosine with the own photo",
    )
    rows = tuple(
        (
            entry.method,
            *((entry.transform,) if transformed else ()),
            *((entry.gallery,) if kinds else ()),
            title_of(entry.recogniser),
            _estimate(entry.rank1),
            _estimate(entry.rank5),
            *(_estimate(_fnmr(entry, fmr)) for fmr in (_PAPER_FMR, _LOOSE_FMR)),
            _estimate(_strangers(entry, _PAPER_FMR), 4),
            _estimate(entry.similarity),
            _estimate(entry.own_photo),
        )
        for entry in entries
    )
    return Table(columns, rows, (False,) * len(rows))


def dodging_table(evaluation: Evaluation) -> Table:
    """How little a protected photo is like the photo it was, and whether it is taken for somebody else instead.

    A row for each method and recogniser, and one for the mean over those that do not guide, which is named after them.

    Args:
        evaluation: of both kinds of gallery the first counts; the own photo is in neither.
    """
    columns = (
        "method",
        "recogniser",
        "cosine with the own photo",
        "dodging",
        "strangers matched at FMR 0.1 %",
        "strangers matched at FMR 1 %",
    )
    rows: list[tuple[str, ...]] = []
    for method in evaluation.methods:
        entries = [evaluation.rate(method.method, each.name) for each in evaluation.recognisers]
        rows += [
            (
                method.method,
                title_of(entry.recogniser),
                _estimate(entry.own_photo),
                _estimate(entry.dodging),
                *(_estimate(_strangers(entry, fmr), 4) for fmr in (_PAPER_FMR, _LOOSE_FMR)),
            )
            for entry in entries
        ]
        counted = [entry for entry in entries if not entry.white_box] or entries
        names = ", ".join(title_of(entry.recogniser) for entry in counted)
        rows.append((method.method, f"mean of {names}", "", _estimate(method.dodging), "", ""))
    return Table(columns, tuple(rows), (False,) * len(rows))


def adaptive_table(entries: Sequence[AdaptiveEntry]) -> Table:
    """What attackers find who learn, a row for each way in which they did."""
    columns = (
        "victims",
        "attacker protects",
        "recogniser",
        "attack",
        "rank-1",
        "rank-1, unprotected",
        "held-out re-linked before",
        "after",
    )
    rows = tuple(
        (
            entry.method,
            entry.attacker,
            title_of(entry.recogniser),
            entry.attack,
            _estimate(entry.rank1),
            _estimate(entry.original),
            _number(entry.relinked_plain, 2),
            _number(entry.relinked, 2),
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


def in_gallery(gallery: str) -> str:
    """What is said of a kind of gallery behind a number's name: nothing of the usual one."""
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


def subject_of(entry: RateEntry) -> str:
    """Whose rates these are, for lists: method, recogniser and, where it is protected, the gallery."""
    return f"{entry.method}, {title_of(entry.recogniser)}{in_gallery(entry.gallery)}"


def _strangers(entry: RateEntry, fmr: float) -> Estimate | None:
    return next((rate.impostor_match_rate for rate in entry.verification if rate.fmr == fmr), None)


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


def title_of(recogniser: str) -> str:
    """A recogniser's name for readers."""
    if is_guide(recogniser):
        return recogniser.replace(WHITE, "white box ").rstrip()
    return recogniser


def _italic(cell: str) -> str:
    return f"*{cell}*" if cell else ""


def _verbatim(cell: str) -> str:
    return cell
