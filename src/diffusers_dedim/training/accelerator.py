"""What a training runs on: accelerate, in one process, and a tracker where one is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from accelerate import Accelerator, PartialState, tracking
from accelerate.state import AcceleratorState
from accelerate.utils import SCALER_NAME

from diffusers_dedim.training.config import PATH_SETTINGS, LoopConfig


def check_precision(precision: str) -> None:
    """Refuse fp16 on a CPU, where accelerate would train in float32 without a word and without a loss scaler.

    Raises:
        ValueError: it is asked for, and the training would run on a CPU.
    """
    if precision == "fp16" and PartialState().device.type == "cpu":
        raise ValueError(
            "precision: fp16 needs a GPU, and this training would run on the CPU; give --precision bf16 or no."
        )


@contextmanager
def accelerated(config: LoopConfig) -> Iterator[Accelerator]:
    """Set accelerate up for one training, so that the next one in this process may have another precision.

    accelerate keeps its precision for the whole process, and wraps the network's ``forward`` in it. Both are undone at
    the end, the first only where no other Accelerator was there before.

    Raises:
        ValueError: see `make_accelerator`.
    """
    ours = _held_precision() is None
    try:
        accelerator = make_accelerator(config)
        try:
            yield accelerator
        finally:
            accelerator.end_training()
            _unwrap_models(accelerator)
    finally:
        if ours:
            AcceleratorState._reset_state()


def make_accelerator(config: LoopConfig) -> Accelerator:
    """Set accelerate up, with a tracker only where one was asked for.

    Raises:
        ValueError: the tracker is unknown or not installed, there is more than one process, or this process holds
            an Accelerator of another precision.
    """
    if config.tracker is not None:
        if config.tracker not in tracking.LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"tracker: expected one of {sorted(tracking.LOGGER_TYPE_TO_CLASS)}, got {config.tracker!r}."
            )
        if config.tracker not in map(str, tracking.get_available_trackers()):
            raise ValueError(f"tracker: {config.tracker} is not installed; run: pip install {config.tracker}")
    held = _held_precision()
    if held not in (None, config.precision):
        raise ValueError(
            f"precision: expected {held!r}, which an Accelerator made earlier in this process has, got "
            f"{config.precision!r}; accelerate keeps one a process. Take the same, or train in a new process."
        )
    accelerator = Accelerator(
        mixed_precision=config.precision, gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.tracker, project_dir=config.output_dir,
    )  # fmt: skip
    if accelerator.num_processes > 1:
        raise ValueError(
            f"num_processes: expected 1, got {accelerator.num_processes}; the data is not shared out among "
            "processes, and each would write the same files. Start the command without accelerate launch."
        )
    if config.tracker is not None:
        settings = {k: v for k, v in asdict(config).items() if v is not None and k not in PATH_SETTINGS}
        accelerator.init_trackers("diffusers-dedim", config=settings)
    return accelerator


def load_state(accelerator: Accelerator, folder: Path) -> None:
    """Go on from a checkpoint; where it was made without a loss scaler, that of fp16 starts as new."""
    scaler = accelerator.scaler
    if not (folder / SCALER_NAME).is_file():
        accelerator.scaler = None  # else accelerate asks for the file
    try:
        accelerator.load_state(str(folder))
    finally:
        accelerator.scaler = scaler


def _held_precision() -> str | None:
    """The precision that accelerate holds for this process, or None where it was not set up."""
    held: str | None = AcceleratorState._shared_state.get("_mixed_precision")
    return held


def _unwrap_models(accelerator: Accelerator) -> None:
    for model in accelerator._models:
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        vars(model).pop("_is_accelerate_prepared", None)  # else the next Accelerator takes it for its own
