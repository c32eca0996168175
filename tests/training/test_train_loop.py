from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator, tracking
from accelerate.tracking import GeneralTracker
from tiny_task import TinyNet, TinyTask, loop_config

from diffusers_dedim.errors import TrainingDivergedError
from diffusers_dedim.training import loop
from diffusers_dedim.training.checkpoint import _public, check_model_folder, check_run, write_json
from diffusers_dedim.training.loop import Progress, train


def run(
    folder: Path, *, resume: bool = False, width: int = 4, rows: int = 12, crop_size: int = 64, **changes: Any
) -> tuple[TinyTask, dict[str, float]]:
    config = loop_config(str(folder), **changes)
    task = TinyTask(config, width, rows=rows, crop_size=crop_size)
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
        "checkpoint",
        "config.json",
        "log.jsonl",
        "metrics.json",
        "model",
    ]
    model = TinyNet.from_pretrained(tmp_path / "model")
    task = TinyTask(loop_config(str(tmp_path)))
    assert task.validate(model)["mse"] == pytest.approx(metrics["mse"], rel=1e-6)  # the EMA weights


@pytest.mark.slow
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
    [
        ({"batch_size": 3}, "batch_size"),
        ({"seed": 1}, "seed"),
        ({"width": 5}, "model"),
        ({"width": 5, "seed": 1}, "model, seed"),
        ({"rows": 13}, "data"),
        ({"crop_size": 112}, "crop_size"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"optimizer": "muon"}, "optimizer"),
    ],
)
def test_resume_with_other_settings_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    run(tmp_path, max_steps=1)
    text = f"resume: the checkpoint in {tmp_path} was made with other settings ({named}); use the same ones"
    with pytest.raises(ValueError, match=re.escape(text)):
        run(tmp_path, resume=True, **changes)


@pytest.mark.parametrize(("wide", "same"), [(False, True), (True, False)])
def test_a_switch_of_the_network_that_came_later_is_off_in_an_older_checkpoint(
    tmp_path: Path, wide: bool, same: bool
) -> None:
    run(tmp_path, max_steps=1)
    record = json.loads((tmp_path / "config.json").read_text())
    network = SimpleNamespace(config={**record["model"], "wide": wide})
    config = loop_config(str(tmp_path))
    with nullcontext() if same else pytest.raises(ValueError, match=r"made with other settings \(model\)"):
        check_run(config, record["task"], network, record["identity"], resume=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_has_the_decays_that_it_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    run(tmp_path, max_steps=1, optimizer=optimizer, ema_decay=0.9, weight_decay=0.0)
    sessions: list[Any] = []
    monkeypatch.setattr(loop, "_run", sessions.append)
    run(tmp_path, resume=True, max_steps=2, optimizer=optimizer, ema_decay=0.5, weight_decay=0.25)
    assert sessions[0].progress.step == 1
    assert sessions[0].ema.decay == 0.5
    assert {group["weight_decay"] for group in sessions[0].optimizer.param_groups} == {0.25}


def test_more_than_one_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(
        ValueError, match=r"^num_processes: expected 1, got 2; .* without accelerate launch\."
    ):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


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
    write_json(path, {"a": 1})
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"minutes": 0}, "minutes: expected a positive time budget, got 0."),
        ({"max_steps": 0}, "max_steps: expected at least 1, got 0."),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0."),
        ({"minutes": math.nan}, "minutes: expected a positive time budget, got nan."),
        ({"learning_rate": 0}, "learning_rate: expected a positive number, got 0."),
        ({"learning_rate": math.inf}, "learning_rate: expected a positive number, got inf."),
        ({"grad_clip": 0}, "grad_clip: expected a positive number (inf: gradients of any norm), got 0."),
        ({"ema_decay": 1.0}, "ema_decay: expected a number from 0 (no averaging) to below 1, got 1.0."),
        ({"ema_decay": -0.1}, "ema_decay: expected a number from 0 (no averaging) to below 1, got -0.1."),
        ({"weight_decay": -1e-4}, "weight_decay: expected a number from 0 on, got -0.0001."),
        ({"warmup_steps": -1}, "warmup_steps: expected at least 0, got -1."),
        ({"num_workers": -1}, "num_workers: expected at least 0, got -1."),
        ({"seed": -1}, "seed: expected at least 0, got -1."),
        ({"checkpoint_minutes": -1}, "checkpoint_minutes: expected at least 0, got -1."),
        ({"validate_minutes": math.nan}, "validate_minutes: expected at least 0, got nan."),
        (
            {"max_shard_size": "15"},
            "max_shard_size: expected a size such as 15MB (KB, MB, GB or TB), got 15.",
        ),
        (
            {"max_shard_size": "big"},
            "max_shard_size: expected a size such as 15MB (KB, MB, GB or TB), got big.",
        ),
        ({"precision": "int8"}, "precision: expected 'no', 'bf16' or 'fp16', got 'int8'."),
        ({"optimizer": "sgd"}, "optimizer: expected 'adamw' or 'muon', got 'sgd'."),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        loop_config("out", **changes)


