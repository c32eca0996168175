from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny_task import TinyNet, TinyTask, loop_config

from diffusers_dedim.training import loop
from diffusers_dedim.training.loop import Progress, train


def run(
    folder: Path, *, resume: bool = False, width: int = 4, **changes: Any
) -> tuple[TinyTask, dict[str, float]]:
    config = loop_config(str(folder), **changes)
    task = TinyTask(config, width)
    return task, train(task, config, resume=resume)


def recorded_step(folder: Path) -> int:
    return int(json.loads((folder / "metrics.json").read_text())["step"])


def log(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same_weights(one: Path, two: Path) -> None:
    first, second = (TinyNet.from_pretrained(folder / "model").state_dict() for folder in (one, two))
    for name, value in first.items():
        # float32 sums of another process with another number of threads
        torch.testing.assert_close(value, second[name], rtol=1e-6, atol=1e-7)


def test_a_run_learns_and_leaves_everything_behind(tmp_path: Path) -> None:
    _, metrics = run(tmp_path, max_steps=60)
    lines = log(tmp_path)
    assert [line["step"] for line in lines] == list(range(2, 61, 2))
    assert lines[-1]["loss"] < lines[0]["loss"] / 4
    assert recorded_step(tmp_path) == 60
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint", "config.json", "log.jsonl", "metrics.json", "model",
    ]  # fmt: skip
    model = TinyNet.from_pretrained(tmp_path / "model")
    task = TinyTask(loop_config(str(tmp_path)))
    assert task.validate(model)["mse"] == pytest.approx(metrics["mse"], rel=1e-6)  # the EMA weights


def test_kill_9_and_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    script = Path(__file__).with_name("tiny_task.py")
    process = subprocess.run([sys.executable, str(script), str(killed), "5"], timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "metrics.json").exists()
    task, _ = run(killed, resume=True)
    run(whole)
    assert recorded_step(killed) == recorded_step(whole) == 8
    assert task.steps_seen[0] == 5  # no step is taken twice where every step left a checkpoint
    same_weights(killed, whole)


def test_resuming_a_finished_run_takes_no_step(tmp_path: Path) -> None:
    run(tmp_path)
    task, _ = run(tmp_path, resume=True)
    assert recorded_step(tmp_path) == 8
    assert len(task.steps_seen) <= 1  # the batch that is fetched before the budget is looked at


def test_resume_without_a_checkpoint_starts_anew(tmp_path: Path) -> None:
    task, _ = run(tmp_path, resume=True)
    assert task.steps_seen[0] == 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"batch_size": 3}, "batch_size"), ({"seed": 1}, "seed"), ({"width": 5}, "model"),
     ({"width": 5, "seed": 1}, "model, seed")],
)  # fmt: skip
def test_resume_with_other_settings_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    run(tmp_path, max_steps=1)
    text = f"resume: the checkpoint in {tmp_path} was made with other settings ({named}); use the same ones"
    with pytest.raises(ValueError, match=re.escape(text)):
        run(tmp_path, resume=True, **changes)


def test_a_used_folder_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, max_steps=1)
    with pytest.raises(
        ValueError, match=re.escape(f"output_dir: {tmp_path} holds a checkpoint; pass --resume")
    ):
        run(tmp_path)


@pytest.mark.parametrize("swap", [0, 1])
def test_a_kill_within_the_swap_of_checkpoints_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: int
) -> None:
    """Two renames make a swap; whichever the kill comes before, a whole checkpoint is found again."""
    run(tmp_path, max_steps=3)
    (tmp_path / "checkpoint.new").mkdir()  # what a kill while writing leaves
    renames = 0
    rename = Path.rename

    def dying(self: Path, target: Path) -> Path:
        nonlocal renames
        if self.name.startswith("checkpoint"):
            if renames == swap:
                raise KeyboardInterrupt
            renames += 1
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dying)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, resume=True, max_steps=8)
    monkeypatch.undo()
    assert (tmp_path / "checkpoint").exists() == (swap == 0)
    task, _ = run(tmp_path, resume=True, max_steps=8)
    assert task.steps_seen[0] == 3
    assert recorded_step(tmp_path) == 8


def test_the_time_budget_counts_over_sessions(tmp_path: Path) -> None:
    run(tmp_path, max_steps=2)
    state = {"step": 2, "seconds": 3600.0}
    accelerator, progress = Accelerator(), Progress()
    progress.load_state_dict(state)
    assert progress.state_dict() == state
    checkpoint = tmp_path / "checkpoint"
    accelerator.register_for_checkpointing(progress)
    accelerator.save_state(str(tmp_path / "other"))
    # the second registered object is the progress, the first the EMA
    (tmp_path / "other" / "custom_checkpoint_0.pkl").replace(checkpoint / "custom_checkpoint_1.pkl")
    run(tmp_path, resume=True, max_steps=100, minutes=60)
    assert recorded_step(tmp_path) == 2


def test_the_learning_rate_warms_up_and_falls_to_one_percent(tmp_path: Path) -> None:
    run(tmp_path, max_steps=50, warmup_steps=10, log_every=1)
    rates = [line["lr"] for line in log(tmp_path)]
    assert rates[0] == pytest.approx(0.1 / 10)
    assert max(rates) == rates[9] or max(rates) == rates[10]
    assert all(a > b for a, b in pairwise(rates[11:]))
    assert rates[-1] == pytest.approx(0.1 * 0.01, rel=0.15)  # one step before the end of the cosine


def test_validation_leaves_the_live_weights_alone(tmp_path: Path) -> None:
    quiet, busy = tmp_path / "quiet", tmp_path / "busy"
    run(quiet)
    run(busy, validate_minutes=0.0)
    assert any("mse" in line for line in log(busy))
    same_weights(quiet, busy)


def test_settings_are_written_in_one_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    loop._write_json(path, {"a": 1})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        loop._write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"minutes": 0}, "minutes: expected a positive time budget, got 0."),
        ({"max_steps": 0}, "max_steps: expected at least 1, got 0."),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0."),
        ({"precision": "int8"}, "precision: expected 'no', 'bf16' or 'fp16', got 'int8'."),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        loop_config("out", **changes)


def test_the_networks_note_of_defaults_does_not_stop_a_resume() -> None:
    """diffusers writes ``_use_default_values`` in an order that changes with the hash seed of the process."""
    from diffusers_dedim.training.loop import _public

    assert _public({"_use_default_values": ["b", "a"], "sample_size": 112}) == {"sample_size": 112}
