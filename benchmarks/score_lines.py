"""How to read a recogniser's cosine, for the demo page: strangers' median, and the line 1 in 1,000 of them reach.

    python -m benchmarks.score_lines

Compares all pairs of the gallery of LFW (one photo a person, so no pair is of one person). Standard output holds
the JSON object alone. The values belong into ``SCALES`` of ``diffusers_dedim/demo/scores.py``, by fingerprint:
measure again when the weights have changed.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._common import SHARED, environment, number, print_results
from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.evaluation import (
    ArrayCache,
    Recogniser,
    embed_gallery,
    load_recogniser,
    read_protocol,
)
from diffusers_dedim.evaluation.verification import threshold_at_fmr
from diffusers_dedim.faces import FaceDetector

FMR = 1e-3


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the bundled encoder and the recognisers asked for, and print one JSON object."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "lfw" / "lfw_1500.parquet")
    parser.add_argument(
        "--cache", type=Path, help="folder for embeddings (default as for benchmarks.main_job)"
    )
    parser.add_argument("--black-box", nargs="*", default=["dlib"], help="as for benchmarks.main_job")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(words)
    with contextlib.redirect_stdout(sys.stderr):  # libraries print; stdout is for the JSON object alone
        encoder = DeDiMPipeline.from_pretrained().face_encoder
        recognisers = [Recogniser.of("bundled", encoder), *map(load_recogniser, options.black_box)]
        gallery = embed_gallery(
            read_protocol(options.data).gallery, recognisers, FaceDetector(), ArrayCache(options.cache)
        )
    lines = {
        recogniser.name: {
            "fingerprint": recogniser.fingerprint,
            **read_line(gallery.embeddings[recogniser.name]),
        }
        for recogniser in recognisers
    }
    print_results(
        {"fmr": FMR, "recognisers": lines, **environment()}, "benchmarks.score_lines", words, options.json
    )


def read_line(embeddings: NDArray[np.float32]) -> dict[str, Any]:
    """Median cosine of strangers and the threshold at which a share `FMR` of them match.

    Args:
        embeddings: ``[N, D]`` unit vectors, one photo a person; rows of nan (no face found) are left out.
    """
    found = embeddings[~np.isnan(embeddings).any(axis=1)]
    impostor = (found @ found.T)[np.triu_indices(len(found), 1)]
    return {
        "strangers": number(float(np.median(impostor)), 3),
        "line": number(threshold_at_fmr(impostor, FMR), 3),
        "pairs": len(impostor),
    }


if __name__ == "__main__":
    main()
