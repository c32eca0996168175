"""How far recognisers that guide push as others would; print one JSON object.

    python -m benchmarks.guides --guide NAME=FOLDER --guide other=FILE.onnx

What a guide hides from a recogniser that it has never seen hangs on how alike their pushes are. A push is the gradient
of the cosine with the face as it was, half-way between that face and its protected version (at the face itself the
gradient of a cosine is noise), grey, smoothed and masked as the sampler does. ``agreement`` is the mean cosine
between two recognisers' pushes, over faces that are not LFW's: filled validation crops, drawn by ``--seed`` and
protected with the pipeline's own guide, the same for all who are compared. ``together`` is the push of all guides,
whose gradients the sampler adds up. Judges are asked for their gradient only to compare it. Standard output holds the
JSON object alone; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from benchmarks._command import FACES, SHARED, at_least, make_parser, number, run_with_pipeline, say
from benchmarks._faces import Pixels, to_crops
from diffusers_dedim.encoders import OnnxEncoder
from diffusers_dedim.evaluation import ArrayCache, Probe
from diffusers_dedim.evaluation.crops import crop_probes, protect_once
from diffusers_dedim.faces import landmark_mask
from diffusers_dedim.models.mobilefacenet import MobileFaceNet
from diffusers_dedim.pipeline.guides import name_guides
from diffusers_dedim.training.checkpoint import load_network
from diffusers_dedim.training.data import FaceCrops

FILLED = 0.64  # share of a crop that its photo reaches; the repeated edges of tighter ones are no face
MASK_RADIUS, MASK_FEATHER = 10.0, 4.0  # px
KERNEL, SMOOTHING = 5, 0.8  # px
BATCH = 10
JUDGES = (
    "mbf_w2_espdl",
    "mobilefacenet_foamliu",
    "mobilefacenet_faceplugin",
    "mobilefacenet_casia_xiaoccer",
    "facenet_irv1_vggface2",
)


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object; for the arguments see `run_with_pipeline`."""
    run_with_pipeline("benchmarks.guides", _parse, run_guides, arguments, load_pipeline)


