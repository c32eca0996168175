"""What a training runs on: accelerate, in one process, and a tracker where one is asked for."""

from __future__ import annotations

from dataclasses import asdict

from accelerate import Accelerator, tracking

from diffusers_dedim.training.config import PATH_SETTINGS, LoopConfig


def make_accelerator(config: LoopConfig) -> Accelerator:
    """Set accelerate up, with a tracker only where one was asked for.

    Raises:
        ValueError: the tracker is unknown or not installed, or there is more than one process.
    """
    if config.tracker is not None:
        if config.tracker not in tracking.LOGGER_TYPE_TO_CLASS:
            raise ValueError(
                f"tracker: expected one of {sorted(tracking.LOGGER_TYPE_TO_CLASS)}, got {config.tracker!r}."
            )
        if config.tracker not in map(str, tracking.get_available_trackers()):
            raise ValueError(f"tracker: {config.tracker} is not installed; run: pip install {config.tracker}")
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
