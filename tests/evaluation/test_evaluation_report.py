from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_session import Methods, make_session

from diffusers_dedim.evaluation import report
from diffusers_dedim.evaluation.figures import calls_figure, det_figure, to_svg, trade_off_figure
from diffusers_dedim.evaluation.report import (
    BLOCK_BEGIN,
    BLOCK_END,
    render_block,
    render_markdown,
    render_report,
)
from diffusers_dedim.evaluation.results import (
    AdaptiveEntry,
    DataEntry,
    Evaluation,
    MethodEntry,
    RateEntry,
    RecogniserEntry,
    VerificationRate,
)
from diffusers_dedim.evaluation.tables import PAPER, dodging_table, table_1, to_markdown
from diffusers_dedim.metrics.intervals import Estimate

EVIL = "<script>alert(1)</script>"


def rate(method: str, recogniser: str, rank1: float) -> RateEntry:
    some = Estimate(rank1, rank1, min(1.0, rank1 + 0.1))
    return RateEntry(
        method,
        recogniser,
        recogniser == "white",
        "",
        50,
        some,
        some,
        (rank1, 1.0),
        some,
        (
            VerificationRate(0.001, 0.4, Estimate(1 - rank1, 0.0, 1.0), Estimate(0.001, 0.0, 0.002)),
            VerificationRate(0.01, problem="too few"),
        ),
        ((0.001, 1.0), (0.1, 0.5), (1.0, 0.0)),
        0,
    )


@pytest.fixture
def evaluation() -> Evaluation:
    quality = Estimate(0.9, 0.88, 0.92)
    methods = tuple(
        MethodEntry(
            name,
            50,
            Estimate(30.0, 29.0, 31.0),
            quality,
            quality,
            None,
            quality,
            0,
            51,
            2.0,
            4.0,
            40.0,
            0.98,
            (f"{EVIL} (row 3)",),
        )
        for name in ("original", "dedim:paper", EVIL)
    )
    names = ("white", "foamliu", "dlib")
    return Evaluation(
        DataEntry("lfw.parquet", 50, 1000, ("row 7",), 1),
        tuple(RecogniserEntry(name, name == "white", "ab" * 32, 499_500) for name in names),
        methods,
        tuple(rate(m.method, name, 0.1 * i) for m in methods for i, name in enumerate(names)),
        run={
            "command": "dedim evaluate",
            "seed": 0,
            "commit": "abc",
            "packages": {"numpy": "2"},
            "finished": True,
        },
    )


def test_table_1_has_the_papers_numbers_beside_ours(evaluation: Evaluation) -> None:
    table = table_1(evaluation)
    assert table.columns[1:5] == ("rank-1, white box", "rank-1, foamliu", "rank-1, dlib", "rank-1, SE-Net50")
    assert [row[0] for row in table.rows] == [
        "original",
        "original (paper)",
        "dedim:paper",
        "dedim (paper)",
        EVIL,
    ]
    assert table.paper == (False, True, False, True, False)
    dedim, printed = table.rows[2:4]
    assert dedim[1] == "0.000 [0.000, 0.100]"
    assert dedim[5:7] == ("30.0 [29.0, 31.0]", "0.900 [0.880, 0.920]")
    assert dedim[7] == "1.000 [0.000, 1.000]"
    assert printed == ("dedim (paper)", "0.008", "", "", "0.124", "28.1", "0.91", "0.99", "", "", "0.85")
    assert {len(row) for row in table.rows} == {len(table.columns)}
    methods = [replace(evaluation.methods[0], method=name) for name in ("dedim", "dedim:paper@L=2")]
    rates = [replace(rate, method=method.method) for method in methods for rate in evaluation.rates[:3]]
    rows = table_1(replace(evaluation, methods=tuple(methods), rates=tuple(rates))).rows
    assert [row[0] for row in rows] == ["dedim", "dedim:paper@L=2", "dedim (paper)"], (
        "beside their own setting"
    )
    text = to_markdown(table)
    assert "| *dedim (paper)* | *0.008* |  |  | *0.124* |" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_dodging_stands_apart_from_impersonation(evaluation: Evaluation) -> None:
    first = replace(evaluation.methods[0], dodging=Estimate(0.4, 0.3, 0.5))
    entry = replace(evaluation.rates[0], own_photo=Estimate(0.2, 0.1, 0.3), dodging=Estimate(0.4, 0.35, 0.45))
    table = dodging_table(
        replace(evaluation, methods=(first, *evaluation.methods[1:]), rates=(entry, *evaluation.rates[1:]))
    )
    assert [row[:2] for row in table.rows[:4]] == [
        ("original", "white box"),
        ("original", "foamliu"),
        ("original", "dlib"),
        ("original", "mean of foamliu, dlib"),
    ]
    dash = "\N{EN DASH}"
    assert table.rows[0][2:] == (
        "0.200 [0.100, 0.300]",
        "0.400 [0.350, 0.450]",
        "0.0010 [0.0000, 0.0020]",
        dash,
    )
    assert table.rows[3][2:] == ("", "0.400 [0.300, 0.500]", "", "")
    assert "## Dodging, and impersonation apart from it" in render_markdown(evaluation)
    assert "the privacy P of HiFD" in render_report(evaluation)


