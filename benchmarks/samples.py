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
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks._clock import now
from benchmarks._command import (
    CROP_RECOGNISERS,
    FACES,
    ROOT,
    at_least,
    make_parser,
    number,
    run_with_pipeline,
    say,
)
from diffusers_dedim.cli.sample import draw_faces, face_grid
from diffusers_dedim.encoders import load_recogniser
from diffusers_dedim.extras import import_extra
from diffusers_dedim.training.data import CROP_SIZE, FaceCrops, to_model_range

KNOWN_SHARE = 0.99  # of the real faces must know a pixel for it to be compared
GRID_FACES, KID_SUBSETS = 36, 100
INCEPTION = "inception"
_POOL = 2048  # numbers of Inception's last pooling layer, the one that published FID and KID are of
_AT_ONCE = 64

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


@dataclass(frozen=True, eq=False)
class Features:
    """What faces are compared by.

    Attributes:
        name: says of what kind the features are: distances over one kind say nothing about another's.
        extract: uint8 crops ``[N, 3, 112, 112]`` -> features ``[N, D]``.
        gamma: of KID's kernel ``(gamma x.y + 1)^3``; None is 1 / D, as published for Inception.
    """

    name: str
    extract: Callable[[Tensor], Tensor]
    gamma: float | None

    @torch.no_grad()
    def of(self, pixels: Pixels) -> Tensor:
        """Features of uint8 crops ``[N, 112, 112, 3]``: float64 ``[N, D]``."""
        pieces = torch.split(torch.from_numpy(pixels).permute(0, 3, 1, 2), _AT_ONCE)
        return torch.cat([self.extract(piece).double().cpu() for piece in pieces])


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object; for the arguments see `run_with_pipeline`."""
    run_with_pipeline("benchmarks.samples", _parse, run_samples, arguments, load_pipeline)


def run_samples(pipe: Any, options: argparse.Namespace) -> dict[str, Any]:
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
        **compare(real, drawn, features, options.subset_size, options.seed),
        "data": options.data,
        "grid": str(options.grid),
        "grid_faces": min(GRID_FACES, len(drawn)),
        "weights": str(options.weights or "bundled"),
        "seconds_per_face": number(seconds / len(drawn)),
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
        say("samples", f"too few faces for subsets of {subset_size}: KID is taken over subsets of {size}")
    sets = (real.pixels[reference], keep_area(drawn, real.area), real.pixels[other])
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
    """Distances over one kind of features; ``sets``: the reference, drawn faces, other real faces."""
    say("samples", f"distances: {kind.name}")
    reference, *measured = map(kind.of, sets)
    dimensions = reference.shape[1]
    gamma = f"1/{dimensions}" if kind.gamma is None else f"{kind.gamma:g}"
    row: dict[str, Any] = {
        "features": kind.name,
        "dimensions": dimensions,
        "kid_kernel": f"({gamma} x.y + 1)^3",
    }
    for prefix, faces in zip(("", "floor_"), measured, strict=True):
        distances = measure_distances(
            reference, faces, gamma=kind.gamma, subsets=KID_SUBSETS, subset_size=subset_size, seed=seed
        )
        row |= {prefix + name: number(value, 6) for name, value in distances.items()}
    return row


def measure_distances(
    real: Tensor, drawn: Tensor, *, gamma: float | None, subsets: int, subset_size: int, seed: int
) -> dict[str, float]:
    """Measure how far two sets of features ``[N, D]`` and ``[M, D]`` are apart, by torchmetrics.

    Args:
        real, drawn: the sets.
        gamma: of KID's kernel, see `Features`.
        subsets: how many pairs of subsets KID is the mean of.
        subset_size: rows a subset, from 2 to the smaller of N and M.
        seed: of the subsets.

    Returns:
        ``kid``, the mean over the subsets of the squared maximum mean discrepancy (Binkowski et al. 2018), which has no
        bias from the sets' sizes, with its standard deviation ``kid_std_over_subsets``; and ``fid``, the Fréchet
        distance of two normal distributions (Heusel et al. 2017), the greater the fewer faces. Both are 0 for equal
        distributions.

    Raises:
        ImportError: torchmetrics is missing.
    """
    features = _Given(real.shape[1])
    frechet, kernel = _import_metrics()
    fid = frechet(feature=features)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features in buffer.*")
        kid = kernel(feature=features, subsets=subsets, subset_size=subset_size, gamma=gamma)
    for metric in (fid, kid):
        metric.update(real, real=True)
        metric.update(drawn, real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws the subsets from torch's global generator
        torch.manual_seed(seed)
        mean, std = kid.compute()
    return {"kid": float(mean), "kid_std_over_subsets": float(std), "fid": float(fid.compute())}


class _Given(nn.Module):
    """Lets torchmetrics take features where it expects images: each face is embedded once for all distances."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def load_features(spec: str) -> Features:
    """Load what faces are compared by.

    Args:
        spec: ``inception`` (torch-fidelity's copy of the weights that published figures are made with; that package
            downloads them), ``inception=FILE.pth`` (the same, from a file; it is unpickled, so give only a file
            that you trust), or a recogniser as `load_recogniser` takes it.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: a package is missing; names the command that installs it.
        RuntimeError: Inception's weights cannot be had.
        ValueError: the spec has another form, or the file does not fit.
    """
    _import_metrics()  # now, and not after the drawing
    name, _, file = spec.partition("=")
    if name == INCEPTION:
        return Features(f"Inception v3, {_POOL} numbers of the last pooling", _load_inception(file), None)
    try:
        recogniser = load_recogniser(spec)
    except ValueError as error:
        raise ValueError(
            f"--features: expected 'inception', 'inception=FILE.pth' or a face recogniser. {error}"
        ) from error

    def embed(crops: Tensor) -> Tensor:
        embeddings: Tensor = recogniser.encoder(to_model_range(crops))
        return embeddings

    # Unit vectors: with the kernel's usual 1 / D their products hardly differ from 0, and only the means would count.
    return Features(f"face recogniser {recogniser.name}", embed, 1.0)


