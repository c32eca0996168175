"""Faces of nobody (Algorithm 1): draw them, show them, and measure how far they are from real ones.

    python -m benchmarks.samples --count 500 --steps 100 --json out/samples.json --grid out/samples.png

Standard output holds the JSON object alone; progress goes to standard error. The faces are those of `dedim sample`
with the same number, seed and steps; the picture shows the first of them, none chosen.

**Which features.** KID and FID in the literature are distances over Inception's features (``--features inception``;
torch-fidelity downloads its weights). Over a face recogniser's, the default, they are other measures of the same
formula: blind to much that a recogniser is trained to overlook (blur, colour, light), and comparable only with
values of the same recogniser, number of faces and real faces. ``features`` says beside each what it is over.

**Which pixels.** No validation crop is whole: where the photo did not reach (alpha 0), a crop repeats edges. So only
pixels that 99 % of the real faces know are compared; faces that lack one of them are left out, and in real and drawn
faces alike the rest of the crop repeats the nearest compared pixel. Of hair, neck and background next to nothing is
measured then. ``compared_area`` is that share of the crop.

**The floor.** Real faces are split at random into two halves. The drawn faces are measured against the first, and so
are as many real ones of the second: ``floor_kid``, ``floor_fid``. FID grows as faces become fewer, so it is read
beside its floor; ``floor_faces`` is smaller than ``faces`` where the second half is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._common import CROP_RECOGNISERS, ROOT, SHARED, at_least, environment, make_parser, number
from benchmarks._distances import Distance, Features, load_features, measure_distance
from benchmarks._measure import now
from benchmarks._run import run_benchmark
from diffusers_dedim.cli.sample import draw_faces, face_grid
from diffusers_dedim.extras import import_extra
from diffusers_dedim.training.data import CROP_SIZE, FaceCrops

KNOWN_SHARE = 0.99  # of the real faces must know a pixel for it to be compared
GRID_FACES, KID_SUBSETS = 36, 100

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class RealFaces:
    """Real faces that know all of one area.

    Attributes:
        pixels: uint8 ``[N, 112, 112, 3]``, beyond the area as `keep_area` leaves them.
        area: bool ``[112, 112]``, the pixels that are compared.
        left_out: faces of the data that lack one of these.
    """

    pixels: Pixels
    area: NDArray[np.bool_]
    left_out: int


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object.

    Args:
        arguments: command line without the program; ``sys.argv`` by default.
        load_pipeline: makes the pipeline; ``--weights`` or the bundled one by default. Tests put a fake here.
    """
    run_benchmark("benchmarks.samples", _parse, run_samples, arguments, load_pipeline, white=False)


def run_samples(pipe: Any, _: Sequence[Any], options: argparse.Namespace) -> dict[str, Any]:
    """Draw, show and measure; returns what the JSON object holds."""
    # before the drawing, which takes long: what is missing or does not fit is said at once
    if pipe.unet.config.sample_size != CROP_SIZE:
        raise ValueError(
            f"--weights: expected a denoiser of {CROP_SIZE} px, as the validation faces are, "
            f"got one of {pipe.unet.config.sample_size} px."
        )
    features = [load_features(spec) for spec in options.features]
    real = read_real_faces(options.data)
    options.grid.parent.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    start = now(device)
    images = draw_faces(pipe, options.count, options.seed, options.steps)
    seconds = now(device) - start
    face_grid(images[:GRID_FACES]).save(options.grid, optimize=True)
    drawn = np.stack([np.asarray(image) for image in images])
    return {
        "faces": len(drawn),
        "steps": options.steps,
        "seed": options.seed,
        **compare(real, drawn, features, options.subset_size, options.seed),
        "data": options.data,
        "grid": str(options.grid),
        "grid_faces": min(GRID_FACES, len(drawn)),
        "weights": str(options.weights or "bundled"),
        "device": options.device,
        "seconds_per_face": number(seconds / len(drawn)),
        **environment(),
    }


def read_real_faces(source: str) -> RealFaces:
    """Read the validation faces, and find the area to compare: see the module.

    Raises:
        ValueError: no pixel is known to enough faces, or fewer than four faces are left.
    """
    crops = FaceCrops(source, "val")
    items = [crops[index] for index in range(len(crops))]
    pixels = torch.stack([item["image"] for item in items]).permute(0, 2, 3, 1).numpy()
    known = torch.cat([item["known"] for item in items]).numpy()
    area: NDArray[np.bool_] = known.mean(axis=0) >= KNOWN_SHARE
    complete = (known | ~area).all(axis=(1, 2))
    if not area.any() or complete.sum() < 4:  # two halves, and a variance of each
        raise ValueError(
            f"--data: expected at least 4 faces that know the same pixels, got {int(complete.sum())} of "
            f"{len(crops)} faces over {int(area.sum())} pixels in {source}; give more, or whole, crops."
        )
    return RealFaces(keep_area(pixels[complete], area), area, int((~complete).sum()))


