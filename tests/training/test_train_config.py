from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from diffusers_dedim.cli import train as cli
from diffusers_dedim.cli.main import app as dedim
from diffusers_dedim.cli.train import app
from diffusers_dedim.training.config import EncoderConfig, LandmarkConfig, UNetConfig, read_config

REQUIRED = {"output_dir": "out", "data": "faces"}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[UNetConfig]:
    """The settings that the command `unet` hands on; nothing is trained."""
    from diffusers_dedim.training import loop, unet

    settings: list[UNetConfig] = []
    monkeypatch.setattr(cli, "_crops", lambda config: (None, None))
    monkeypatch.setattr(unet, "UNetTask", lambda train, val, config, model: None)
    monkeypatch.setattr(
        loop, "train", lambda task, config, resume: settings.append(config) or {"figure": 1.0}
    )
    return settings


def invoke(*words: Any) -> str:
    result = CliRunner().invoke(app, ["unet", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("kind", ["toml", "json"])
def test_a_file_gives_settings_and_options_override_it(
    tmp_path: Path, taken: list[UNetConfig], kind: str
) -> None:
    path = tmp_path / f"settings.{kind}"
    path.write_text(
        'data = "faces"\noutput-dir = "out"\nbatch_size = 8\nlearning_rate = 1e-3\ncompile = true\nsize = "base"\n'
        if kind == "toml"
        else json.dumps({**REQUIRED, "batch_size": 8, "learning-rate": 1e-3, "compile": True, "size": "base"})
    )
    invoke("--config", path, "--batch-size", "4", "--no-compile")
    expected = UNetConfig("out", data="faces", batch_size=4, learning_rate=1e-3, size="base")
    assert taken == [expected]


def test_the_config_of_an_earlier_run_is_a_file_of_settings(tmp_path: Path, taken: list[UNetConfig]) -> None:
    earlier = {"task": "UNetTask", "settings": {**REQUIRED, "crop_size": 112, "tracker": None}}
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    assert invoke("-o", "other", "--config", tmp_path / "config.json").splitlines()[0] == "figure: 1.0000"
    assert taken == [UNetConfig("other", data="faces", crop_size=112)]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.yaml", "", "config: expected an existing .toml or .json file, got "),
        ("a.toml", "batch_size = ", "is not well-formed TOML ("),
        ("a.json", "{", "is not well-formed JSON ("),
        ("a.json", "[1]", "holds a list, expected names and values."),
        (
            "a.toml",
            "batchsize = 3",
            "has unknown settings ['batchsize']; expected some of ['batch_size', 'seed'].",
        ),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, name: str, content: str, text: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(text)):
        read_config(tmp_path / name, {"batch_size", "seed"})


def test_a_value_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('batch_size = "many"')
    result = CliRunner().invoke(app, ["unet", "--config", str(tmp_path / "a.toml"), "--data", "d", "-o", "o"])
    assert result.exit_code == 2
    assert "--batch-size" in result.output
    assert "valid integer" in result.output


def test_dedim_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    words = ["train", "unet", "-o", str(tmp_path), "--data", str(tmp_path)]
    result = CliRunner().invoke(dedim, words)
    assert result.exit_code == 2
    assert result.output.startswith("Error: data: the folder ")
    assert "holds no .parquet file and no image." in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "changes", "text"),
    [
        (UNetConfig, {"size": "huge"}, "size: expected 'small' or 'base', got 'huge'."),
        (UNetConfig, {"loss_weighting": "snr"}, "loss_weighting: expected 'none' or 'min-snr', got 'snr'."),
        (UNetConfig, {"min_snr_gamma": 0}, "min_snr_gamma: expected a positive number, got 0."),
        (LandmarkConfig, {"log_every": 0}, "log_every: expected at least 1, got 0."),
        (UNetConfig, {"val_images": 0}, "val_images: expected at least 1, got 0."),
        (LandmarkConfig, {"val_images": 0}, "val_images: expected at least 1, got 0."),
        (
            UNetConfig,
            {"low_timestep_limit": 0},
            "low_timestep_limit: expected a timestep from 1 to 1000, got 0.",
        ),
        (
            UNetConfig,
            {"low_timestep_limit": 1001},
            "low_timestep_limit: expected a timestep from 1 to 1000, got",
        ),
        (UNetConfig, {"full_size_share": 1.5}, "full_size_share: expected a number from 0 to 1, got 1.5."),
        (
            UNetConfig,
            {"low_timestep_share": -0.1},
            "low_timestep_share: expected a number from 0 to 1, got -0.1.",
        ),
        (EncoderConfig, {"margin": 3.2}, "margin: expected an angle from 0 to below pi, got 3.2."),
        (EncoderConfig, {"scale": 0}, "scale: expected a positive number, got 0."),
        (EncoderConfig, {"max_noise": -1}, "max_noise: expected a number from 0 on, got -1."),
        (
            EncoderConfig,
            {"feature_weight": math.nan},
            "feature_weight: expected a number from 0 on, got nan.",
        ),
        (EncoderConfig, {"relation_weight": -1}, "relation_weight: expected a number from 0 on, got -1."),
        (
            EncoderConfig,
            {"method": "triplet"},
            "method: expected 'distill', 'blockwise' or 'arcface', got 'triplet'.",
        ),
        (
            UNetConfig,
            {"keep_in_memory": True, "num_workers": 2},
            "keep_in_memory: expected num_workers 0 beside it",
        ),
        (
            EncoderConfig,
            {"keep_in_memory": True, "num_workers": 1, "method": "arcface"},
            "Leave out one of the two.",
        ),
        (
            LandmarkConfig,
            {"keep_in_memory": True, "num_workers": 8},
            "keep_in_memory: expected num_workers 0",
        ),
        (
            EncoderConfig,
            {},
            "teacher: --method distill needs one; give --teacher FILE.onnx, or --method arcface",
        ),
    ],
)
def test_bad_settings_are_refused(config: Any, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        config(**REQUIRED, **changes)


def test_help_lists_every_setting() -> None:
    for name in ("unet", "encoder", "landmarks"):
        text = CliRunner().invoke(app, [name, "--help"]).output
        for option in (
            "--config",
            "--resume",
            "--gradient-accumulation-steps",
            "--tracker",
            "--max-shard-size",
        ):
            assert option in text
