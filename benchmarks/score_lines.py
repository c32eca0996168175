"""How to read a recogniser's cosine, for the demo page: strangers' median, and the line 1 in 1,000 of them reach.

    python -m benchmarks.score_lines

Compares all pairs of different people in the gallery of LFW (one photo a person). ``fmr_at``: the share of
them that reach a threshold h of the sampler (Eq. 4) by ``white``, the one that guides; of several guides it is the
one that matches best that counts, and each is listed by itself too. Standard output holds the JSON object alone. The
values belong into ``SCALES`` of ``diffusers_dedim/demo/protect.py``, by fingerprint: measure again when the weights
have changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._command import LFW, add_black_boxes, make_parser, number, run_benchmark
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.evaluation import ArrayCache, embed_gallery, read_protocol
from diffusers_dedim.evaluation.rates import impostor_scores
from diffusers_dedim.faces import FaceDetector
from diffusers_dedim.metrics.verification import threshold_at_fmr
from diffusers_dedim.pipeline.guides import WHITE, is_guide
from diffusers_dedim.pipeline.presets import PRESETS

FMR = 1e-3


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object; for the arguments see `run_benchmark`."""
    run_benchmark("benchmarks.score_lines", _parse, run_score_lines, arguments, load_pipeline)


def run_score_lines(
    pipe: Any, recognisers: Sequence[Recogniser], options: argparse.Namespace
) -> dict[str, Any]:
    """Search the gallery with each recogniser; returns what the JSON object holds."""
    detector, cache = FaceDetector(device=options.device), ArrayCache(options.cache)
    gallery = embed_gallery(read_protocol(options.data).gallery, recognisers, detector, cache)
    lines = {}
    for each in recognisers:
        thresholds = options.thresholds if is_guide(each.name) else ()  # the sampler asks no other
        impostor = impostor_scores(gallery, each.name)
        lines[each.name] = {"fingerprint": each.fingerprint, **read_line(impostor, thresholds)}
    guides = [each.name for each in recognisers if is_guide(each.name)]
    if len(guides) > 1:
        best = np.max([impostor_scores(gallery, name) for name in guides], axis=0)
        fingerprint = Recogniser.of(WHITE, pipe.face_encoder).fingerprint
        lines[WHITE] = {"fingerprint": fingerprint, **read_line(best, options.thresholds)}
    return {"fmr": FMR, "recognisers": lines}


def read_line(impostor: NDArray[np.float64], thresholds: Sequence[float] = ()) -> dict[str, Any]:
    """Median cosine of strangers and the threshold at which a share `FMR` of them match.

    Args:
        impostor: cosines of pairs of different people.
        thresholds: probabilities h (Eq. 4), for ``fmr_at``: the share of strangers at (2 h - 1) or above.
    """
    return {
        "strangers": number(float(np.median(impostor)), 3),
        "line": number(threshold_at_fmr(impostor, FMR), 3),
        "fmr_at": {f"{h:g}": number(float((impostor >= 2 * h - 1).mean()), 5) for h in thresholds},
        "pairs": len(impostor),
    }


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.score_lines", __doc__)
    add = parser.add_argument
    add("--data", type=Path, default=LFW, help="parquet or folder")
    add("--weights", type=Path, help="pipeline folder (default: the weights inside the package)")
    add("--device", default="cpu")
    add_black_boxes(add, ["dlib"], kept="embeddings")
    text = "h of the sampler (default: those of the presets, 0.55, 0.7)"
    presets = sorted({preset.threshold for preset in PRESETS.values()})
    add("--thresholds", type=float, nargs="*", default=[*presets, 0.55, 0.7], help=text)
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