def test_settings_at_the_ends_of_their_ranges_train(tmp_path: Path) -> None:
    run(tmp_path, max_steps=1, grad_clip=math.inf, ema_decay=0.0, warmup_steps=0, max_shard_size="0.5 kb")
    assert recorded_step(tmp_path) == 1


def test_the_networks_note_of_defaults_does_not_stop_a_resume() -> None:
    """diffusers writes ``_use_default_values`` in an order that changes with the hash seed of the process."""
    assert _public({"_use_default_values": ["b", "a"], "sample_size": 112}) == {"sample_size": 112}


def test_a_checkpoint_that_does_not_name_its_data_is_taken_with_a_warning(tmp_path: Path) -> None:
    run(tmp_path, max_steps=1)
    record = json.loads((tmp_path / "config.json").read_text())
    old = {"task": record["task"], "model": record["model"], "loop": record["settings"]}
    del old["loop"]["gradient_accumulation_steps"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.warns(UserWarning, match="does not say what the checkpoint was trained on; data, crop_size"):
        run(tmp_path, resume=True, max_steps=2)
    assert json.loads((tmp_path / "config.json").read_text())["identity"]["data"] == "12 rows"


def test_accumulated_batches_make_one_step(tmp_path: Path) -> None:
    """Two batches of two, whose mean gradients are averaged, step as one batch of the same four rows."""
    task, _ = run(tmp_path / "two", batch_size=2, gradient_accumulation_steps=2, max_steps=3, log_every=1)
    assert task.steps_seen[:6] == [0, 1, 2, 3, 4, 5]
    assert recorded_step(tmp_path / "two") == 3
    assert [line["step"] for line in log(tmp_path / "two")] == [1, 2, 3]

    class Quiet(TinyTask):
        def loss(
            self, model: Any, batch: dict[str, torch.Tensor], generator: torch.Generator
        ) -> torch.Tensor:
            return (model(batch["x"]) - batch["y"]).square().mean()

    for name, size, count in (("a", 2, 2), ("b", 4, 1)):
        # of one order of the rows, pairs of two batches of two are the batches of four
        config = loop_config(
            str(tmp_path / name), batch_size=size, gradient_accumulation_steps=count, max_steps=3
        )
        train(Quiet(config), config)
    same_weights(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
def test_accumulation_resumes_to_the_same_weights(tmp_path: Path) -> None:
    settings = {"batch_size": 2, "gradient_accumulation_steps": 2}
    run(tmp_path / "whole", **settings)
    script = Path(__file__).with_name("tiny_task.py")
    process = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "parts"), "5", "2"], timeout=240, check=False
    )
    assert process.returncode == -signal.SIGKILL
    task, _ = run(tmp_path / "parts", resume=True, **settings)
    assert task.steps_seen[0] == 4  # two whole steps of two batches; the half third is taken again
    same_weights(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize(("bad", "what"), [("loss", "loss is nan"), ("gradient", "norm of the gradient is")])
def test_training_stops_at_a_number_that_is_not_finite(tmp_path: Path, bad: str, what: str) -> None:
    class Spoilt(TinyTask):
        def loss(
            self, model: Any, batch: dict[str, torch.Tensor], generator: torch.Generator
        ) -> torch.Tensor:
            loss = super().loss(model, batch, generator)
            if len(self.steps_seen) == 4:
                # the square root has an infinite slope at 0
                loss = loss + (loss * float("nan") if bad == "loss" else (loss * 0).sqrt())
            return loss

    Spoilt.__name__ = "TinyTask"  # what a checkpoint names its task by
    config = loop_config(str(tmp_path))
    with pytest.raises(
        TrainingDivergedError, match=rf"^step 4: the {what}.*; training stopped, and the last"
    ):
        train(Spoilt(config), config)
    assert not (tmp_path / "model").exists()
    task, _ = run(tmp_path, resume=True)
    assert task.steps_seen[0] == 3
    assert recorded_step(tmp_path) == 8


@pytest.mark.parametrize("kind", ["cuda", "cpu", "mps"])
def test_only_for_cuda_batches_are_copied_beside_its_work(kind: str) -> None:
    """There is no GPU here: what is asked of the tensor is looked at."""
    asked: list[tuple[Any, bool]] = []
    accelerator = SimpleNamespace(device=torch.device(kind))
    value = SimpleNamespace(to=lambda device, non_blocking: asked.append((device, non_blocking)))
    session: Any = loop._Session(*[None] * 2, accelerator, *[None] * 5)  # type: ignore[arg-type]
    session.on_device({"image": value})
    assert asked == [(torch.device(kind), kind == "cuda")]


def test_a_model_is_saved_in_shards_and_read_back(tmp_path: Path) -> None:
    run(tmp_path, width=2000, max_steps=1, max_shard_size="1KB")  # 8 KB of weights, 4 bytes of bias
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert "diffusion_pytorch_model.safetensors.index.json" in files
    assert len([name for name in files if name.endswith(".safetensors")]) == 2
    assert TinyNet.from_pretrained(tmp_path / "model").layer.weight.shape == (1, 2000)
    run(tmp_path, width=2000, max_steps=1, resume=True)  # one file now, and no index of the shards is left
    assert {path.name for path in (tmp_path / "model").iterdir()} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }


