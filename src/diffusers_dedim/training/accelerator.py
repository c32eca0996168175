"""What a training runs on: accelerate, in one process, and a tracker where one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState, tracking
from accelerate.state import AcceleratorState
from accelerate.utils import SCALER_NAME
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from diffusers_dedim.extras import import_extra
from diffusers_dedim.training.config import PATH_SETTINGS, LoopConfig


def make_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    """Make AdamW, or Muon (Jordan et al. 2024, timm's) for the weights that mix channels and AdamW for the others.

    Muon's step has the length of AdamW's (Liu et al. 2025), so that both take like learning rates.

    Raises:
        ImportError: Muon is asked for without timm; the message has the command that installs it.
    """
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    timm = import_extra("timm.optim", "--optimizer muon", 'pip install "diffusers-dedim[train]"')
    # not the class centres of ArcFace: their rows are no map of channels, and share no directions to be evened out
    maps = {id(layer.weight) for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    mixing: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for weight in model.parameters():
        # depthwise convolutions mix nothing: one row of weights a channel
        mixes = id(weight) in maps and min(weight.shape[0], weight[0].numel()) >= 16 and weight.shape[1] > 1
        (mixing if mixes else others).append(weight)
    optimizer: torch.optim.Optimizer = timm.Muon(
        [{"params": mixing}, {"params": others, "use_fallback": True}],
        lr=rate,
        weight_decay=decay,
        nesterov=True,
        betas=(0.9, 0.999),
    )
    return optimizer


def settle_batch_norm(
    network: nn.Module,
    forward: Callable[[Mapping[str, Tensor]], object],
    batches: Iterable[Mapping[str, Tensor]],
) -> None:
    """Compute every batch norm's mean and variance anew, averaged over the batches (Wu and Johnson 2021).

    What a norm gathered in training is of the live weights of the last steps. The averaged weights make slightly
    other maps. A network without batch norm is left as it is, and no batch is taken.

    Args:
        network: its norms are set; the weights stay.
        forward: runs the network on a batch as training does.
        batches: how many there are is how many are averaged.
    """

    class Pass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, batch: Mapping[str, Tensor]) -> None:
            forward(batch)

    with torch.compiler.set_stance("force_eager"):  # compiling anew takes longer than it saves
        update_bn(batches, Pass().train(network.training))


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
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.tracker,
        project_dir=config.output_dir,
    )
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
