"""`dedim train` from end to end: stopped and resumed, and with what it must refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from toy_faces import rows
from toy_teacher import mean_colour_teacher
from toys import tiny_unet
from typer.testing import CliRunner

from diffusers_dedim import LandmarkRegressor, MobileFaceNet
from diffusers_dedim.cli import train as commands
from diffusers_dedim.cli.main import app as dedim
from diffusers_dedim.training import loop
from diffusers_dedim.training.encoder import EncoderTask
from diffusers_dedim.training.landmarks import LandmarkTask
from diffusers_dedim.training.unet import UNetTask

pytestmark = pytest.mark.filterwarnings("ignore:.*has no part 'val':UserWarning")


def invoke(*words: Any) -> Any:
    return CliRunner().invoke(dedim, ["train", *map(str, words)])


def stop_at(step: int, loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss at whose call of that number Ctrl+C is pressed."""
    calls = 0

    def stopping(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        return loss(*arguments)

    return stopping


def log(folder: Path) -> list[tuple[float, ...]]:
    lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [(line["step"], line["lr"], line["loss"]) for line in lines]


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_crops", stop)
    stopped = invoke("unet", "--data", tmp_path, "-o", tmp_path / "out")
    assert stopped.exit_code == 130
    assert "Stopped. The last checkpoint, if there is one, is complete; go on from it" in stopped.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["landmarks", "unet", "encoder"])
def test_a_stopped_and_resumed_training_is_as_one_without_a_stop(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A checkpoint a step and no clock: the learning rate depends on the step alone."""
    task: Any = {"landmarks": LandmarkTask, "unet": UNetTask, "encoder": EncoderTask}[name]
    start, more = tmp_path / "start", ["--initial-weights", tmp_path / "start"]
    if name == "landmarks":
        more = ["--val-images", 2]
    elif name == "unet":
        tiny_unet().save_pretrained(start)
        more += ["--val-images", 2, "--crop-size", 32]
    else:
        torch.manual_seed(0)
        MobileFaceNet(3).save_pretrained(start)
        more += ["--teacher", mean_colour_teacher(tmp_path / "teacher.onnx")]
    words = [name, "--data", faces, "--minutes", "1e6", "--checkpoint-minutes", 0, "--max-steps", 5, *more]
    words += ["--batch-size", 2, "--precision", "no", "--warmup-steps", 2, "--log-every", 1]
    monkeypatch.setattr(loop, "_SETTLING_BATCHES", 2)  # a hundred would be most of the time
    with monkeypatch.context() as patch:
        patch.setattr(task, "loss", stop_at(4, task.loss))
        assert invoke(*words, "-o", tmp_path / "parts").exit_code != 0
    assert [step for step, *_ in log(tmp_path / "parts")] == [1, 2, 3]
    assert not (tmp_path / "parts" / "model").exists()
    for folder, options in (("parts", ["--resume"]), ("whole", [])):
        result = invoke(*words, "-o", tmp_path / folder, *options)
        assert result.exit_code == 0, result.output
    for part, whole in zip(log(tmp_path / "parts"), log(tmp_path / "whole"), strict=True):
        assert part == pytest.approx(whole, rel=1e-5)  # float32 sums, whose order hangs on alignment
    parts, whole = (
        load_file(tmp_path / folder / "model" / "diffusion_pytorch_model.safetensors")
        for folder in ("parts", "whole")
    )
    for weight, value in whole.items():
        torch.testing.assert_close(parts[weight], value, rtol=1e-5, atol=1e-6)


def without_landmarks(folder: Path) -> list[Any]:
    return ["--data", write(folder, {"image": rows()["image"]})]


def with_a_small_crop(folder: Path) -> list[Any]:
    content = rows()
    content["image"][3] = content["image"][3].resize((100, 112))  # type: ignore[attr-defined]
    return ["--data", write(folder, content)]


def with_a_lost_landmark(folder: Path) -> list[Any]:
    content = rows()
    content["landmarks_68"][4][7] = None  # type: ignore[index]
    return ["--data", write(folder, content)]


def with_weights_of_68_points(folder: Path) -> list[Any]:
    LandmarkRegressor(68).save_pretrained(folder / "68")
    return ["--data", write(folder, rows()), "--initial-weights", folder / "68"]


def with_a_checkpoint_of_68_points(folder: Path) -> list[Any]:
    (folder / "run" / "checkpoint").mkdir(parents=True)
    settings = {"batch_size": 2, "seed": 0}
    record = {"task": "LandmarkTask", "model": {"num_landmarks": 68}, "identity": {}, "settings": settings}
    (folder / "run" / "config.json").write_text(json.dumps(record))
    return ["--data", write(folder, rows()), "--resume"]


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "faces.parquet"
    datasets.Dataset.from_dict(content).cast_column("image", datasets.Image()).to_parquet(str(path))
    return path


@pytest.mark.parametrize(
    ("prepare", "begin", "text"),
    [
        (without_landmarks, "data: ", "has no column 'landmarks_68' (136 floats, x then y)"),
        (with_a_small_crop, "data: image 3 of ", "is 100x112, expected 112x112; align it"),
        (with_a_lost_landmark, "data: row 4 of ", "has 1 of 136 numbers in 'landmarks_68' that are null"),
        (with_weights_of_68_points, "initial_weights: ", "has 68 landmarks, expected 51."),
        (with_a_checkpoint_of_68_points, "resume: the checkpoint in ", "other settings (model, data);"),
        (
            lambda folder: ["--data", write(folder, rows()), "--batch-size", 7],
            "batch_size: 7 ",
            "the 6 images",
        ),
        (lambda folder: ["--data", folder, "--max-shard-size", 15], "max_shard_size: ", "such as 15MB"),
    ],
)
def test_the_command_says_what_it_cannot_use_and_leaves_no_model(
    tmp_path: Path, prepare: Callable[[Path], list[Any]], begin: str, text: str
) -> None:
    run = tmp_path / "run"
    result = invoke("landmarks", "-o", run, "--batch-size", 2, "--max-steps", 1, *prepare(tmp_path))
    assert result.exit_code == 2, result.output
    message = result.output.splitlines()[-1]
    assert message.startswith(f"Error: {begin}")
    assert text in message
    assert "Traceback" not in result.output
    assert not (run / "model").exists()
    assert not (run / "log.jsonl").exists()