def test_attackers_who_learn_are_on_the_page(evaluation: Evaluation) -> None:
    assert "An attacker who learns" not in render_report(evaluation) + render_markdown(evaluation)
    some = Estimate(0.5, 0.4, 0.6)
    entry = AdaptiveEntry(
        "dedim, drawn", "guides", "foamliu", "head", some, Estimate(1.0, 1.0, 1.0), 0.1, 0.75
    )
    attacked = replace(evaluation, adaptive=(entry,))
    assert "<h2>An attacker who learns</h2>" in render_report(attacked)
    line = "| dedim, drawn | guides | foamliu | head | 0.500 [0.400, 0.600] | 1.000 [1.000, 1.000] | 0.10 | 0.75 |"
    assert line in render_markdown(attacked)
    assert json.loads(attacked.to_json())["adaptive"][0]["relinked"] == 0.75


def test_the_papers_numbers_are_as_printed() -> None:
    rows = {
        row.method: (row.rank1_wb, row.rank1_bb, row.psnr, row.ssim, row.fnmr_wb, row.fnmr_bb)
        for row in PAPER
    }
    assert rows == {
        "original": (0.818, 0.892, None, 1.0, 0.17, 0.10),
        "tip-im": (0.0, 0.254, 29.3, 0.78, 1.0, 0.77),
        "dedim": (0.008, 0.124, 28.1, 0.91, 0.99, 0.85),
    }


