"""Single measures against waiting and for cheaper calls, each with and without it; print one JSON object.

    python -m benchmarks.trials --photos 32

Standard output holds the JSON object alone; progress goes to standard error. What is timed is run ``--repeats`` times,
the variants in turns, and the fastest counts: a machine's speed varies from minute to minute. Trials:

- ``detector``: MTCNN photo by photo, and on ``--places`` photos of equal size at once.
- ``queue``: the pipeline on batches of photos, and `FaceQueue`, which gives the place of a finished face to the next.
- ``beside``: reading, finding faces and writing in threads beside the networks, and all of it one after another.
- ``denoiser``: a call in other number types and memory layouts, compiled, and on a window around the mask alone.
- ``recogniser``: the gradient that guidance takes, as it is and compiled.
- ``directions``: how alike the pushes are that follow one another, within a round and from round to round; and what it
  costs to take a round's first direction for all its steps, or the last round's as a momentum.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import _trial_directions, _trial_networks, _trial_stream
from benchmarks._common import CROP_RECOGNISERS, LFW, at_least, environment, make_parser, number, print_run
from benchmarks._run import open_pipeline
from diffusers_dedim.encoders import load_recogniser
from diffusers_dedim.evaluation import read_protocol
from diffusers_dedim.pipeline.presets import PRESETS

Trial = Callable[[Any, list[bytes], argparse.Namespace], dict[str, Any]]


def _directions(pipe: Any, photos: list[bytes], options: argparse.Namespace) -> dict[str, Any]:
    judge = load_recogniser(options.black_box)
    return _trial_directions.run_directions(pipe, photos, judge, PRESETS[options.preset], options.places)


TRIALS: dict[str, Trial] = {
    "detector": _trial_stream.run_detector,
    "queue": _trial_stream.run_queue,
    "beside": _trial_stream.run_beside,
    "denoiser": _trial_networks.run_denoiser,
    "recogniser": _trial_networks.run_recogniser,
    "directions": _directions,
}


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object.

    Args:
        arguments: command line without the program; ``sys.argv`` by default.
        load_pipeline: makes the pipeline; the bundled one by default. Tests put a toy here.
    """
    print_run("benchmarks.trials", _parse, partial(run_trials, load_pipeline=load_pipeline), arguments)


def run_trials(options: argparse.Namespace, load_pipeline: Callable[[], Any] | None) -> dict[str, Any]:
    """Run the chosen trials; returns what the JSON object holds."""
    begin = time.perf_counter()
    records = read_protocol(options.data).probes[: options.photos]
    photos = [record.read_bytes() for record in records]
    pipe = open_pipeline(options, load_pipeline)
    results = {}
    for name in options.only:
        results[name] = TRIALS[name](pipe, photos, options)
        # a run that is stopped has not measured for nothing
        print(f"trials: {name}: {results[name]}", file=sys.stderr, flush=True)
    return {
        "trials": results,
        "photos": len(photos),
        "places": options.places,
        "preset": options.preset,
        "device": options.device,
        "seconds": number(time.perf_counter() - begin, 1),
        **environment(),
    }


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.trials", __doc__)
    add = parser.add_argument
    add("--only", nargs="+", default=list(TRIALS), choices=list(TRIALS), help="trials (default: all)")
    add("--photos", type=at_least(1), default=32, help="first N probes of the data (default 32)")
    add("--places", type=at_least(1), default=8, help="faces, or photos, that go together (default 8)")
    add("--repeats", type=at_least(1), default=2, help="times that each variant is run (default 2)")
    guided = [name for name, preset in PRESETS.items() if preset.guidance == "estimate"]
    add("--preset", default="fast", choices=guided)
    add("--data", type=Path, default=LFW, help="parquet or folder")
    add("--black-box", default=CROP_RECOGNISERS[0], metavar="NAME=FILE.onnx", help="judges the directions")
    add("--device", default="cpu")
    add("--json", type=Path, help="write the JSON object here too")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
