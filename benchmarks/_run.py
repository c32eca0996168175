"""What the benchmarks that protect photos and search for them share: options, pipeline, recognisers, people."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks._common import print_run
from diffusers_dedim import DeDiMPipeline, EncoderEnsemble
from diffusers_dedim.encoders import Recogniser, load_recogniser
from diffusers_dedim.evaluation import (
    ArrayCache,
    Gallery,
    Probe,
    embed_gallery,
    prepare_probes,
    read_protocol,
)
from diffusers_dedim.evaluation.methods import guided_by
from diffusers_dedim.faces import FaceDetector
from diffusers_dedim.pipeline.components import PlainModule

WHITE = "white"  # the recogniser that guides

Measure = Callable[[Any, Sequence[Recogniser], argparse.Namespace], dict[str, Any]]


def add_run_options(
    add: Callable[..., Any], black_boxes: Sequence[str], cached: str = "", *, nargs: str = "*"
) -> None:
    """Add ``--black-box``, ``--seed``, ``--cache``, ``--device`` and ``--json``.

    Args:
        add: the parser's ``add_argument``.
        black_boxes: the recognisers by default.
        cached: what is kept in ``--cache``, for ``--help``; without it there is no such option.
        nargs: "+" where a benchmark needs a black box.
    """
    names = ", ".join(spec.partition("=")[0] for spec in black_boxes)
    dlib = "; 'dlib' for dlib's" if "dlib" in black_boxes else ""
    text = f"recognisers unknown to the method{dlib} (default: {names})"
    add("--black-box", nargs=nargs, default=list(black_boxes), metavar="NAME=FILE.onnx", help=text)
    add("--seed", type=int, default=0)
    if cached:
        add("--cache", type=Path, help=f"folder for {cached} (default ~/.cache/diffusers-dedim/bench)")
    add("--device", default="cpu")
    add("--json", type=Path, help="write the JSON object here too")


def run_benchmark(
    module: str,
    parse: Callable[[Sequence[str]], argparse.Namespace],
    measure: Measure,
    arguments: Sequence[str] | None,
    load_pipeline: Callable[[], Any] | None,
    *,
    white: bool = True,
) -> None:
    """Run a benchmark and print its JSON object.

    Args:
        module: for the command in the JSON object, ``benchmarks.NAME``.
        parse: words -> options: those of `add_run_options` and, where the benchmark has it, ``weights``.
        measure: (pipeline, recognisers, options) -> what the JSON object holds.
        arguments: command line without the program; ``sys.argv`` by default.
        load_pipeline: makes the pipeline; ``--weights`` or the bundled one by default. Tests put a toy here.
        white: whether the recogniser that guides is the first of the recognisers; each of several (`name_guides`).
    """

    def run(options: argparse.Namespace) -> dict[str, Any]:
        pipe = open_pipeline(options, load_pipeline)
        own = name_guides(pipe.face_encoder) if white else []
        return measure(pipe, [*own, *map(load_recogniser, options.black_box)], options)

    print_run(module, parse, run, arguments)


def name_guides(face_encoder: nn.Module) -> list[Recogniser]:
    """The guide as a recogniser, ``white``; of an ensemble its members, ``white1``, ``white2`` and so on."""
    guide = face_encoder.module if isinstance(face_encoder, PlainModule) else face_encoder
    if isinstance(guide, EncoderEnsemble):
        return [Recogniser.of(f"{WHITE}{place}", member) for place, member in enumerate(guide.encoders, 1)]
    return [Recogniser.of(WHITE, face_encoder)]


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
    """Read ``--data``: the first ``--probes`` probes that show a face, and the embedded gallery.

    Raises:
        ValueError: none of these probes shows a face.
    """
    protocol = read_protocol(options.data).take_probes(options.probes)
    cache = ArrayCache(options.cache)
    gallery = embed_gallery(protocol.gallery, recognisers, detector, cache)
    probes = prepare_probes(protocol.probes, detector, cache)
    if not probes:
        raise ValueError(f"--data: no face was found in the first {options.probes} probes of {options.data}.")
    return probes, gallery
