"""Clocks and yardsticks: rounds as they are sampled, peak memory, and what a machine multiplies in a second."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MATMUL_SIZE, _MATMUL_RUNS = 2048, 5
MEGABYTE = 1024**2


def now(device: torch.device) -> float:
    """Seconds on a steady clock, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class RoundClock:
    """A ``callback_on_step_end`` that notes when rounds begin and end, within its ``with``.

    A round begins with its first denoiser call and ends with its last step; the judging after that lies between the
    rounds. What is done once for a face (finding, aligning, pasting, measuring) lies before and behind them.

    Attributes:
        rounds: begin and end of each, in seconds of `now`.

    Example:
        >>> with RoundClock(pipe) as clock:  # doctest: +SKIP
        ...     pipe(photo, callback_on_step_end=clock)
        >>> clock.steps, clock.between  # doctest: +SKIP
    """

    def __init__(self, pipe: Any) -> None:
        self.rounds: list[tuple[float, float]] = []
        self._pipe, self._begin = pipe, 0.0

    def __enter__(self) -> RoundClock:
        self._hook = self._pipe.unet.register_forward_pre_hook(self._note_call)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def __call__(
        self, pipe: Any, step_index: int, timestep: int, tensors: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Note the end of a step; the last that is noted before another first one ends the round."""
        end = now(self._pipe.device)
        if step_index == 0:
            self.rounds.append((self._begin, end))
        self.rounds[-1] = (self.rounds[-1][0], end)
        self._begin = 0.0
        return tensors

    def _note_call(self, *_: object) -> None:
        self._begin = self._begin or now(self._pipe.device)

    @property
    def steps(self) -> float:
        """Seconds inside the rounds."""
        return sum(end - begin for begin, end in self.rounds)

    @property
    def between(self) -> float:
        """Seconds between the rounds of a call: the judging of all but the last."""
        return self.rounds[-1][1] - self.rounds[0][0] - self.steps if self.rounds else 0.0


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


def matmul_gflops(dtype: torch.dtype, device: torch.device) -> float:
    """Highest rate of a large matrix product, in 10^9 floating-point operations a second: what the machine can do."""
    left = torch.randn(_MATMUL_SIZE, _MATMUL_SIZE, device=device).to(dtype)
    torch.mm(left, left)  # the first one sets up kernels
    best = float("inf")
    for _ in range(_MATMUL_RUNS):
        begin = now(device)
        torch.mm(left, left)
        best = min(best, now(device) - begin)
    return 2 * _MATMUL_SIZE**3 / best / 1e9
