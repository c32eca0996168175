"""What every benchmark's JSON object says of its run, and how it is printed."""

from __future__ import annotations

import argparse
import json
import math
import platform
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusers_dedim.evaluation.environment import source_commit

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def number(value: float, digits: int = 4) -> float | None:
    """Round for reading; JSON has no inf (PSNR of an unchanged face) or nan: null instead."""
    return round(float(value), digits) if math.isfinite(value) else None


def at_least(lowest: int) -> Callable[[str], int]:
    """Read a whole number of the command line, for argparse's ``type``."""

    def read(word: str) -> int:
        if int(word) < lowest:
            raise argparse.ArgumentTypeError(f"expected at least {lowest}, got {word}")
        return int(word)

    return read


def environment() -> dict[str, Any]:
    """What was measured, and on what."""
    return {
        "commit": source_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def print_results(results: dict[str, Any], module: str, words: Sequence[str], path: Path | None) -> None:
    """Print the JSON object, with the command that made it, and write it to ``path`` if there is one."""
    command = shlex.join(["python", "-m", module, *words])
    text = json.dumps({**results, "command": command}, indent=2, allow_nan=False)
    print(text)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
