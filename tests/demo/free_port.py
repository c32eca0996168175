"""A TCP port for a server of a test."""

from __future__ import annotations

import socket


def free_port() -> int:
    """One that no other worker of pytest takes at the same time, as the first free from 7860 may be."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
