"""One training loop for all networks: time budget, EMA, bf16, checkpoints, log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffusers_dedim.errors import TrainingDivergedError
from diffusers_dedim.training.accelerator import (
    accelerated,
    check_precision,
    load_state,
    make_optimizer,
    settle_batch_norm,
)
from diffusers_dedim.training.checkpoint import check_run, replace_folder, write_json
from diffusers_dedim.training.config import LoopConfig, TrainConfig
from diffusers_dedim.training.data import FaceData, batches, check_batch_size

Batch = dict[str, Tensor]
_Data = TypeVar("_Data", bound=FaceData)
_SETTLING_BATCHES = 100


class Task(Protocol):
    """What is trained: the network, its data, its loss, its validation and where it goes."""

    model: nn.Module

    def identity(self) -> dict[str, Any]:
        """Return what a resumed training must share with the first: fingerprints of its data, its crop size.

        All data is looked through for this, so that a wrong crop is an error before training and not in it.
        """

    def batches(self, start_batch: int) -> Iterator[Batch]:
        """Yield training batches from ``start_batch`` on, endlessly."""

    def begin_step(self, share: float) -> float:
        """Make ready for a step with that share of the budget spent, 0..1; return its share of the peak rate."""

    def loss(self, model: Callable[..., Any], batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the scalar loss of one batch; ``generator`` depends only on seed and batch number."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure the network on held-out data."""


class Progress:
    """Step and seconds spent; saved with every checkpoint."""

    def __init__(self) -> None:
        self.step: int = 0
        self.seconds: float = 0.0

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint stores."""
        return {"step": self.step, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over what a checkpoint stored."""
        self.step = int(state["step"])
        self.seconds = float(state["seconds"])


