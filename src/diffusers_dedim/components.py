"""Let any `torch.nn.Module` be a part of a diffusers pipeline."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn


class PlainModule(nn.Module):
    """Give a plain module the ``device`` and ``dtype`` that `DiffusionPipeline` asks of its parts.

    Attributes:
        module: the module itself.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    @property
    def device(self) -> torch.device:
        """Where the module's numbers are; the CPU if it has none."""
        return self._any_tensor().device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the module's numbers; float32 if it has none."""
        return self._any_tensor().dtype

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return self.module(*args, **kwargs)

    def _any_tensor(self) -> torch.Tensor:
        return next(chain(self.parameters(), self.buffers()), torch.empty(0))


def as_component(module: nn.Module) -> nn.Module:
    """Return the module, wrapped where it has no ``device`` and ``dtype`` of its own.

    Example:
        >>> as_component(nn.Linear(2, 2)).dtype
        torch.float32
    """
    return module if hasattr(module, "device") and hasattr(module, "dtype") else PlainModule(module)