def run_guides(pipe: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Compare the pushes of guides and judges; returns what the JSON object holds."""
    guides = _load_all(options.guide, "--guide") or {
        guide.name: guide.encoder for guide in name_guides(pipe.face_encoder)
    }
    judges = _load_all(options.judge, "--judge")
    both = sorted(set(guides) & set(judges))
    if both:
        raise ValueError(f"--judge: {', '.join(both)} is the name of a guide too; give each its own.")
    probes = draw_probes(options.data, options.faces, options.seed)
    say("guides", f"protecting {len(probes)} faces")
    protected = protect_once(
        pipe,
        probes,
        ArrayCache(options.cache),
        method="dedim:fast",
        seed=options.seed,
        batch_size=options.batch_size,
        aligned=True,
    )
    x_org, x = half_way([probe.photo for probe in probes], protected.photos)
    with torch.no_grad():
        mask = landmark_mask(pipe.landmarker(x_org), MASK_RADIUS, MASK_FEATHER)
    gradients, seconds = {}, {}
    for name, encoder in {**guides, **judges}.items():
        gradients[name], seconds[name] = similarity_gradient(encoder, x, x_org)
        say("guides", f"{name}: {1000 * seconds[name]:.1f} ms a gradient")
    if len(guides) > 1:
        gradients["together"] = sum(gradients[name] for name in guides)
    pushes = {name: to_push(gradient, mask) for name, gradient in gradients.items()}
    return {
        "faces": len(probes),
        "guides": list(guides),
        "agreement": compare(pushes),
        "gradient_ms": {name: number(1000 * value, 1) for name, value in seconds.items()},
        "parameters": {name: count_parameters(each) for name, each in {**guides, **judges}.items()},
    }


def draw_probes(data: Path, count: int, seed: int) -> list[Probe]:
    """Draw validation crops that their photo fills.

    Raises:
        ValueError: there are fewer than ``count``.
    """
    crops = FaceCrops(data, "val")
    rows: list[int] = []
    for row in np.random.default_rng(seed).permutation(len(crops)).tolist():
        if len(rows) < count and float(crops[row]["known"].float().mean()) >= FILLED:
            rows.append(row)
    if len(rows) < count:
        raise ValueError(f"--faces: {data} has {len(rows)} crops that are filled, too few for {count}.")
    return crop_probes(crops, rows)


def half_way(before: Sequence[Pixels], after: Sequence[Pixels]) -> tuple[Tensor, Tensor]:
    """The crops as they were, and the means of these and their protected versions: ``[N, 3, 112, 112]`` each."""
    x_org = to_crops(before)
    return x_org, (x_org + to_crops(after)) / 2


def similarity_gradient(encoder: nn.Module, x: Tensor, x_org: Tensor) -> tuple[Tensor, float]:
    """Gradient ``[N, 3, H, W]`` of each crop's cosine with what it was, and the seconds that one takes."""
    parts, seconds = [], 0.0
    for now, then in zip(x.split(BATCH), x_org.split(BATCH), strict=True):
        with torch.no_grad():
            reference = encoder(then)
        begin, seen = time.perf_counter(), now.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((encoder(seen) * reference).sum(), seen)
        seconds += time.perf_counter() - begin
        parts.append(gradient)
    return torch.cat(parts), seconds / len(x)


def to_push(gradient: Tensor, mask: Tensor) -> Tensor:
    """The direction ``[N, H * W]`` in which the sampler would push: grey, smoothed, masked."""
    smooth = gaussian_blur(gradient.mean(1, keepdim=True), KERNEL, SMOOTHING)
    return nn.functional.normalize((smooth * mask).flatten(1))


def compare(pushes: dict[str, Tensor]) -> dict[str, dict[str, float | None]]:
    """Mean cosine of each two recognisers' pushes, both ways round for reading."""
    return {
        name: {
            other: number(float((push * theirs).sum(1).mean()), 3)
            for other, theirs in pushes.items()
            if other != name
        }
        for name, push in pushes.items()
    }


def count_parameters(encoder: nn.Module) -> int:
    """Numbers in the weights; a converted graph holds some of them as constants."""
    held = [*encoder.parameters(), *(encoder.buffers() if isinstance(encoder, OnnxEncoder) else ())]
    return sum(value.numel() for value in held)


def _load_all(specs: Sequence[str], option: str) -> dict[str, nn.Module]:
    """Recognisers with a gradient, by the names of ``NAME=FILE.onnx`` or ``NAME=FOLDER``."""
    loaded: dict[str, nn.Module] = {}
    for spec in specs:
        name, _, place = spec.rpartition("=")
        name = name or Path(place).stem
        if name in loaded or name == "together":
            raise ValueError(f"{option}: expected a name of its own for each, got {name!r} for {spec}.")
        if place.endswith(".onnx"):
            loaded[name] = OnnxEncoder(place, differentiable=True)
        else:
            loaded[name] = load_network(option, place, MobileFaceNet).eval().requires_grad_(False)
    return loaded


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.guides", __doc__)
    add = parser.add_argument
    files = [SHARED / "weights" / f"{name}.onnx" for name in JUDGES]
    known = [f"{file.stem.removeprefix('mobilefacenet_')}={file}" for file in files if file.is_file()]
    text = (
        "a folder of MobileFaceNet, or an ONNX file; may be given several times (default: the pipeline's own)"
    )
    add("--guide", action="append", default=[], metavar="NAME=FOLDER_OR_FILE.onnx", help=text)
    text = "what the guides are compared with; may be given several times (default: those of the data folder)"
    add("--judge", action="append", metavar="NAME=FILE.onnx", help=text)
    add("--faces", type=at_least(2), default=40)
    add("--weights", type=Path, help="pipeline folder (default: the weights inside the package)")
    add("--data", type=Path, default=FACES, help="folder of val*.parquet")
    add("--batch-size", type=at_least(1), default=20, help="faces per call of the pipeline (default 20)")
    add("--cache", type=Path, help="folder for protected faces (default ~/.cache/diffusers-dedim/bench)")
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    options = parser.parse_args(words)
    options.judge = known if options.judge is None else options.judge
    return options


if __name__ == "__main__":
    main()
