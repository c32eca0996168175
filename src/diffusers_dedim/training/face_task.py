"""What every training task does with its data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from diffusers_dedim.training.config import TrainConfig
from diffusers_dedim.training.data import FaceCrops, batches, check_batch_size
from diffusers_dedim.training.loop import Batch


class FaceTask:
    """Base of the tasks: crops in batches, and what a resumed training must share with the first.

    Args:
        train_data, val_data: see `FaceCrops`.
        config: batch size, seed and number of worker processes are read.

    Attributes:
        model: the network, which the subclass makes.

    Raises:
        ValueError: the batch is larger than the training data.
    """

    model: nn.Module

    def __init__(self, train_data: FaceCrops, val_data: FaceCrops, config: TrainConfig) -> None:
        check_batch_size(config.batch_size, len(train_data))
        self.train_data, self.val_data, self._loading = train_data, val_data, config

    def identity(self) -> dict[str, Any]:
        """Fingerprint of the training faces; the validation faces are looked through too."""
        _ = self.val_data.fingerprint
        return {"data": self.train_data.fingerprint}

    def batches(self, start_batch: int) -> Iterator[Batch]:
        """Yield what `FaceCrops` holds, collated."""
        config = self._loading
        return batches(
            self.train_data, config.batch_size, config.seed, start_batch, config.num_workers,
            pin_memory=next(self.model.parameters()).is_cuda,
        )  # fmt: skip