def test_the_page_is_whole_safe_and_without_photos(evaluation: Evaluation) -> None:
    page = render_report(evaluation)
    assert page.count("<svg ") == 3
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<img" not in page
    assert "data:image" not in page
    addresses = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)""", page)
    assert all(address.startswith(("#", "data:,")) for address in addresses)
    assert "too few" in page, "what could not be measured"
    assert "<th>commit</th>" in page
    assert "numpy 2" in page
    assert "prefers-color-scheme: dark" in page
    assert "not finished" not in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    shared = {name for name in ids if ids.count(name) > 1}
    assert not {name for name in shared if f"#{name}" in page}, "figures must not share what they refer to"


def test_markdown_names_command_and_gaps(evaluation: Evaluation) -> None:
    text = render_markdown(evaluation)
    assert "\n    dedim evaluate\n\nSeed 0, commit abc.\n" in text
    assert "Not measured: dedim:paper, dlib, FMR 0.01: too few" in text
    assert "## Robustness" not in text
    again = replace(evaluation, robustness=(replace(evaluation.rates[0], transform="jpeg-75"),))
    assert "| original | jpeg-75 | white box |" in render_markdown(again)


def test_the_block_for_the_readme_has_ours_beside_the_papers(evaluation: Evaluation) -> None:
    block = render_block(evaluation)
    assert block.startswith(BLOCK_BEGIN)
    assert block.endswith(BLOCK_END)
    assert render_markdown(evaluation).count(block) == 1
    assert "50 probes against 1000 gallery photos (1 without a face)." in block
    lines = block.splitlines()
    first, second = (index for index, line in enumerate(lines) if line.startswith("| method |"))
    assert lines[first] == (
        "| method | rank-1, white box | rank-1, foamliu | rank-1, dlib | rank-1, SE-Net50 | PSNR, dB | mean SSIM |"
    )
    assert "| *dedim (paper)* | *0.008* |  |  | *0.124* | *28.1* | *0.91* |" in lines[first:second]
    assert "| *dedim (paper)* | *0.99* |  |  | *0.85* |" in lines[second:]
    assert not any(line.startswith("#") for line in lines), "headings are the page's own"


def test_figures_take_the_pages_ink(evaluation: Evaluation) -> None:
    for figure in (det_figure(evaluation), trade_off_figure(evaluation), calls_figure(evaluation)):
        svg = to_svg(figure, "a & b")
        assert svg.startswith('<svg role="img" aria-label="a &amp; b"')
        assert "currentColor" in svg
        assert "#000000" not in svg
        assert "metadata" not in svg
    assert to_svg(det_figure(evaluation), "x") == to_svg(det_figure(evaluation), "x")
    assert [axes.get_title() for axes in det_figure(evaluation).axes] == ["white box", "black boxes"]


def strengths(evaluation: Evaluation) -> Evaluation:
    """`dedim` at three strengths, and the originals."""
    strong = [
        ("dedim@h=0.4", 0.7, 0.1, 200.0),
        ("dedim", 0.9, 0.5, 18.0),
        ("dedim@h=0.5", 0.8, 0.2, 24.0),
        ("original", 1.0, 1.0, None),
    ]
    methods = tuple(
        replace(evaluation.methods[0], method=name, ssim=Estimate(ssim), unet_calls=calls)
        for name, ssim, _, calls in strong
    )
    rates = tuple(
        replace(rate(name, recogniser, rank1), rank1=Estimate(rank1))
        for name, _, rank1, _ in strong
        for recogniser in ("white", "foamliu", "dlib")
    )
    return replace(evaluation, methods=methods, rates=rates)


def drawn(figure: Any) -> list[tuple[list[float], list[float], list[int]]]:
    """x, y, and which of the points these lines mark: one line the full markers, another the hollow ones."""
    lines = [line for line in figure.axes[0].lines if line.get_markevery() is not None]
    assert all((line.get_markerfacecolor() == "none") == (line.get_linestyle() == "None") for line in lines)
    return [(list(line.get_xdata()), list(line.get_ydata()), line.get_markevery()) for line in lines]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].texts]


def test_strengths_of_a_method_are_one_line_and_one_colour(evaluation: Evaluation) -> None:
    several = strengths(evaluation)
    figure = trade_off_figure(several)
    assert (
        drawn(figure)
        == [([0.9, 0.8, 0.7], [0.5, 0.2, 0.1], [0]), ([0.9, 0.8, 0.7], [0.5, 0.2, 0.1], [1, 2])] * 2
        + [([1.0], [1.0], [0])] * 2
    )
    limit = figure.axes[0].lines[0]
    assert list(limit.get_xdata()) == [0.9, 0.9]
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words == ["dedim", "h=0.5", "h=0.4"], "once: another recogniser's stand at the same SSIM"
    assert legend(figure) == ["dedim", "original", "foamliu", "dlib", "SSIM below 0.9"]
    assert len(det_figure(several).axes[0].lines) == 2, "dedim at its preset's strength, and original"
    rows = [row[0] for row in table_1(several).rows]
    assert rows == ["dedim@h=0.4", "dedim (paper)", "dedim", "dedim@h=0.5", "original", "original (paper)"]


def test_calls_are_drawn_against_rank_1(evaluation: Evaluation) -> None:
    several = strengths(evaluation)
    figure = calls_figure(several)
    line = ([200.0, 24.0, 18.0], [0.1, 0.2, 0.5])
    assert drawn(figure) == [(*line, [2]), (*line, [0, 1])] * 2
    assert legend(figure) == ["dedim", "foamliu", "dlib", "SSIM below 0.9"], "the originals cost no call"
    assert [text.get_text() for text in figure.axes[0].texts] == ["h=0.4", "h=0.5", "dedim"]
    assert (figure.axes[0].get_xlabel(), figure.axes[0].get_xscale()) == ("UNet calls a face", "log")
    natural = tuple(replace(method, ssim=Estimate(0.9)) for method in several.methods[1:])
    figure = calls_figure(replace(several, methods=natural))
    assert figure.axes[0].get_xscale() == "linear", "18 and 24 calls"
    assert "SSIM below 0.9" not in legend(figure)
    assert drawn(figure)[0] == ([24.0, 18.0], [0.2, 0.5], [0, 1])


def test_no_calls_no_figure(evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "to_png", lambda figure: b"")
    monkeypatch.setattr(report, "to_svg", lambda figure, label: f"<svg>{label}</svg>")
    report.write_report(evaluation, tmp_path)
    assert (tmp_path / "calls.png").is_file()
    assert "Rank-1 against UNet calls" in (tmp_path / "report.html").read_text()
    for calls in (None, 0.0):  # the originals, TIP-IM
        idle = tuple(replace(method, unet_calls=calls) for method in evaluation.methods)
        report.write_report(replace(evaluation, methods=idle), tmp_path)
        assert not (tmp_path / "calls.png").exists(), "nor an earlier run's"
        assert "Rank-1 against UNet calls" not in (tmp_path / "report.html").read_text()


def test_without_a_black_box_the_figure_says_so(tmp_path: Path) -> None:
    evaluation = make_session(tmp_path, Methods(), ("original", "swap"), black_boxes=()).run(tmp_path / "out")
    assert len(det_figure(evaluation).axes) == 1
    assert trade_off_figure(evaluation).axes[0].get_ylabel() == "rank-1, white box"


def test_the_file_holds_a_point_a_line(evaluation: Evaluation) -> None:
    curve = ((1e-6, 1.0), (0.1, -0.5), (1.0, float("nan")))
    odd = replace(evaluation, rates=(replace(evaluation.rates[0], det=curve, method="[\n 1,\n 2\n]"),))
    text = odd.to_json()
    assert "\n    [0.1, -0.5],\n    [1.0, null]\n   ]" in text
    found = json.loads(text)["rates"][0]
    assert found["det"] == [[1e-6, 1.0], [0.1, -0.5], [1.0, None]]
    assert found["method"] == "[\n 1,\n 2\n]", "text stays as it is"
    assert found["cmc"] == [0.0, 1.0]


def test_an_entry_that_is_not_there(evaluation: Evaluation) -> None:
    with pytest.raises(KeyError, match="no entry for 'dedim' and 'white'"):
        evaluation.rate("dedim", "white")
