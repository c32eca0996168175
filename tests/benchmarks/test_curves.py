from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import curves


def write_log(folder: Path, *lines: dict[str, float], tail: str = "") -> Path:
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return folder


def test_parts_of_a_training_follow_one_another(tmp_path: Path) -> None:
    first = write_log(
        tmp_path / "first",
        {"step": 25, "seconds": 60, "loss": 2.0},
        {"step": 30, "seconds": 90, "psnr_t99": 33.0},
    )
    second = write_log(
        tmp_path / "second",
        {"step": 25, "seconds": 30, "loss": 1.0},
        {"step": 25, "seconds": 30, "psnr_t99": 34.0},
    )
    figure = curves.curves_figure([curves.read_log(run / "log.jsonl") for run in (first, second)])
    loss, psnr = figure.axes
    assert loss.lines[0].get_xdata().tolist() == [1, 2]
    assert loss.lines[1].get_ydata().tolist() == [2, 1]  # too few to smooth
    assert (psnr.get_title(), psnr.lines[0].get_ydata().tolist()) == ("psnr_t99", [33, 34])


def test_steps_made_again_after_a_kill_count_once(tmp_path: Path) -> None:
    lines = [{"step": step, "seconds": 60, "loss": 1.0} for step in (25, 50, 75, 50)]
    found = curves.read_log(write_log(tmp_path / "run", *lines, tail='{"step": 75, "sec') / "log.jsonl")
    assert [line["step"] for line in found] == [25, 50]
    figures = [{"step": 50, "seconds": 60, "psnr_t99": value} for value in (33.0, 34.0)]
    found = curves.read_log(write_log(tmp_path / "both", *lines[:2], *figures) / "log.jsonl")
    assert [len(line) for line in found] == [3, 3, 3]
    assert found[-1]["psnr_t99"] == 34


def test_the_command_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_log(
        tmp_path / "run", *({"step": step, "seconds": step, "loss": 1 / step} for step in range(1, 40))
    )
    curves.main([str(run), "-o", str(tmp_path / "out" / "curve.png")])
    assert Image.open(tmp_path / "out" / "curve.png").size == (1280, 480)
    assert capsys.readouterr().out.strip().endswith("curve.png")


@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        ("", [], "no step was logged"),
        ("no json\n{}\n", [], "line 1 is not one of a training's log"),
        ('{"step": 1, "seconds": 1, "loss": 1}\n', ["--figure", "kid"], "expected some of [], got ['kid']"),
    ],
)
def test_a_log_that_cannot_be_drawn_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: list[str], told: str
) -> None:
    run = write_log(tmp_path / "run", tail=text)
    with pytest.raises(SystemExit):
        curves.main([str(run), "-o", str(tmp_path / "a.png"), *words])
    assert told in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()
