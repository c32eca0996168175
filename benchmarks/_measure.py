"""Clocks and yardsticks of the speed benchmarks: peak memory, matrix rate, arithmetic of a call."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MATMUL_SIZE, _MATMUL_RUNS = 2048, 5
MEGABYTE = 1024**2


def now(device: torch.device) -> float:
    """Seconds on a steady clock, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, Any]]:
    """Fill the given dictionary with the highest memory in use within the block, in MB.

    On CUDA it is what torch allocated there. On a processor it is the whole process, libraries and all; where the
    system cannot forget an earlier peak (anything but Linux) it is the peak since the start, and
    ``peak_memory_of`` says so.
    """
    measured: dict[str, Any] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield measured
        peak, kind = torch.cuda.max_memory_allocated(device), "device"
    else:
        with suppress(OSError):
            _CLEAR.write_text("5")  # resets VmHWM, see proc(5)
        yield measured
        peak, kind = _process_peak()
    measured.update(peak_memory_mb=round(peak / MEGABYTE), peak_memory_of=kind)


def _process_peak() -> tuple[int, str]:
    with suppress(OSError, StopIteration):
        lines = _STATUS.read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
        return int(kilobytes) * 1024, "process"
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in kB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "process since its start"


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Highest rate of a large matrix product, in floating-point operations a second: what the machine can do."""
    left = torch.randn(_MATMUL_SIZE, _MATMUL_SIZE, device=device).to(dtype)
    torch.mm(left, left)  # the first one sets up kernels
    best = float("inf")
    for _ in range(_MATMUL_RUNS):
        begin = now(device)
        torch.mm(left, left)
        best = min(best, now(device) - begin)
    return 2 * _MATMUL_SIZE**3 / best


class _Flops(TorchDispatchMode):
    """Adds up by PyTorch's formulas; its own `FlopCounterMode` also follows modules and fails in `autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of convolutions and matrix products within a call, forward and backward."""
    with _Flops() as counter:
        call()
    return counter.total
