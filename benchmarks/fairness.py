"""Is everybody protected alike? Protect labelled faces, average by age, gender and race, print one JSON object.

    python -m benchmarks.fairness --faces 300

Standard output holds the JSON object alone; progress goes to standard error. Faces: UTKFace validation crops,
which no network was trained on; the labels are the data set's. Intervals are bootstrap 95 % over faces.
A similarity is the cosine of the protected crop to the original; each recogniser has its own scale, and ``white`` is
the one that guides. ``matched`` is the share of faces that it still takes for the original at FMR 0.1 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._command import (
    CROP_RECOGNISERS,
    FACES,
    add_black_boxes,
    interval,
    make_parser,
    number,
    run_benchmark,
)
from benchmarks._faces import measure_change, spread
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.evaluation import ArrayCache, Probe
from diffusers_dedim.evaluation.crops import Protected, crop_probes, protect_once
from diffusers_dedim.evaluation.fairness import GroupMeans, group_means, read_labels, utkface_groups
from diffusers_dedim.metrics.verification import threshold_at_fmr
from diffusers_dedim.training.data import FaceCrops

MATCH_FMR = 1e-3
_EVERYBODY = "everybody"


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object; for the arguments see `run_benchmark`."""
    run_benchmark("benchmarks.fairness", _parse, run_fairness, arguments, load_pipeline)


def run_fairness(pipe: Any, recognisers: Sequence[Recogniser], options: argparse.Namespace) -> dict[str, Any]:
    """Protect, measure and average by group; returns what the JSON object holds."""
    labels = read_labels(sorted(options.data.glob("val*.parquet")))
    rows = spread(len(labels["age"]), options.faces)
    groups = utkface_groups({name: column[rows] for name, column in labels.items()})
    for of_face in groups.values():  # too few faces are told now, not after protecting them
        group_means({"faces": np.ones(len(rows))}, of_face, min_count=options.min_group)
    probes = crop_probes(FaceCrops(options.data, "val"), rows.tolist())
    done = protect_once(
        pipe,
        probes,
        ArrayCache(options.cache),
        method=options.method,
        seed=options.seed,
        batch_size=options.batch_size,
        aligned=True,
    )
    measures = measure(probes, done, recognisers)
    means = {
        name: group_means(measures, of_face, min_count=options.min_group) for name, of_face in groups.items()
    }
    everybody = group_means(measures, [_EVERYBODY] * len(probes))
    return {
        "faces": len(probes),
        "method": options.method,
        "overall": {name: interval(mean.overall) for name, mean in everybody.items()},
        "groups": {name: _by_group(of_attribute) for name, of_attribute in means.items()},
        "largest_difference": {
            name: {measure: number(mean.difference) for measure, mean in of_attribute.items()}
            for name, of_attribute in means.items()
        },
        "min_group": options.min_group,
        "seconds_per_face": number(done.seconds / len(probes)),
    }


def measure(
    probes: Sequence[Probe], done: Protected, recognisers: Sequence[Recogniser]
) -> dict[str, NDArray[np.float64]]:
    """Values by measure and face.

    PSNR is nan where nothing changed, which ``changed`` counts. ``matched_*``: whether the recogniser still takes the
    protected face for the original, at the threshold that one in 1,000 pairs of the unprotected faces passes;
    missing with fewer than 1,000 pairs.
    """
    change = measure_change(probes, done.photos, recognisers)
    changed = np.isfinite(change.psnr)
    values: dict[str, NDArray[np.float64]] = {
        "reached_threshold": done.reached.astype(np.float64),
        "psnr": np.where(changed, change.psnr, np.nan),
        "ssim": change.ssim,
        "changed": changed.astype(np.float64),
    }
    for name, similarity in change.similarity.items():
        values[f"similarity_{name}"] = similarity
        matched = find_matches(change.originals[name], similarity)
        if matched is not None:
            values[f"matched_{name}"] = matched
    return values


def find_matches(
    originals: NDArray[np.floating[Any]], similarity: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Which similarities pass the threshold that one in 1,000 pairs of the unprotected faces does: 1 or 0 a face.

    Args:
        originals: embeddings ``[N, D]`` of the unprotected faces.
        similarity: ``[N]``, of each protected face with its original.

    Returns:
        ``[N]``; None with fewer than 1,000 pairs.
    """
    impostors = (originals @ originals.T)[np.triu_indices(len(originals), 1)].astype(np.float64)
    if len(impostors) * MATCH_FMR < 1:
        return None
    return (similarity >= threshold_at_fmr(impostors, MATCH_FMR)).astype(np.float64)


def _by_group(means: dict[str, GroupMeans]) -> dict[str, Any]:
    """Group -> number of faces and its means."""
    rows: dict[str, Any] = {
        group: {"faces": count} for group, count in next(iter(means.values())).counts.items()
    }
    for name, mean in means.items():
        for group, estimate in mean.by_group.items():
            rows[group][name] = interval(estimate)
    return rows


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.fairness", __doc__)
    add = parser.add_argument
    add("--faces", type=int, default=300, help="faces, evenly spaced over the validation set (default 300)")
    add("--method", default="dedim:fast", help="dedim:PRESET or another without targets (default dedim:fast)")
    add("--weights", type=Path, help="pipeline folder (default: the weights inside the package)")
    add("--min-group", type=int, default=10, help="leave out smaller groups (default 10 faces)")
    add("--data", type=Path, default=FACES, help="folder of val*.parquet with labels")
    add("--batch-size", type=int, default=8, help="faces per call of the pipeline (default 8)")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add_black_boxes(add, CROP_RECOGNISERS, kept="protected crops")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