def _load_inception(file: str) -> nn.Module:
    """Inception v3 as torchmetrics runs it: uint8 ``[N, 3, H, W]`` -> ``[N, 2048]``."""
    wanted = f"--features {INCEPTION}"
    module = "torch_fidelity.feature_extractor_inceptionv3"
    fidelity = import_extra(module, wanted, "pip install torch-fidelity")
    frechet, _ = _import_metrics()
    if file and not Path(file).is_file():
        raise FileNotFoundError(f"{wanted}: there is no file {file!r}.")
    try:
        metric = frechet(_POOL, feature_extractor_weights_path=file or None)
    except Exception as error:  # types of urllib, pickle and torch, without a common one
        problem = f"{file} cannot be read as its weights" if file else "its weights could not be downloaded"
        raise RuntimeError(
            f"{wanted}: {problem} ({error}). Get {fidelity.URL_INCEPTION_V3} where there is a network and give "
            f"{wanted}=FILE.pth, or compare by a face recogniser: --features NAME=FILE.onnx."
        ) from error
    network: nn.Module = metric.inception
    return network


def _import_metrics() -> tuple[Any, Any]:
    """FID and KID of torchmetrics, whose package exports them only where torch-fidelity is installed."""
    fid, kid = (
        import_extra(f"torchmetrics.image.{name}", "benchmarks.samples", "pip install torchmetrics")
        for name in ("fid", "kid")
    )
    return fid.FrechetInceptionDistance, kid.KernelInceptionDistance


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.samples", __doc__)
    add = parser.add_argument
    add("--count", type=at_least(2), default=500, help="faces to draw (default 500)")
    add("--steps", type=at_least(1), default=1000, help="denoising steps; 1000 in the paper, and the default")
    text = (
        "what faces are compared by: 'inception', 'inception=FILE.pth', or a recogniser: 'NAME=FILE.onnx', 'ours', "
        "'facenet', 'dlib' (default: foamliu, a face recogniser of the shared weights)"
    )
    add("--features", nargs="+", default=[CROP_RECOGNISERS[0]], metavar="NAME", help=text)
    add("--subset-size", type=at_least(2), default=100, help="faces a subset of KID (default 100)")
    add("--data", default=str(FACES), help="validation faces: parquet file or folder")
    add("--grid", type=Path, default=ROOT / "out" / "samples.png", help="PNG of the first faces")
    add("--weights", type=Path, help="pipeline folder (default: the weights inside the package)")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    options = parser.parse_args(words)
    if options.grid.suffix.lower() != ".png":
        parser.error(f"--grid: expected a name that ends in .png, got {options.grid}")
    return options


if __name__ == "__main__":
    main()
