"""How PyTorch's threads wait for each other. Without PyTorch: it has to be said before that is loaded."""

from __future__ import annotations

import os

_SPINS = "1000"  # some tens of microseconds; GNU OpenMP's own is 300,000


def wait_briefly() -> None:
    """Let threads that wait for each other sleep after microseconds, where GNU OpenMP lets them spin for milliseconds.

    A thread that spins holds the core that the one it waits for may need, where other programs run beside: two
    threads on two busy cores took 26 to 31 s for what takes 13 (docs/performance.md). GNU OpenMP reads
    ``GOMP_SPINCOUNT`` when PyTorch is loaded, so call this before. What the user has set stays.

    Example:
        >>> wait_briefly()
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
