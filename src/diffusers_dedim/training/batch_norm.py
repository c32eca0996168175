"""Statistics of batch norm for the averaged weights, which are what is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn


def settle_batch_norm(
    network: nn.Module, forward: Callable[[Mapping[str, Tensor]], object], batches: Iterable[Mapping[str, Tensor]]
) -> None:  # fmt: skip
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
