"""One training loop for the three networks: time budget, EMA, bf16, checkpoints, log."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class LoopConfig:
    """What the loop needs to know, whatever is trained.

    The learning rate warms up over ``warmup_steps`` and falls along a cosine to 1 % as the run nears
    ``minutes`` or ``max_steps``, whichever is nearer; minutes are counted over all resumed sessions.
    """

    output_dir: str
    minutes: float = 30.0
    max_steps: int = 1_000_000
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    ema_decay: float = 0.999
    grad_clip: float = 1.0
    precision: str = "bf16"  # "no", "bf16" or "fp16"
    compile: bool = False
    num_workers: int = 0
    seed: int = 0
    log_every: int = 25
    validate_minutes: float = 10.0
    checkpoint_minutes: float = 3.0

    def __post_init__(self) -> None:
        if self.minutes <= 0:
            raise ValueError(f"minutes: expected a positive time budget, got {self.minutes}.")
        if self.max_steps < 1:
            raise ValueError(f"max_steps: expected at least 1, got {self.max_steps}.")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}.")
        if self.precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"precision: expected 'no', 'bf16' or 'fp16', got {self.precision!r}.")


class Task(Protocol):
    """What is trained: the network, its data, its loss, its validation and where it goes."""

    model: nn.Module

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Yield training batches from ``start_step`` on, endlessly."""

    def loss(self, model: Callable[..., Any], batch: Batch, generator: torch.Generator) -> Tensor:
        """Return the scalar loss of one batch; ``generator`` depends only on seed and step."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure the network on held-out data."""


class Progress:
    """Step and seconds spent; saved with every checkpoint."""

    def __init__(self) -> None:
        self.step, self.seconds = 0, 0.0

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint stores."""
        return {"step": self.step, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over what a checkpoint stored."""
        self.step, self.seconds = int(state["step"]), float(state["seconds"])


def train(task: Task, config: LoopConfig, *, resume: bool = False) -> dict[str, float]:
    """Train until the time or step budget is spent; leave the EMA weights in ``output_dir/model``.

    Args:
        task: what to train.
        config: the loop's settings; ``config.json`` beside the checkpoint must agree when resuming.
        resume: go on from ``output_dir/checkpoint`` (start anew if there is none yet).

    Returns:
        The final validation figures, also in ``output_dir/metrics.json``; losses are in ``log.jsonl``.

    Raises:
        ValueError: the checkpoint was made with other settings.
    """
    output = Path(config.output_dir)
    _check_settings(output, config, task, resume)
    accelerator = Accelerator(mixed_precision=config.precision)
    optimizer = torch.optim.AdamW(
        task.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    task.model.to(memory_format=torch.channels_last)
    model, optimizer = accelerator.prepare(task.model, optimizer)
    ema = EMAModel(task.model.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=0.75)
    progress = Progress()
    accelerator.register_for_checkpointing(ema, progress)
    if resume and (output / "checkpoint").is_dir():
        accelerator.load_state(str(output / "checkpoint"))
    ema.to(accelerator.device)  # after loading, which leaves it on the CPU
    forward = torch.compile(model) if config.compile else model
    _run(task, config, accelerator, model, forward, optimizer, ema, progress)
    metrics = _validate(task, model, ema)
    _write_json(output / "metrics.json", {"step": progress.step, "seconds": progress.seconds, **metrics})
    ema.copy_to(task.model.parameters())
    task.model.eval().save_pretrained(output / "model")  # type: ignore[operator]
    return metrics


def _run(
    task: Task, config: LoopConfig, accelerator: Accelerator, model: nn.Module, forward: Callable[..., Any],
    optimizer: torch.optim.Optimizer, ema: EMAModel, progress: Progress,
) -> None:  # fmt: skip
    """Step until the budget is spent, with a bar, a log line now and then, and checkpoints by the clock."""
    output, budget = Path(config.output_dir), config.minutes * 60
    bar = tqdm(total=100, initial=round(100 * _share(config, progress), 1), unit="%", bar_format=_BAR)
    clock = checkpoint_due = validate_due = time.monotonic()
    checkpoint_due += config.checkpoint_minutes * 60
    validate_due += config.validate_minutes * 60
    losses: list[float] = []
    for batch in task.batches(progress.step):
        if progress.seconds >= budget or progress.step >= config.max_steps:
            break
        rate = _set_learning_rate(optimizer, config, progress)
        losses.append(_step(task, config, accelerator, model, forward, optimizer, batch, progress.step))
        ema.step(task.model.parameters())
        now = time.monotonic()
        progress.step, progress.seconds, clock = progress.step + 1, progress.seconds + now - clock, now
        if progress.step % config.log_every == 0:
            loss = sum(losses) / len(losses)
            losses.clear()
            _log(output, {"step": progress.step, "seconds": progress.seconds, "loss": loss, "lr": rate})
            bar.update(round(100 * _share(config, progress), 1) - bar.n)
            bar.set_postfix(step=progress.step, loss=f"{loss:.4f}")
        if now >= validate_due:
            figures = _validate(task, model, ema)
            _log(output, {"step": progress.step, "seconds": progress.seconds, **figures})
            bar.write(f"step {progress.step}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
            validate_due = time.monotonic() + config.validate_minutes * 60
            clock = time.monotonic()  # measuring is not training: it does not eat the budget
        if now >= checkpoint_due:
            _save_checkpoint(accelerator, output)
            checkpoint_due = time.monotonic() + config.checkpoint_minutes * 60
    bar.close()
    _save_checkpoint(accelerator, output)


_BAR = "{l_bar}{bar}| {n:.1f}/{total} % [{elapsed}<{remaining}{postfix}]"


def _step(
    task: Task, config: LoopConfig, accelerator: Accelerator, model: nn.Module, forward: Callable[..., Any],
    optimizer: torch.optim.Optimizer, batch: Batch, step: int,
) -> float:  # fmt: skip
    """Take one optimiser step and return the loss."""
    model.train()
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    batch = {name: value.to(accelerator.device) for name, value in batch.items()}
    with accelerator.autocast():
        loss = task.loss(forward, batch, generator)
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), config.grad_clip)
    optimizer.step()
    return float(loss.detach())


