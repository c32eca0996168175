"""Write what an evaluation found: results.json, a Markdown table, one HTML page, figures and the panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader
from numpy.typing import NDArray

from diffusers_dedim.evaluation.figures import det_figure, to_png, to_svg, trade_off_figure
from diffusers_dedim.evaluation.panel import make_rank_panel
from diffusers_dedim.evaluation.probes import Probe
from diffusers_dedim.evaluation.schema import Evaluation
from diffusers_dedim.evaluation.table import (
    effort_table,
    problems,
    rates_table,
    table_1,
    to_markdown,
)
from diffusers_dedim.faces import align_face
from diffusers_dedim.image_io import write_atomic

RESULTS, TABLE, REPORT, PANEL = "results.json", "table.md", "report.html", "panel.png"
DET_PNG, TRADE_OFF_PNG = "det.png", "trade-off.png"


def write_results(evaluation: Evaluation, folder: Path) -> None:
    """Write ``results.json``, atomically: called after every method, so that a kill leaves the last one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RESULTS, evaluation.to_json().encode())


def write_report(evaluation: Evaluation, folder: Path) -> Path:
    """Write the table, the figures and the page; returns the page's path.

    The page loads nothing from elsewhere and holds no photo.

    Args:
        evaluation: what was measured; at least one method.
        folder: where to.
    """
    write_results(evaluation, folder)
    write_atomic(folder / TABLE, render_markdown(evaluation).encode())
    for name, figure in ((DET_PNG, det_figure(evaluation)), (TRADE_OFF_PNG, trade_off_figure(evaluation))):
        write_atomic(folder / name, to_png(figure))
    write_atomic(folder / REPORT, render_report(evaluation).encode())
    return folder / REPORT


def write_panel(
    probes: Sequence[Probe],
    photos: Mapping[str, Sequence[NDArray[np.uint8]]],
    ranks: Mapping[str, Sequence[int]],
    folder: Path,
) -> Path:
    """Draw the probes' aligned faces, one row a method, into ``panel.png``: data-set faces, not to be shared.

    Args:
        probes: the originals. photos: method -> one protected photo for each of them.
        ranks: method -> rank of each by one recogniser.
        folder: where to.
    """
    rows = {
        method: torch.stack([
            align_face(photo, probe.face).crop for photo, probe in zip(shown, probes, strict=True)
        ])
        for method, shown in photos.items()
    }  # fmt: skip
    path = folder / PANEL
    make_rank_panel(rows, ranks).save(path)
    return path


def render_markdown(evaluation: Evaluation) -> str:
    """Table 1, the costs, what could not be measured, and the command, as Markdown."""
    run = evaluation.run
    parts = [
        f"# Table 1\n\n{evaluation.data.probes} probes, {evaluation.data.gallery} gallery photos; "
        "95 % bootstrap intervals over people; rows in italics are the paper's.",
        to_markdown(table_1(evaluation)),
        to_markdown(effort_table(evaluation)),
        *(f"Not measured: {line}" for line in problems(evaluation)),
        f"    {run.get('command', '')}\n\nseed {run.get('seed')}, commit {run.get('commit')}",
    ]
    return "\n\n".join(parts) + "\n"


def render_report(evaluation: Evaluation) -> str:
    """The page of `write_report` as text."""
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
        problems=problems(evaluation),
        panel=PANEL,
        facts=_facts(evaluation),
        written=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
    )


def _facts(evaluation: Evaluation) -> dict[str, Any]:
    """Environment, seed, commit, command, data and recognisers as rows of a table."""
    data = evaluation.data
    facts: dict[str, Any] = {
        key: ", ".join(f"{name} {each}" for name, each in value.items() if each) if isinstance(value, dict) else value
        for key, value in evaluation.run.items()
    }  # fmt: skip
    facts["data"] = data.source
    without = ", ".join(data.probes_without_face) or "none"
    facts["probes without a face, left out"] = without
    facts["gallery photos without a face"] = data.gallery_without_face
    for each in evaluation.recognisers:
        kind = "guides" if each.white_box else "black box"
        facts[f"recogniser {each.name}"] = (
            f"{kind}, SHA-256 {each.fingerprint[:16]}, {each.impostors} impostor comparisons"
        )
    return facts