def test_validation_before_the_first_step(tmp_path: Path) -> None:
    run(tmp_path / "with", validate_first=True)
    run(tmp_path / "without")
    assert log(tmp_path / "with")[0]["step"] == 0
    assert "mse" in log(tmp_path / "with")[0]
    assert log(tmp_path / "without")[0]["step"] == 2
    same_weights(tmp_path / "with", tmp_path / "without")


class Notebook(GeneralTracker):
    name, requires_logging_directory = "notebook", False
    seen: ClassVar[list[Any]] = []

    @property
    def tracker(self) -> None:
        return None

    def __init__(self, run_name: str, **_: Any) -> None:
        super().__init__()

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.seen.append(values)

    def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
        self.seen.append((step, values))


def test_a_tracker_gets_figures_and_no_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: ["notebook"])
    monkeypatch.setattr(Notebook, "seen", [])
    run(tmp_path / "off")
    assert Notebook.seen == []
    run(tmp_path / "on", tracker="notebook")
    settings, *lines = Notebook.seen
    assert settings["batch_size"] == 4
    assert str(tmp_path) not in json.dumps(settings)
    assert [step for step, _ in lines] == [2, 4, 6, 8, 8]
    assert set(lines[0][1]) == {"loss", "lr"}
    assert set(lines[-1][1]) == {"mse"}


def test_an_unknown_or_missing_tracker_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(ValueError, match=r"tracker: expected one of \['aim', .*\], got 'paper'"):
        run(tmp_path, tracker="paper")
    with pytest.raises(ValueError, match="tracker: wandb is not installed; run: pip install wandb"):
        run(tmp_path, tracker="wandb")
    assert not (tmp_path / "config.json").exists()


def test_a_folder_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"weights: {tmp_path} has no config.json; expected a folder")
    ):
        check_model_folder("weights", tmp_path, "TinyNet")
    TinyNet().save_pretrained(tmp_path)
    check_model_folder("weights", tmp_path, "TinyNet")
    with pytest.raises(
        ValueError, match=re.escape(f"weights: {tmp_path} holds a TinyNet, expected a UNet2DModel.")
    ):
        check_model_folder("weights", tmp_path, "UNet2DModel")
