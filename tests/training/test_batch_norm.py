from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from diffusers_dedim.training.accelerator import settle_batch_norm


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3, momentum=0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)  # type: ignore[no-any-return]


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": 2 + 3 * torch.randn(8, 3, 16, 16, generator=generator)} for _ in range(6)]


def test_the_statistics_are_those_of_all_batches_alike() -> None:
    network, data = Network(), batches()
    network.norm.running_mean.fill_(99)  # type: ignore[union-attr]  # of other weights
    network.eval()
    settle_batch_norm(network, lambda batch: network(batch["x"]), data)
    means = torch.stack([batch["x"].mean((0, 2, 3)) for batch in data]).mean(0)
    variances = torch.stack([batch["x"].var((0, 2, 3)) for batch in data]).mean(0)
    torch.testing.assert_close(network.norm.running_mean, means)
    torch.testing.assert_close(network.norm.running_var, variances)
    assert network.norm.momentum == 0.2
    assert not network.training


def test_without_a_norm_no_batch_is_taken() -> None:
    def refuse() -> Iterator[Mapping[str, Tensor]]:
        raise AssertionError("a batch was taken")
        yield {}

    settle_batch_norm(nn.Conv2d(3, 3, 1), lambda batch: None, refuse())
