"""What the benchmarks share as commands: words, pipeline, recognisers and people, and the JSON object they print."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.encoders import Recogniser, load_recogniser
from diffusers_dedim.evaluation import (
    ArrayCache,
    Gallery,
    Probe,
    embed_gallery,
    prepare_probes,
    read_protocol,
)
from diffusers_dedim.evaluation.results import describe_environment
from diffusers_dedim.faces import FaceDetector
from diffusers_dedim.metrics.intervals import Estimate
from diffusers_dedim.pipeline.guides import guided_by, name_guides

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
LFW = SHARED / "data" / "lfw" / "lfw_1500.parquet"
FACES = SHARED / "data" / "faces"
# black boxes of aligned crops, of different kinds: no guide learnt from them. mbf_w2 is the strongest
CROP_RECOGNISERS = (
    f"casia={SHARED / 'weights' / 'mobilefacenet_casia_xiaoccer.onnx'}",
    f"facenet={SHARED / 'weights' / 'facenet_irv1_vggface2.onnx'}",
    f"mbf_w2={SHARED / 'weights' / 'mbf_w2_espdl.onnx'}",
)
BLACK_BOXES = (*CROP_RECOGNISERS, "dlib")


def number(value: float, digits: int = 4) -> float | None:
    """Round for reading; JSON has no inf (PSNR of an unchanged face) or nan: null instead."""
    return round(float(value), digits) if math.isfinite(value) else None


def interval(estimate: Estimate) -> dict[str, float | None]:
    """A mean and its 95 % interval as JSON."""
    ends = {"mean": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: None if value is None else number(value) for name, value in ends.items()}


def at_least(lowest: int) -> Callable[[str], int]:
    """Read a whole number of the command line, for argparse's ``type``."""

    def read(word: str) -> int:
        if int(word) < lowest:
            raise argparse.ArgumentTypeError(f"expected at least {lowest}, got {word}")
        return int(word)

    return read


def say(module: str, text: object) -> None:
    """Tell how far a benchmark is; what is measured already is not lost where it is stopped."""
    print(f"{module}: {text}", file=sys.stderr, flush=True)


def make_parser(module: str, doc: str) -> argparse.ArgumentParser:
    """The parser of ``benchmarks.NAME``; the first line of the module's docstring is the command's description."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=doc.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the JSON object here too")
    return parser


def add_black_boxes(
    add: Callable[..., Any], black_boxes: Sequence[str], *, nargs: str = "*", kept: str = ""
) -> None:
    """Add ``--black-box``, and ``--cache`` where something is kept.

    Args:
        add: the parser's ``add_argument``.
        black_boxes: those by default.
        nargs: "+" where a benchmark needs one.
        kept: what the cache keeps from run to run.
    """
    names = ", ".join(spec.partition("=")[0] for spec in black_boxes)
    text = f"recognisers unknown to the method; 'dlib' for dlib's (default: {names})"
    add("--black-box", nargs=nargs, default=list(black_boxes), metavar="NAME=FILE.onnx", help=text)
    if kept:
        add("--cache", type=Path, help=f"folder for {kept} (default ~/.cache/diffusers-dedim/bench)")


def print_run(
    module: str,
    parse: Callable[[Sequence[str]], argparse.Namespace],
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    arguments: Sequence[str] | None,
) -> None:
    """Run a benchmark, print its JSON object with what it was measured on, and write it to ``--json``.

    Args:
        module: for the command in the JSON object, ``benchmarks.NAME``.
        parse: words -> options, those of `make_parser` among them.
        measure: options -> what the JSON object holds besides seed, seconds, machine and command.
        arguments: command line without the program; ``sys.argv`` by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options, begin = parse(words), time.perf_counter()
    # now, for the tree may be edited meanwhile
    measured_on = describe_environment(getattr(options, "device", "cpu"))
    with contextlib.redirect_stdout(sys.stderr):  # libraries print; stdout is for the JSON object alone
        results = measure(options)
    if "seed" in options:
        results["seed"] = options.seed
    results["seconds"] = number(time.perf_counter() - begin, 1)
    results |= {**measured_on, "command": shlex.join(["python", "-m", module, *words])}
    text = json.dumps(results, indent=2, allow_nan=False)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")


def run_with_pipeline(
    module: str,
    parse: Callable[[Sequence[str]], argparse.Namespace],
    measure: Callable[[Any, argparse.Namespace], dict[str, Any]],
    arguments: Sequence[str] | None,
    load_pipeline: Callable[[], Any] | None,
) -> None:
    """`print_run` of a benchmark that needs a pipeline and no recogniser beside its own.

    Args:
        module, arguments: see `print_run`.
        parse: words -> options: ``device`` and, where it has it, ``weights``.
        measure: (pipeline, options) -> what the JSON object holds.
        load_pipeline: makes the pipeline; ``--weights`` or the bundled one by default. Tests put a toy here.
    """
    print_run(
        module, parse, lambda options: measure(open_pipeline(options, load_pipeline), options), arguments
    )


def run_benchmark(
    module: str,
    parse: Callable[[Sequence[str]], argparse.Namespace],
    measure: Callable[[Any, Sequence[Recogniser], argparse.Namespace], dict[str, Any]],
    arguments: Sequence[str] | None,
    load_pipeline: Callable[[], Any] | None,
) -> None:
    """`print_run` of a benchmark that protects faces with a pipeline and lets recognisers judge.

    Args:
        module, arguments: see `print_run`.
        parse: words -> options: ``device``, ``black_box`` and, where it has it, ``weights``.
        measure: (pipeline, recognisers, options) -> what the JSON object holds. Who guides is the first of the
            recognisers (`name_guides`).
        load_pipeline: makes the pipeline; ``--weights`` or the bundled one by default. Tests put a toy here.
    """

    def run(options: argparse.Namespace) -> dict[str, Any]:
        pipe = open_pipeline(options, load_pipeline)
        black_boxes = map(load_recogniser, options.black_box)
        return measure(pipe, [*name_guides(pipe.face_encoder), *black_boxes], options)

    print_run(module, parse, run, arguments)


def open_pipeline(options: argparse.Namespace, load: Callable[[], Any] | None) -> Any:
    """Make the pipeline: ``load``'s, or that of ``--weights`` or the bundled one; on ``--device``, without bars.

    Where there is a ``--white-box``, that guides.
    """
    weights = getattr(options, "weights", None)
    pipe = (load or (lambda: DeDiMPipeline.from_pretrained(weights)))().to(options.device)
    pipe.set_progress_bar_config(disable=True)
    guides = getattr(options, "white_box", None)
    return guided_by(pipe, guides) if guides else pipe


def read_people(
    options: argparse.Namespace, recognisers: Sequence[Recogniser], detector: FaceDetector
) -> tuple[list[Probe], Gallery]:
    """`read_probes`, and the embedded gallery."""
    probes = read_probes(options, detector)
    gallery = read_protocol(options.data).gallery
    return probes, embed_gallery(gallery, recognisers, detector, ArrayCache(options.cache))


def read_probes(options: argparse.Namespace, detector: FaceDetector) -> list[Probe]:
    """Read ``--data``: those of the first ``--probes`` probes that show a face.

    Raises:
        ValueError: none of them does.
    """
    records = read_protocol(options.data).take_probes(options.probes).probes
    probes = prepare_probes(records, detector, ArrayCache(options.cache))
    if not probes:
        raise ValueError(f"--data: no face was found in the first {options.probes} probes of {options.data}.")
    return probes
