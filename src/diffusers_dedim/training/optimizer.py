"""The optimisers of the training commands."""

from __future__ import annotations

import torch
from torch import nn

from diffusers_dedim.extras import import_extra
from diffusers_dedim.training.config import LoopConfig


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
        lr=rate, weight_decay=decay, nesterov=True, betas=(0.9, 0.999),
    )  # fmt: skip
    return optimizer
