"""benchmarks.guides with toy networks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from toy_block_teacher import block_teacher
from toy_faces import rows
from toys import toy_pipeline

from benchmarks import guides
from diffusers_dedim import MobileFaceNet


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    faces = datasets.Dataset.from_dict({"image": rows()["image"]}).cast_column("image", datasets.Image())
    faces.to_parquet(str(tmp_path / "val-00000.parquet"))
    given = ["--data", tmp_path, "--faces", 3, "--cache", tmp_path / "cache", "--json", tmp_path / "r.json"]
    return list(map(str, given))


def test_prints_how_alike_each_two_pushes_are(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = block_teacher(tmp_path / "judge.onnx", embedding_dim=8)
    twin.save_pretrained(tmp_path / "same")
    MobileFaceNet(16).save_pretrained(tmp_path / "other")
    more = ["--guide", f"same={tmp_path / 'same'}", "--guide", f"other={tmp_path / 'other'}"]
    more += ["--judge", f"judge={tmp_path / 'judge.onnx'}"]
    guides.main([*words, *more], load_pipeline=toy_pipeline)
    results = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "r.json").read_text()) == results
    assert results["guides"] == ["same", "other"]
    agreement = results["agreement"]
    assert set(agreement) == {"same", "other", "judge", "together"}
    assert agreement["same"]["judge"] == agreement["judge"]["same"] == 1  # one network by two libraries
    assert agreement["other"]["judge"] < 0.5
    assert set(results["gradient_ms"]) == set(results["parameters"]) == {"same", "other", "judge"}
    assert results["parameters"]["other"] == sum(p.numel() for p in MobileFaceNet(16).parameters())
    assert results["faces"] == 3


def test_the_pipelines_own_guide_is_the_one_by_default(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guides, "JUDGES", ())
    guides.main(words, load_pipeline=toy_pipeline)
    results = json.loads(capsys.readouterr().out)
    assert results["guides"] == ["white"]
    assert results["agreement"] == {"white": {}}


def test_a_push_is_grey_smooth_and_within_the_mask() -> None:
    gradient = torch.zeros(1, 3, 9, 9)
    gradient[0, 1, 4, 4] = 3.0
    mask = torch.ones(1, 1, 9, 9)
    mask[..., 5:] = 0
    push = guides.to_push(gradient, mask).reshape(9, 9)
    assert float(push.norm()) == pytest.approx(1)
    assert float(push[:, 5:].abs().sum()) == 0
    assert push[4, 4] > push[4, 3] > push[4, 2] > 0


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--guide", "a=nowhere"], "--guide: nowhere has no config.json"),
        (["--guide", "together=nowhere"], "--guide: expected a name of its own for each, got 'together'"),
        (["--faces", "7"], "has 6 crops that are filled, too few for 7."),
    ],
)
def test_what_it_cannot_use_is_told_before_any_work(
    words: list[str], monkeypatch: pytest.MonkeyPatch, more: list[str], text: str
) -> None:
    monkeypatch.setattr(guides, "JUDGES", ())
    refused: Any = pytest.raises(ValueError, match=re.escape(text))
    with refused:
        guides.main([*words, *more], load_pipeline=toy_pipeline)
