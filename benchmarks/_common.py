"""What every benchmark shares: data, parser, what the JSON object says of the run, and how it is printed."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from diffusers_dedim.evaluation.results import source_commit

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
LFW = SHARED / "data" / "lfw" / "lfw_1500.parquet"
# black boxes of aligned crops; none of the networks here learnt from them
CROP_RECOGNISERS = (
    f"foamliu={SHARED / 'weights' / 'mobilefacenet_foamliu.onnx'}",
    f"casia={SHARED / 'weights' / 'mobilefacenet_casia_xiaoccer.onnx'}",
)


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


def make_parser(module: str, doc: str) -> argparse.ArgumentParser:
    """The parser of ``benchmarks.NAME``; the first line of the module's docstring is the command's description."""
    return argparse.ArgumentParser(prog=f"python -m {module}", description=doc.splitlines()[0])


def print_run(
    module: str,
    parse: Callable[[Sequence[str]], argparse.Namespace],
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    arguments: Sequence[str] | None,
) -> None:
    """Run a benchmark, print its JSON object with the command that made it, and write it to ``--json``.

    Args:
        module: for the command in the JSON object, ``benchmarks.NAME``.
        parse: words -> options, ``json`` among them.
        measure: options -> what the JSON object holds.
        arguments: command line without the program; ``sys.argv`` by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(words)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print; stdout is for the JSON object alone
        results = measure(options)
    command = shlex.join(["python", "-m", module, *words])
    text = json.dumps({**results, "command": command}, indent=2, allow_nan=False)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")
