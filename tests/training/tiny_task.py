"""A task that trains in milliseconds; run as a script it is killed in the middle of a step."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn

from diffusers_dedim.training.config import LoopConfig
from diffusers_dedim.training.data import batches
from diffusers_dedim.training.loop import cosine_decay, train


class TinyNet(ModelMixin, ConfigMixin):
    config_name = "config.json"

    @register_to_config
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class TinyTask:
    """Linear regression with a little noise from the loop's generator; dies in step ``kill_at``."""

    def __init__(
        self,
        loop: LoopConfig,
        width: int = 4,
        kill_at: int | None = None,
        rows: int = 12,
        crop_size: int = 64,
    ) -> None:
        torch.manual_seed(loop.seed)
        self.crop_size = crop_size
        self.model, self.loop, self.kill_at = TinyNet(width), loop, kill_at
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(rows, width, generator=generator)
        self.x, self.y = x, x.sum(1, keepdim=True)
        self.steps_seen: list[int] = []  # batches, which are steps unless gradients are accumulated

    def identity(self) -> dict[str, Any]:
        return {"data": f"{len(self.x)} rows", "crop_size": self.crop_size}

    def batches(self, start_batch: int) -> Iterator[dict[str, Tensor]]:
        data = [{"x": x, "y": y} for x, y in zip(self.x, self.y, strict=True)]
        step = start_batch
        for batch in batches(data, self.loop.batch_size, self.loop.seed, start_batch, 0):  # type: ignore[arg-type]
            if step == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.steps_seen.append(step)
            step += 1
            yield batch

    def begin_step(self, share: float) -> float:
        return cosine_decay(share)

    def loss(self, model: Callable[..., Any], batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        noise = 0.1 * torch.randn(batch["x"].shape, generator=generator)
        return (model(batch["x"] + noise) - batch["y"]).square().mean()

    def validate(self, model: nn.Module) -> dict[str, float]:
        return {"mse": float((model(self.x) - self.y).square().mean().detach())}


def loop_config(output_dir: str, **changes: Any) -> LoopConfig:
    """One checkpoint a step and no clock: the learning rate depends on the step alone."""
    settings: dict[str, Any] = {
        "output_dir": output_dir,
        "minutes": 1e6,
        "max_steps": 8,
        "batch_size": 4,
        "learning_rate": 0.1,
        "warmup_steps": 1,
        "precision": "no",
        "log_every": 2,
        "checkpoint_minutes": 0.0,
        "ema_decay": 0.9,
    }
    return LoopConfig(**{**settings, **changes})


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, kill_at, accumulated = sys.argv[1], int(sys.argv[2]), int((*sys.argv, "1")[3])
    config = loop_config(folder, batch_size=4 // accumulated, gradient_accumulation_steps=accumulated)
    train(TinyTask(config, kill_at=kill_at), config)
