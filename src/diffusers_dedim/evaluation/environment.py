"""What a measurement ran on, and from which commit: part of every file with numbers."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_SOURCE = Path(__file__).resolve().parent
_PACKAGES = ("diffusers", "facenet-pytorch", "numpy", "onnxruntime", "piq", "scikit-learn", "scipy")


def describe_environment(device: str | torch.device = "cpu") -> dict[str, Any]:
    """Commit, versions, processor and threads.

    Example:
        >>> sorted(describe_environment())[:3]
        ['commit', 'device', 'packages']
    """
    return {
        "commit": source_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "processor": _processor(),
        "device": _device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
    }


def source_commit() -> str:
    """The commit of this source tree, "-dirty" with changes that are not in it; "unknown" outside git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(_SOURCE), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # an installed copy may lie in another's repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """The CPU's name; `platform.processor` is empty on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
