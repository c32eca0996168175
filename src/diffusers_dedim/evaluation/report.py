"""Write what an evaluation found: results.json, a Markdown table, one HTML page, figures and the panel."""

from __future__ import annotations

import base64
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
from diffusers_dedim.evaluation.mates import PROTECTED
from diffusers_dedim.evaluation.panels import Panel
from diffusers_dedim.evaluation.results import Evaluation
from diffusers_dedim.evaluation.tables import (
    adaptive_table,
    dodging_table,
    effort_table,
    pick_columns,
    rates_table,
    subject_of,
    table_1,
    to_markdown,
)

_MATES = (
    " In protected: the person's own photos in the gallery are protected by the same method, each by itself with "
    "another seed."
)
_DODGING = (
    "Dodging: (1 - cosine with the own unprotected photo) / 2, the privacy P of HiFD; its mean over recognisers is the "
    "mean over each probe's. Strangers matched: share of the comparisons with other people that pass the threshold "
    "which so many of those of unprotected people pass; more than for the originals would be impersonation."
)
_ADAPTIVE = (
    "Measured by benchmarks.adaptive, not by this run. The attacker protects photos of strangers, as the victims do or "
    "with settings, guides or albums of his own, and teaches a recogniser to see through it: rank-1 of the victims' "
    "protected photos with it, and of unprotected ones. Re-linked: his own held-out people; where learning did not "
    "raise it, the attack failed and a low rank-1 proves nothing."
)

RESULTS, TABLE, REPORT, PANEL = "results.json", "table.md", "report.html", "panel.png"
BLOCK_BEGIN, BLOCK_END = "<!-- dedim evaluate: Table 1 -->", "<!-- end of Table 1 -->"
DET_PNG, TRADE_OFF_PNG, CALLS_PNG = "det.png", "trade-off.png", "calls.png"


def problems(evaluation: Evaluation) -> list[str]:
    """What could not be measured and why, one line each."""
    return [
        f"{subject_of(entry)}, FMR {rate.fmr:g}: {rate.problem}"
        for entry in evaluation.rates
        for rate in entry.verification
        if rate.problem
    ] + [
        f"{subject_of(entry)}: {entry.not_compared} probes have no face in their own gallery photo; they count as "
        "never found"
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
        "## Dodging, and impersonation apart from it",
        to_markdown(dodging_table(evaluation)),
        _DODGING,
        "## Cost and change",
        to_markdown(effort_table(evaluation)),
        "## All rates",
        to_markdown(rates_table(evaluation.rates)),
    ]
    if evaluation.robustness:
        parts += ["## Robustness", to_markdown(rates_table(evaluation.robustness))]
    if evaluation.adaptive:
        parts += ["## An attacker who learns", to_markdown(adaptive_table(evaluation.adaptive)), _ADAPTIVE]
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
        dodging=dodging_table(evaluation),
        dodging_note=_DODGING,
        effort=effort_table(evaluation),
        robustness=rates_table(evaluation.robustness) if evaluation.robustness else None,
        adaptive=adaptive_table(evaluation.adaptive) if evaluation.adaptive else None,
        adaptive_note=_ADAPTIVE,
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