@dataclass(frozen=True)
class _Session:
    """What the functions of the loop share."""

    task: Task
    config: LoopConfig
    accelerator: Accelerator
    model: nn.Module
    forward: Callable[..., Any]
    optimizer: torch.optim.Optimizer
    ema: EMAModel
    progress: Progress

    @property
    def output(self) -> Path:
        return Path(self.config.output_dir)

    @property
    def share(self) -> float:
        """Share of the budget already spent, 0..1."""
        config, progress = self.config, self.progress
        return min(1.0, max(progress.seconds / (config.minutes * 60), progress.step / config.max_steps))

    def on_device(self, batch: Mapping[str, Tensor]) -> Batch:
        """The batch where the network is; from pinned memory, CUDA copies beside its work."""
        device = self.accelerator.device
        return {name: value.to(device, non_blocking=device.type == "cuda") for name, value in batch.items()}

    def log(self, **values: float) -> None:
        """Append one line to ``log.jsonl``, and tell the tracker where one was asked for."""
        record = {"step": self.progress.step, "seconds": self.progress.seconds, **values}
        with (self.output / "log.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        self.accelerator.log(values, step=self.progress.step)

    def save_checkpoint(self) -> None:
        replace_folder(self.output / "checkpoint", self.accelerator.save_state)


def train(task: Task, config: LoopConfig, *, resume: bool = False) -> dict[str, float]:
    """Train until the time or step budget is spent; leave the EMA weights in ``output_dir/model``.

    Batch norms are settled for these weights first (`settle_batch_norm`).

    Args:
        task: what to train.
        config: the loop's settings, kept in ``output_dir/config.json``.
        resume: go on from ``output_dir/checkpoint`` (start anew if there is none yet).

    Returns:
        The final validation figures, also in ``output_dir/metrics.json``; losses are in ``log.jsonl``.

    Raises:
        ValueError: the checkpoint was made with other settings or data, the data holds something that cannot
            be trained on, the tracker is not installed, there is more than one process, or the precision cannot be had.
        TrainingDivergedError: a loss or a gradient is not finite; the last checkpoint stays as it is.
    """
    check_precision(config.precision)
    output = Path(config.output_dir)
    record = check_run(config, type(task).__name__, task.model, task.identity(), resume=resume)
    with accelerated(config) as accelerator:
        output.mkdir(parents=True, exist_ok=True)
        write_json(output / "config.json", record)
        session = _begin(task, config, accelerator, resume=resume)
        progress = session.progress
        _run(session)
        session.ema.copy_to(task.model.parameters())
        _settle(session)
        metrics = _validate(session)
        accelerator.log(metrics, step=progress.step)
    write_json(output / "metrics.json", {"step": progress.step, "seconds": progress.seconds, **metrics})
    network: Any = task.model.eval()
    replace_folder(
        output / "model", lambda path: network.save_pretrained(path, max_shard_size=config.max_shard_size)
    )
    return metrics


def _begin(task: Task, config: LoopConfig, accelerator: Accelerator, *, resume: bool) -> _Session:
    """Set optimiser and averaged weights up, or take them from the checkpoint."""
    task.model.to(memory_format=torch.channels_last)
    model, optimizer = accelerator.prepare(task.model, make_optimizer(task.model, config))
    ema = EMAModel(task.model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    progress = Progress()
    accelerator.register_for_checkpointing(ema, progress)
    checkpoint = Path(config.output_dir) / "checkpoint"
    if resume and checkpoint.is_dir():
        load_state(accelerator, checkpoint)
        ema.decay = config.ema_decay  # these come back with the state, and may be others now
        for group in optimizer.param_groups:
            group["weight_decay"] = config.weight_decay
    ema.to(accelerator.device)  # after loading, which leaves it on the CPU
    forward = torch.compile(model) if config.compile else model
    return _Session(task, config, accelerator, model, forward, optimizer, ema, progress)


def _run(session: _Session) -> None:
    """Step until the budget is spent, with a bar, a log line now and then, and checkpoints by the clock."""
    config, progress, accumulated = (
        session.config,
        session.progress,
        session.config.gradient_accumulation_steps,
    )
    bar = tqdm(total=100, initial=round(100 * session.share, 1), unit="%", bar_format=_BAR)
    if config.validate_first:
        _report_validation(session, bar)
    clock = time.monotonic()
    checkpoint_due = clock + config.checkpoint_minutes * 60
    validate_due = clock + config.validate_minutes * 60
    losses: list[float] = []
    batches = session.task.batches(progress.step * accumulated)
    for group in zip(*[batches] * accumulated, strict=False):  # each of them the same iterator, in turn
        if session.share >= 1:
            break
        rate = _set_learning_rate(session)
        losses.append(_step(session, group))
        session.ema.step(session.task.model.parameters())
        now = time.monotonic()
        progress.step, progress.seconds, clock = progress.step + 1, progress.seconds + now - clock, now
        if progress.step % config.log_every == 0:
            loss = sum(losses) / len(losses)
            losses.clear()
            session.log(loss=loss, lr=rate)
            bar.update(round(100 * session.share, 1) - bar.n)
            bar.set_postfix(step=progress.step, loss=f"{loss:.4f}")
        if now >= validate_due:
            _report_validation(session, bar)
            validate_due = time.monotonic() + config.validate_minutes * 60
            clock = time.monotonic()  # measuring is not training: it does not eat the budget
        if now >= checkpoint_due:
            session.save_checkpoint()
            checkpoint_due = time.monotonic() + config.checkpoint_minutes * 60
    bar.close()
    session.save_checkpoint()


_BAR = "{l_bar}{bar}| {n:.1f}/{total} % [{elapsed}<{remaining}{postfix}]"


def _step(session: _Session, group: tuple[Batch, ...]) -> float:
    """Take one optimiser step over the batches of a group and return their mean loss."""
    accelerator, model = session.accelerator, session.model
    model.train()
    losses: list[Tensor] = []
    total = 0.0
    for index, batch in enumerate(group):
        generator = _batch_generator(session, session.progress.step * len(group) + index)
        with accelerator.accumulate(model):
            with accelerator.autocast():
                loss = session.task.loss(session.forward, session.on_device(batch), generator)
            losses.append(loss.detach())
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                total = _check_step(session, losses)
            session.optimizer.step()
            session.optimizer.zero_grad(set_to_none=True)
    return total / len(group)


def _check_step(session: _Session, losses: list[Tensor]) -> float:
    """Clip the gradient and return the sum of the losses; both must be finite. The device is waited for once."""
    norm = session.accelerator.clip_grad_norm_(session.model.parameters(), session.config.grad_clip)
    *values, norm_value = torch.stack([value.float() for value in (*losses, norm)]).tolist()
    total = 0.0
    for value in values:
        _require_finite(session, "loss", value)
        total += value
    if session.accelerator.scaler is None:  # else it leaves such a step out and tries a smaller scale
        _require_finite(session, "norm of the gradient", norm_value)
    return total


def _settle(session: _Session) -> None:
    """Give the averaged weights batch norms of their own, from the batches that would have come next."""
    task, accelerator = session.task, session.accelerator
    start = session.progress.step * session.config.gradient_accumulation_steps
    numbers = count(start)

    def forward(batch: Mapping[str, Tensor]) -> None:
        with accelerator.autocast():
            task.loss(session.forward, session.on_device(batch), _batch_generator(session, next(numbers)))

    settle_batch_norm(task.model, forward, islice(task.batches(start), _SETTLING_BATCHES))


def _batch_generator(session: _Session, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(session.config.seed * 1_000_003 + number)


def _require_finite(session: _Session, what: str, value: float) -> None:
    """Stop before the weights take up what is not a number; they could not be trained back."""
    if not math.isfinite(value):
        raise TrainingDivergedError(
            f"step {session.progress.step + 1}: the {what} is {value}; training stopped, and the last checkpoint "
            f"in {session.output} is from before. Resume with a lower --learning-rate or --grad-clip, or with "
            "--precision no."
        )


def _set_learning_rate(session: _Session) -> float:
    """Warm up, then follow the task's schedule."""
    config = session.config
    warmup = min(1.0, (session.progress.step + 1) / max(1, config.warmup_steps))
    rate = config.learning_rate * warmup * session.task.begin_step(session.share)
    for group in session.optimizer.param_groups:
        group["lr"] = rate
    return rate


def cosine_decay(share: float, last: float = 0.01) -> float:
    """Fall along half a cosine from 1 to ``last`` as ``share`` goes from 0 to 1.

    Example:
        >>> [round(cosine_decay(share), 3) for share in (0, 0.5, 1)]
        [1.0, 0.505, 0.01]
    """
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * share))


def _report_validation(session: _Session, bar: Any) -> None:
    figures = _validate(session)
    session.log(**figures)
    words = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
    bar.write(f"step {session.progress.step}: {words}")


def _validate(session: _Session) -> dict[str, float]:
    """Measure the EMA weights, then put the live weights back."""
    task, ema = session.task, session.ema
    parameters = list(task.model.parameters())
    ema.store(parameters)
    ema.copy_to(parameters)
    task.model.eval()
    with torch.no_grad():
        figures = task.validate(task.model)
    ema.restore(parameters)
    session.model.train()
    return figures


class FaceTask(Generic[_Data]):
    """Base of the tasks: crops, or pairs of them, in batches, and what a resumed training must share with the first.

    Args:
        train_data, val_data: `FaceCrops` or `FacePairs`.
        config: batch size, seed and number of worker processes are read.

    Attributes:
        model: the network, which the subclass makes.

    Raises:
        ValueError: the batch is larger than the training data.
    """

    model: nn.Module

    def __init__(self, train_data: _Data, val_data: _Data, config: TrainConfig) -> None:
        check_batch_size(config.batch_size, len(train_data))
        self.train_data: _Data = train_data
        self.val_data: _Data = val_data
        self._loading = config

    def identity(self) -> dict[str, Any]:
        """Fingerprint of the training faces; the validation faces are looked through too."""
        _ = self.val_data.fingerprint
        return {"data": self.train_data.fingerprint}

    def begin_step(self, share: float) -> float:
        """Follow a cosine over the budget down to 1 % of the peak rate."""
        return cosine_decay(share)

    def batches(self, start_batch: int) -> Iterator[Batch]:
        """Yield what the data holds, collated."""
        config = self._loading
        return batches(
            self.train_data,
            config.batch_size,
            config.seed,
            start_batch,
            config.num_workers,
            pin_memory=next(self.model.parameters()).is_cuda,
        )