def keep_area(pixels: Pixels, area: NDArray[np.bool_]) -> Pixels:
    """Repeat beyond the area the nearest pixel in it, in faces ``[N, H, W, 3]``."""
    ndimage = import_extra("scipy.ndimage", "benchmarks.samples")
    _, (rows, columns) = ndimage.distance_transform_edt(~area, return_indices=True)
    kept: Pixels = pixels[:, rows, columns]
    return kept


def compare(
    real: RealFaces, drawn: Pixels, features: Sequence[Features], subset_size: int, seed: int
) -> dict[str, Any]:
    """Measure drawn faces ``[N, 112, 112, 3]`` against one half of the real ones, and the other half against it.

    Args:
        real: see `read_real_faces`.
        drawn: uint8.
        features: what they are compared by, one after the other.
        subset_size: faces a subset of KID; fewer where a set has fewer, and the result says how many.
        seed: of the halves and the subsets.
    """
    order = np.random.default_rng(seed).permutation(len(real.pixels))
    reference, other = np.split(order, [len(order) // 2])
    other = other[: len(drawn)]
    size = min(subset_size, len(reference), len(other), len(drawn))
    if size < subset_size:
        _say(f"too few faces for subsets of {subset_size}: KID is taken over subsets of {size}")
    sets = (real.pixels[reference], real.pixels[other], keep_area(drawn, real.area))
    return {
        "distances": [_compare_by(kind, sets, size, seed) for kind in features],
        "kid_subsets": KID_SUBSETS,
        "kid_subset_size": size,
        "reference_faces": len(reference),
        "floor_faces": len(other),
        "real_faces_left_out": real.left_out,
        "compared_area": number(real.area.mean()),
    }


def _compare_by(kind: Features, sets: Sequence[Pixels], subset_size: int, seed: int) -> dict[str, Any]:
    """Distances over one kind of features; ``sets``: the reference, other real faces, drawn faces."""
    _say(f"distances: {kind.name}")
    reference, other, drawn = map(kind.of, sets)
    measured = {"": drawn, "floor_": other}
    distances = {
        prefix: measure_distance(
            reference, faces, gamma=kind.gamma, subsets=KID_SUBSETS, subset_size=subset_size, seed=seed
        )
        for prefix, faces in measured.items()
    }
    dimensions = reference.shape[1]
    gamma = f"1/{dimensions}" if kind.gamma is None else f"{kind.gamma:g}"
    row: dict[str, Any] = {
        "features": kind.name,
        "dimensions": dimensions,
        "kid_kernel": f"({gamma} x.y + 1)^3",
    }
    for prefix, distance in distances.items():
        row |= _values(prefix, distance)
    return row


def _values(prefix: str, distance: Distance) -> dict[str, float | None]:
    values = {"kid": distance.kid, "kid_std_over_subsets": distance.kid_std, "fid": distance.fid}
    return {prefix + name: number(value, 6) for name, value in values.items()}


def _say(text: str) -> None:
    print(f"samples: {text}", file=sys.stderr, flush=True)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.samples", __doc__)
    add = parser.add_argument
    add("--count", type=at_least(2), default=500, help="faces to draw (default 500)")
    add("--steps", type=at_least(1), default=1000, help="denoising steps; 1000 in the paper, and the default")
    add("--seed", type=int, default=0, help="of the noise, the halves and the subsets")
    add(
        "--features",
        nargs="+",
        default=[CROP_RECOGNISERS[0]],
        metavar="NAME",
        help="what faces are compared by: 'inception', 'inception=FILE.pth', or a recogniser: 'NAME=FILE.onnx', "
        "'ours', 'facenet', 'dlib' (default: foamliu, a face recogniser of the shared weights)",
    )
    add("--subset-size", type=at_least(2), default=100, help="faces a subset of KID (default 100)")
    add("--data", default=str(SHARED / "data" / "faces"), help="validation faces: parquet file or folder")
    add("--grid", type=Path, default=ROOT / "out" / "samples.png", help="PNG of the first faces")
    add("--json", type=Path, help="write the JSON object here too")
    add("--weights", type=Path, help="pipeline folder (default: the weights inside the package)")
    add("--device", default="cpu")
    parser.set_defaults(black_box=[])  # the features are loaded here: Inception is no recogniser
    options = parser.parse_args(words)
    if options.grid.suffix.lower() != ".png":
        parser.error(f"--grid: expected a name that ends in .png, got {options.grid}")
    return options


if __name__ == "__main__":
    main()
