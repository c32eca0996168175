"""How to read a recogniser's cosine, for the demo page: strangers' median, and the line 1 in 1,000 of them reach.

    python -m benchmarks.score_lines

Compares all pairs of the gallery of LFW (one photo a person, so no pair is of one person). ``fmr_at``: the share of
them that reach a threshold h of the sampler (Eq. 4) by the bundled encoder, which guides. Standard output holds
the JSON object alone. The values belong into ``SCALES`` of ``diffusers_dedim/demo/scores.py``, by fingerprint:
measure again when the weights have changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._common import LFW, environment, make_parser, number, print_run
from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.encoders import Recogniser, load_recogniser
from diffusers_dedim.evaluation import ArrayCache, embed_gallery, read_protocol
from diffusers_dedim.faces import FaceDetector
from diffusers_dedim.metrics.verification import threshold_at_fmr
from diffusers_dedim.pipeline.presets import PRESETS

FMR = 1e-3


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the bundled encoder and the recognisers asked for, and print one JSON object."""
    print_run("benchmarks.score_lines", _parse, run_score_lines, arguments)


def run_score_lines(options: argparse.Namespace) -> dict[str, Any]:
    """Search the gallery with each recogniser; returns what the JSON object holds."""
    encoder = DeDiMPipeline.from_pretrained().face_encoder
    recognisers = [Recogniser.of("bundled", encoder), *map(load_recogniser, options.black_box)]
    gallery = embed_gallery(
        read_protocol(options.data).gallery, recognisers, FaceDetector(), ArrayCache(options.cache)
    )
    lines = {
        recogniser.name: {
            "fingerprint": recogniser.fingerprint,
            **read_line(
                gallery.embeddings[recogniser.name],
                options.thresholds if recogniser.encoder is encoder else (),  # of the one that guides
            ),
        }
        for recogniser in recognisers
    }
    return {"fmr": FMR, "recognisers": lines, **environment()}


def read_line(embeddings: NDArray[np.float32], thresholds: Sequence[float] = ()) -> dict[str, Any]:
    """Median cosine of strangers and the threshold at which a share `FMR` of them match.

    Args:
        embeddings: ``[N, D]`` unit vectors, one photo a person; rows of nan (no face found) are left out.
        thresholds: probabilities h (Eq. 4), for ``fmr_at``: the share of strangers at (2 h - 1) or above.
    """
    found = embeddings[~np.isnan(embeddings).any(axis=1)]
    impostor = (found @ found.T)[np.triu_indices(len(found), 1)]
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
    add("--cache", type=Path, help="folder for embeddings (default as for benchmarks.main_job)")
    add("--black-box", nargs="*", default=["dlib"], help="as for benchmarks.main_job")
    text = "h of the sampler (default: those of the presets, 0.55, 0.7)"
    presets = sorted({preset.threshold for preset in PRESETS.values()})
    add("--thresholds", type=float, nargs="*", default=[*presets, 0.55, 0.7], help=text)
    add("--json", type=Path, help="write the JSON object here too")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