def _share(config: LoopConfig, progress: Progress) -> float:
    """Return the share of the budget already spent, 0..1."""
    return min(1.0, max(progress.seconds / (config.minutes * 60), progress.step / config.max_steps))


def _set_learning_rate(optimizer: torch.optim.Optimizer, config: LoopConfig, progress: Progress) -> float:
    """Warm up, then follow a cosine over the budget down to 1 %."""
    warmup = min(1.0, (progress.step + 1) / max(1, config.warmup_steps))
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * _share(config, progress)))
    rate = config.learning_rate * warmup * cosine
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _validate(task: Task, model: nn.Module, ema: EMAModel) -> dict[str, float]:
    """Measure the EMA weights, then put the live weights back."""
    parameters = list(task.model.parameters())
    ema.store(parameters)
    ema.copy_to(parameters)
    task.model.eval()
    with torch.no_grad():
        figures = task.validate(task.model)
    ema.restore(parameters)
    model.train()
    return figures


def _save_checkpoint(accelerator: Accelerator, output: Path) -> None:
    """Write beside the old checkpoint, then swap, so that a kill at any moment leaves a whole one."""
    fresh, current, old = output / "checkpoint.new", output / "checkpoint", output / "checkpoint.old"
    shutil.rmtree(fresh, ignore_errors=True)
    accelerator.save_state(str(fresh))
    shutil.rmtree(old, ignore_errors=True)
    if current.exists():
        current.rename(old)
    fresh.rename(current)
    shutil.rmtree(old, ignore_errors=True)


def _check_settings(output: Path, config: LoopConfig, task: Task, resume: bool) -> None:
    """Refuse to resume a checkpoint of another network or batch size; record this run's settings."""
    record = {
        "task": type(task).__name__,
        "model": _public(getattr(task.model, "config", {})),
        "loop": asdict(config),
    }
    record = json.loads(json.dumps(record, default=str))
    path = output / "config.json"
    if (output / "checkpoint.old").is_dir() and not (output / "checkpoint").exists():
        (output / "checkpoint.old").rename(output / "checkpoint")  # killed in the middle of the swap
    if resume and path.is_file() and (output / "checkpoint").is_dir():
        before = json.loads(path.read_text())
        before["model"] = _public(before.get("model", {}))
        differs = [key for key in ("task", "model") if before.get(key) != record[key]]
        differs += [k for k in ("batch_size", "seed") if before["loop"].get(k) != record["loop"][k]]
        if differs:
            raise ValueError(
                f"resume: the checkpoint in {output} was made with other settings ({', '.join(differs)}); "
                "use the same ones or another --output-dir."
            )
    elif not resume and (output / "checkpoint").exists():
        raise ValueError(f"output_dir: {output} holds a checkpoint; pass --resume or choose another folder.")
    output.mkdir(parents=True, exist_ok=True)
    _write_json(path, record)


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out diffusers' own notes, such as a list of defaults in an order that changes from run to run."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _write_json(path: Path, record: dict[str, Any]) -> None:
    """Replace the file in one move: a kill must not leave half a ``config.json``, which would bar resuming."""
    fresh = path.with_suffix(".json.new")
    fresh.write_text(json.dumps(record, indent=2) + "\n")
    fresh.replace(path)


def _log(output: Path, record: dict[str, float]) -> None:
    """Append one line to ``log.jsonl``."""
    with (output / "log.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
