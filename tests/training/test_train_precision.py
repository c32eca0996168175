"""Precisions: where each may be had, gone on with, and followed by another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny_task import TinyTask, loop_config
from toys import tiny_unet
from typer.testing import CliRunner

from diffusers_dedim.cli.main import app as dedim
from diffusers_dedim.errors import TrainingDivergedError
from diffusers_dedim.training import accelerator as accelerator_module
from diffusers_dedim.training import loop
from diffusers_dedim.training.data import FaceCrops
from diffusers_dedim.training.loop import train
from diffusers_dedim.training.unet import x_0_psnr


def run(folder: Path, *, resume: bool = False, **changes: Any) -> TinyTask:
    config = loop_config(str(folder), **changes)
    task = TinyTask(config)
    train(task, config, resume=resume)
    return task


def allow_fp16(monkeypatch: pytest.MonkeyPatch, *, scaler: bool) -> None:
    """Let fp16 run on the CPU; with a loss scaler, as accelerate makes one on a GPU."""
    make = accelerator_module.make_accelerator

    def with_scaler(config: Any) -> Accelerator:
        accelerator = make(config)
        if scaler and config.precision == "fp16":
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        return accelerator

    monkeypatch.setattr(loop, "check_precision", lambda precision: None)
    monkeypatch.setattr(accelerator_module, "make_accelerator", with_scaler)


FP16_ON_A_CPU = (
    "precision: fp16 needs a GPU, and this training would run on the CPU; give --precision bf16 or no."
)


def test_fp16_on_a_cpu_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    class Unread(TinyTask):
        def identity(self) -> dict[str, Any]:
            raise AssertionError

    config = loop_config(str(tmp_path / "run"), precision="fp16")
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole text is compared
        train(Unread(config), config)
    assert str(caught.value) == FP16_ON_A_CPU
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["unet", "encoder", "landmarks", "visibility", "purifier"])
def test_the_command_refuses_fp16_on_a_cpu_before_it_reads_the_data(tmp_path: Path, name: str) -> None:
    words = [
        "train",
        name,
        "--data",
        str(tmp_path / "nowhere"),
        "-o",
        str(tmp_path / "run"),
        "--precision",
        "fp16",
    ]
    result = CliRunner().invoke(dedim, [*words, *(["--teacher", "t.onnx"] if name == "encoder" else [])])
    assert (result.exit_code, result.output.strip()) == (2, f"Error: {FP16_ON_A_CPU}")


def with_a_bad_gradient(kind: type[TinyTask]) -> type[TinyTask]:
    class TinyTask(kind):  # type: ignore[misc,valid-type]
        def loss(self, model: Any, batch: Any, generator: torch.Generator) -> torch.Tensor:
            loss = super().loss(model, batch, generator)
            # the square root has an infinite slope at 0
            return loss + (loss * 0).sqrt() if len(self.steps_seen) == 4 else loss

    return TinyTask


@pytest.mark.parametrize("scaler", [False, True])
def test_the_norm_is_checked_unless_a_loss_scaler_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scaler: bool
) -> None:
    allow_fp16(monkeypatch, scaler=scaler)
    config = loop_config(str(tmp_path), precision="fp16")
    task = with_a_bad_gradient(TinyTask)(config)
    if scaler:  # which leaves the step out
        train(task, config)
    else:
        with pytest.raises(TrainingDivergedError, match=r"^step 4: the norm of the gradient is "):
            train(task, config)
    weights = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_fp16_goes_on_from_a_checkpoint_without_a_loss_scaler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, max_steps=3)
    assert not (tmp_path / "checkpoint" / "scaler.pt").exists()
    allow_fp16(monkeypatch, scaler=True)
    task = run(tmp_path, max_steps=5, precision="fp16", resume=True)
    assert task.steps_seen[0] == 3
    assert torch.load(tmp_path / "checkpoint" / "scaler.pt")["scale"] == 4  # it scaled, and was saved
    run(tmp_path, max_steps=6, precision="fp16", resume=True)
    run(tmp_path, max_steps=8, precision="no", resume=True)  # and without it again
    assert json.loads((tmp_path / "metrics.json").read_text())["step"] == 8


def test_trainings_of_other_precisions_follow_each_other(tmp_path: Path) -> None:
    """Also of the same network, which is left as it was: accelerate wraps its ``forward``."""
    seen: list[torch.dtype] = []
    config = loop_config(str(tmp_path / "0"))
    task = TinyTask(config)
    layer = task.model.layer
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    for number, precision in enumerate(("bf16", "no", "bf16")):
        changed = loop_config(str(tmp_path / str(number)), precision=precision, max_steps=1)
        train(task, changed)
        assert seen[0] == (torch.bfloat16 if precision == "bf16" else torch.float32)
        seen.clear()
        task.model(task.x)
        assert seen == [torch.float32]
        seen.clear()


def test_a_stopped_training_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    config = loop_config(str(tmp_path / "a"), precision="bf16")
    with pytest.raises(TrainingDivergedError):
        train(with_a_bad_gradient(TinyTask)(config), config)
    run(tmp_path / "b", max_steps=1, precision="no")


def test_an_accelerator_of_another_precision_is_named(tmp_path: Path) -> None:
    Accelerator(mixed_precision="bf16")
    with pytest.raises(ValueError, match=r"^precision: expected 'bf16', which an Accelerator made earlier"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(tmp_path / "run", precision="bf16", max_steps=1)
    assert Accelerator().mixed_precision == "bf16"  # somebody else's: left as it was


def test_the_unet_is_validated_in_bf16_whatever_it_is_trained_in(data: FaceCrops) -> None:
    accelerator = Accelerator(mixed_precision="fp16")
    accelerator.native_amp = True  # as on a GPU
    unet, seen = accelerator.prepare(tiny_unet().eval()), set()
    unet.conv_in.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    with torch.no_grad():
        unet(torch.zeros(1, 3, 16, 16), 5)
        assert seen == {torch.float16}
        seen.clear()
        x_0_psnr(unet, data, 2)
    assert seen == {torch.bfloat16}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each time that a number is read off a tensor, for which a GPU would be waited for."""
    made: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(torch.Tensor, name)

        def read(self: torch.Tensor) -> Any:
            made.append(name)
            return original(self)

        return read

    for name in ("__float__", "tolist"):  # item: AdamW's count of steps, which lies on the CPU
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    return made


def test_the_device_is_waited_for_once_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    monkeypatch.setattr(loop, "_settle", lambda session: None)
    monkeypatch.setattr(TinyTask, "validate", lambda task, model: {})
    monkeypatch.setattr(
        TinyTask, "batches", lambda task, start: iter([{"x": task.x[:1], "y": task.y[:1]}] * 99)
    )
    run(tmp_path, max_steps=3, gradient_accumulation_steps=4, batch_size=1)
    assert len(reads) == 3
