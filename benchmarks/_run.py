"""What the benchmarks' ``main`` functions share: pipeline, recognisers, one JSON object on standard output."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks._common import print_results
from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.evaluation import Recogniser, load_recogniser

WHITE = "white"  # the recogniser that guides

Measure = Callable[[Any, Sequence[Recogniser], argparse.Namespace], dict[str, Any]]


def run_benchmark(
    module: str, parse: Callable[[Sequence[str]], argparse.Namespace], measure: Measure,
    arguments: Sequence[str] | None, load_pipeline: Callable[[], Any] | None, *, white: bool = True,
) -> None:  # fmt: skip
    """Run a benchmark and print its JSON object.

    Args:
        module: for the command in the JSON object, ``benchmarks.NAME``.
        parse: words -> options: ``device``, ``black_box``, ``json`` and, without ``load_pipeline``, ``weights``.
        measure: (pipeline, recognisers, options) -> what the JSON object holds.
        arguments: command line without the program; ``sys.argv`` by default.
        load_pipeline: makes the pipeline; ``--weights`` or the bundled one by default.
        white: whether the pipeline's own recogniser is the first of the recognisers.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(words)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print; stdout is for the JSON object alone
        pipe = open_pipeline(options, load_pipeline)
        own = [Recogniser.of(WHITE, pipe.face_encoder)] if white else []
        results = measure(pipe, [*own, *map(load_recogniser, options.black_box)], options)
    print_results(results, module, words, options.json)


def open_pipeline(options: argparse.Namespace, load: Callable[[], Any] | None) -> Any:
    """Make the pipeline: ``load``'s, or that of ``--weights`` or the bundled one; on ``--device``, without bars."""
    pipe = (load or (lambda: DeDiMPipeline.from_pretrained(options.weights)))().to(options.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe
