"""Measure what starting costs, in seconds of processor time, and what an installation weighs, package by package.

    python -m benchmarks.install --json out/install.json

Processor time, not wall time: other programs on the machine hardly change it. The packages weighed are those that
`pip install diffusers-dedim` brings, without extras, as they lie in the environment of the running Python.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diffusers_dedim
from benchmarks._command import at_least, make_parser, print_run

PACKAGE = "diffusers-dedim"
STARTS = {
    "import diffusers_dedim": "import diffusers_dedim",
    "dedim --help": "import sys; sys.argv = ['dedim', '--help']; from diffusers_dedim.cli.main import main; main()",
    "from diffusers_dedim import DeDiMPipeline": "from diffusers_dedim import DeDiMPipeline",
}
_ACCELERATOR = ("nvidia-", "cuda-", "triton")  # what PyTorch for a processor alone does without
_SHOWN_MB = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its JSON object."""
    print_run("benchmarks.install", parse, measure, arguments)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Words of the command line -> options."""
    parser = make_parser("benchmarks.install", __doc__ or "")
    parser.add_argument(
        "--repeats", type=at_least(1), default=5, help="starts of each, of which the quickest counts (5)"
    )
    return parser.parse_args(words)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each start, and MB of each package."""
    seconds = {name: round(start_seconds(code, options.repeats), 3) for name, code in STARTS.items()}
    return {"processor_seconds": seconds, **weigh(brought_by(PACKAGE))}


def start_seconds(code: str, repeats: int) -> float:
    """The least processor time, user's and system's, that a fresh Python took for ``code``, of so many."""
    taken = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(taken)


def brought_by(name: str) -> dict[str, Distribution]:
    """The packages that installing ``name`` brings, itself among them, by name; extras only where one is asked for."""
    found: dict[str, Distribution] = {}
    seen: set[str] = set()
    waiting = [Requirement(name)]
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        try:
            brought = distribution(wanted.name)
        except PackageNotFoundError:
            continue  # for another system
        found[canonicalize_name(wanted.name)] = brought
        waiting += _requirements(brought, wanted.extras)
    return found


def _requirements(package: Distribution, extras: set[str]) -> Iterator[Requirement]:
    for line in package.requires or ():
        wanted = Requirement(line)
        environments = [{"extra": extra} for extra in ("", *extras)]
        if wanted.marker is None or any(wanted.marker.evaluate(each) for each in environments):
            yield wanted


def weigh(packages: Mapping[str, Distribution]) -> dict[str, Any]:
    """MB (10^6 bytes) of all, of what serves accelerators alone, and of each package of at least 10."""
    sizes = {name: _size(name, package) / 1e6 for name, package in packages.items()}
    large = sorted((item for item in sizes.items() if item[1] >= _SHOWN_MB), key=lambda item: -item[1])
    return {
        "packages_brought": len(sizes),
        "megabytes": round(sum(sizes.values())),
        "of_these_for_accelerators": round(
            sum(size for name, size in sizes.items() if name.startswith(_ACCELERATOR))
        ),
        "megabytes_each": {name: round(size) for name, size in large},
    }


def _size(name: str, package: Distribution) -> int:
    if name == PACKAGE:  # an editable installation lists a link alone
        files = [path for path in Path(diffusers_dedim.__file__).parent.rglob("*") if path.is_file()]
    else:
        files = [Path(str(package.locate_file(file))) for file in package.files or ()]
    return sum(path.stat().st_size for path in files if path.exists() and path.suffix != ".pyc")


if __name__ == "__main__":
    main()
