from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusers_dedim.pipeline.device import in_parts, is_out_of_memory


class Network:
    """Computes row by row, so that results are bit-equal; refuses more rows than fit."""

    def __init__(self, fits: int, message: str = "CUDA out of memory. Tried to allocate") -> None:
        self.fits, self.message, self.sizes = fits, message, list[int]()

    def __call__(self, crops: Tensor) -> Tensor:
        self.sizes.append(len(crops))
        if len(crops) > self.fits:
            raise RuntimeError(self.message)
        return torch.stack([row.flatten().cumsum(0) for row in crops])


CROPS = torch.randn(11, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("most", "fits", "sizes"),
    [
        (11, 11, [11]),
        (100, 11, [11]),
        (4, 11, [4, 4, 3]),
        (1, 1, [1] * 11),
        (8, 3, [8, 4, 2, 2, 2, 2, 2, 1]),  # halved until it fits, and kept there
        (100, 1, [11, 6, 3, 2, *[1] * 11]),
    ],
)
def test_parts_give_what_one_call_gives(most: int, fits: int, sizes: list[int]) -> None:
    network = Network(fits)
    assert torch.equal(in_parts(network, CROPS, most), Network(11)(CROPS))
    assert network.sizes == sizes


def test_what_halving_does_not_help_is_raised() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        in_parts(Network(0), CROPS, 4)
    other = Network(2, "a wrong weight")
    with pytest.raises(RuntimeError, match="a wrong weight"):
        in_parts(other, CROPS, 4)
    assert other.sizes == [4]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("Unable to allocate 1.2 GiB for an array"),
    ],
)
def test_a_lack_of_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: device-side assert triggered"), ValueError("out of memory"), KeyError(1)],
)
def test_other_errors_are_no_lack_of_memory(error: Exception) -> None:
    assert not is_out_of_memory(error)
