"""The three networks in numbers: denoiser, recogniser and landmarks; print one JSON object.

    python -m benchmarks.models

Standard output holds the JSON object alone; progress goes to standard error. Data: held-out validation faces
(``unet_psnr``, ``landmarks_*``) and the aligned crops of the LFW pairs (the rest), none of which was trained on.
A third of a validation crop is edge replication, so faces go through the denoiser and back (``sdedit_*``) on LFW
crops, which are photo all over. A comparison matches when similarity >= threshold.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks._command import (
    BLACK_BOXES,
    FACES,
    SHARED,
    add_black_boxes,
    at_least,
    make_parser,
    number,
    print_run,
    say,
)
from benchmarks._pairs import VerificationPairs, embed_crops, read_pairs
from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.encoders import load_recogniser
from diffusers_dedim.encoders.ensemble import FusedEncoder
from diffusers_dedim.evaluation.robustness import sdedit
from diffusers_dedim.metrics.quality import mean_ssim, psnr
from diffusers_dedim.metrics.verification import tar_at_fmr, ten_fold_accuracy
from diffusers_dedim.models.weights import BUNDLED_WEIGHTS
from diffusers_dedim.pipeline.guides import name_guides
from diffusers_dedim.training.data import FaceCrops
from diffusers_dedim.training.landmarks import landmark_errors
from diffusers_dedim.training.unet import x_0_psnr

START_TIMESTEP = 100  # the paper's t_0
NOISY_TIMESTEPS = tuple(range(9, 100, 10))  # tenths of the x_t that guidance sees, t < 100
UNET_FACES, SDEDIT_FACES, GRADIENT_PAIRS, CORRELATION_PEOPLE, LANDMARK_FACES = 64, 64, 64, 1000, 1500
NETWORKS = ("unet", "face_encoder", "landmarker")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its JSON object.

    Args:
        arguments: command line without the program; ``sys.argv`` by default.
    """
    print_run("benchmarks.models", _parse, run_models, arguments)


def run_models(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the three networks; returns what the JSON object holds."""
    pipe = DeDiMPipeline.from_pretrained(options.weights)
    faces = FaceCrops(options.faces, "val", require_landmarks=True)
    pairs = read_pairs(options.pairs, options.limit)

    def limited(count: int, available: int) -> int:
        return min(count, available, options.limit or count)

    results = {
        **measure_unet(pipe.unet, faces, limited(UNET_FACES, len(faces))),
        **measure_sdedit(pipe, pairs, limited(SDEDIT_FACES, len(pairs.images)), options),
        "encoders": measure_encoders(
            pipe, pairs, limited(CORRELATION_PEOPLE, len(pairs.images)), options.black_box, options.teacher
        ),
        **measure_noisy_gradient(pipe, pairs, limited(GRADIENT_PAIRS, len(pairs.first)), options.seed),
        **measure_landmarks(pipe.landmarker, faces, limited(LANDMARK_FACES, len(faces))),
        **measure_size(pipe, options.weights or BUNDLED_WEIGHTS),
    }
    return {**results, "weights": str(options.weights or "bundled"), "limit": options.limit}


def measure_unet(unet: nn.Module, faces: FaceCrops, count: int) -> dict[str, Any]:
    """PSNR in dB of the x_0 estimate of one call, by timestep, over the pixels that the photo covers."""
    say("models", f"denoiser: {count} faces")
    values = x_0_psnr(unet, faces, count)
    by_timestep = {name.removeprefix("psnr_t"): number(value) for name, value in values.items()}
    return {"unet_psnr": by_timestep, "unet_faces": count}


def measure_sdedit(
    pipe: DeDiMPipeline, pairs: VerificationPairs, count: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Diffuse whole crops to t_0 = 100 and denoise them once, unguided: what the prior alone changes."""
    say("models", f"there and back: {count} faces, {options.sdedit_steps} steps")
    before = pairs.crops(pairs.one_per_person(count))
    after = there_and_back(pipe, before, options.sdedit_steps, options.seed)
    with torch.no_grad():
        encoder = FusedEncoder(pipe.face_encoder)
        similarity = (encoder(before) * encoder(after)).sum(1)
    return {
        "sdedit_psnr": number(psnr(before, after).mean()),
        "sdedit_ssim": number(mean_ssim(before, after).mean()),
        "sdedit_similarity": number(similarity.mean()),
        "sdedit_similarity_min": number(similarity.min()),
        "sdedit_start_timestep": START_TIMESTEP,
        "sdedit_steps": options.sdedit_steps,  # respaced; 100 are the paper's, ten times as long
        "sdedit_faces": len(before),
    }


def there_and_back(pipe: DeDiMPipeline, crops: Tensor, steps: int, seed: int) -> Tensor:
    """`sdedit` of whole crops ``[N, 3, 112, 112]`` to t = 100; each has its own generator, made of ``seed``."""
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + place) for place in range(len(crops))]
    return sdedit(pipe, crops, START_TIMESTEP, steps, generators)


def measure_encoders(
    pipe: DeDiMPipeline,
    pairs: VerificationPairs,
    people: int,
    black_boxes: Sequence[str],
    teachers: Sequence[str],
) -> dict[str, Any]:
    """Each guide by itself, and where there are several all of them as one (`FusedEncoder`).

    Raises:
        ValueError: ``teachers`` are not one for each guide.
    """
    guides = {guide.name: guide.encoder for guide in name_guides(pipe.face_encoder)}
    if teachers and len(teachers) != len(guides):
        raise ValueError(
            f"--teacher: expected one for each of the {len(guides)} guides, got {len(teachers)}."
        )
    found: dict[str, Any] = {
        name: measure_encoder(encoder, pairs) | measure_correlation(encoder, pairs, people, black_boxes)
        for name, encoder in guides.items()
    }
    for spec, (name, encoder) in zip(teachers, guides.items(), strict=False):
        found[name]["cosine_with_teacher"] = measure_teacher(encoder, pairs, spec)
    if len(guides) > 1:
        fused = FusedEncoder(pipe.face_encoder)
        found["together"] = measure_encoder(fused, pairs) | measure_correlation(
            fused, pairs, people, black_boxes
        )
    return found


def measure_teacher(encoder: nn.Module, pairs: VerificationPairs, spec: str) -> float | None:
    """Mean cosine of a guide's embeddings with its teacher's, over one crop of each person."""
    teacher = load_recogniser(spec)
    say("models", f"cosine with {teacher.name}")
    crops = pairs.one_per_person(len(pairs.images))
    return number(
        (embed_crops(encoder, pairs, crops) * embed_crops(teacher.encoder, pairs, crops)).sum(1).mean()
    )


def measure_encoder(encoder: nn.Module, pairs: VerificationPairs) -> dict[str, Any]:
    """Verification rates: over the pairs of the protocol, and all against all over their images."""
    say("models", f"recogniser: {len(pairs.images)} crops, {len(pairs.same)} pairs")
    everything = np.arange(len(pairs.images))
    embeddings = embed_crops(encoder, pairs, everything)
    scores = (embeddings[pairs.first] * embeddings[pairs.second]).sum(1)
    accuracy = ten_fold_accuracy(scores, pairs.same)
    # with the mirror image, as many papers report it: cosine of the sums of both embeddings
    both = embeddings + embed_crops(encoder, pairs, everything, mirrored=True)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    both_scores = (both[pairs.first] * both[pairs.second]).sum(1)
    every_score = _upper(embeddings @ embeddings.T)
    every_same = _upper(pairs.persons[:, None] == pairs.persons[None, :])
    genuine, impostor = every_score[every_same], every_score[~every_same]
    return {
        "lfw_accuracy": number(accuracy.mean),
        "lfw_accuracy_std": number(accuracy.std),
        "lfw_accuracy_with_mirror_image": number(ten_fold_accuracy(both_scores, pairs.same).mean),
        "tar_at_fmr_1e3": _tar(scores[pairs.same], scores[~pairs.same], 1e-3),
        "tar_at_fmr_1e3_with_mirror_image": _tar(both_scores[pairs.same], both_scores[~pairs.same], 1e-3),
        "tar_at_fmr_1e3_all_against_all": _tar(genuine, impostor, 1e-3),
        "tar_at_fmr_1e4_all_against_all": _tar(genuine, impostor, 1e-4),
        "pairs": len(pairs.same),
        "images": len(pairs.images),
    }


def measure_correlation(
    encoder: nn.Module, pairs: VerificationPairs, people: int, black_boxes: Sequence[str]
) -> dict[str, Any]:
    """Pearson correlation of the impostor scores, ours with each black box: one crop of each of many people."""
    crops = pairs.one_per_person(people)
    ours = _impostor_scores(encoder, pairs, crops)
    correlation = {}
    for spec in black_boxes:
        other = load_recogniser(spec)
        say("models", f"correlation with {other.name}: {len(crops)} people")
        theirs = _impostor_scores(other.encoder, pairs, crops)
        correlation[other.name] = number(np.corrcoef(ours, theirs)[0, 1])
    return {"correlation": correlation, "correlation_people": len(crops)}


def measure_noisy_gradient(
    pipe: DeDiMPipeline, pairs: VerificationPairs, count: int, seed: int
) -> dict[str, Any]:
    """Cosine between the gradient on a clean crop and on the same crop noised as x_t: mean, and by timestep.

    The gradient is that of the similarity to another photo of the person; to itself it is 0 on a clean crop.
    """
    crops, mates = pairs.genuine(count)
    say("models", f"gradient on noise: {len(crops)} crops")
    x_0 = pairs.crops(crops)
    encoder = FusedEncoder(pipe.face_encoder)
    reference = torch.from_numpy(embed_crops(encoder, pairs, mates))
    clean = _similarity_gradient(encoder, x_0, reference)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed))
    cosine, total = {}, 0.0
    for timestep in NOISY_TIMESTEPS:
        x_t = pipe.scheduler.add_noise(x_0, noise, torch.tensor([timestep]))
        noisy = _similarity_gradient(encoder, x_t, reference)
        mean = float(nn.functional.cosine_similarity(clean, noisy).mean())
        cosine[str(timestep)] = number(mean)
        total += mean
    return {
        "gradient_agreement": number(total / len(NOISY_TIMESTEPS)),
        "gradient_agreement_by_timestep": cosine,
        "gradient_agreement_crops": len(crops),
    }


def measure_landmarks(landmarker: nn.Module, faces: FaceCrops, count: int) -> dict[str, Any]:
    """Error against the teacher and disagreement under mirroring, over the distance of the outer eye corners."""
    say("models", f"landmarks: {count} faces")
    errors = landmark_errors(landmarker, faces, count)
    return {
        "landmarks_error_iod": number(errors["error_iod"]),
        "landmarks_flip_iod": number(errors["flip_iod"]),
        "landmarks_faces": count,
    }


def measure_size(pipe: DeDiMPipeline, weights: Path) -> dict[str, Any]:
    """Parameters by network, the denoiser's number type, and what the weights weigh on disk."""
    networks = {name: getattr(pipe, name) for name in NETWORKS}
    files = weights.rglob("*.safetensors")
    return {
        "parameters": {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()},
        "weights_mib": number(sum(file.stat().st_size for file in files) / 2**20, 2),
        "unet_dtype": str(pipe.unet.dtype).removeprefix("torch."),
    }


def _similarity_gradient(encoder: nn.Module, crops: Tensor, reference: Tensor) -> Tensor:
    """Gradient ``[N, pixels]`` of each crop's similarity to its reference."""
    crops = crops.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((encoder(crops) * reference).sum(), crops)
    return gradient.flatten(1)


def _impostor_scores(
    encoder: nn.Module, pairs: VerificationPairs, crops: NDArray[np.int64]
) -> NDArray[np.float32]:
    embeddings = embed_crops(encoder, pairs, crops)
    return _upper(embeddings @ embeddings.T)


def _upper(matrix: NDArray[Any]) -> NDArray[Any]:
    """Each unordered pair once: the entries above the diagonal; a mask, as indices would take a gigabyte."""
    return matrix[np.triu(np.ones(matrix.shape, dtype=bool), 1)]


def _tar(genuine: NDArray[np.float32], impostor: NDArray[np.float32], fmr: float) -> float | None:
    """The rate, or null where ``--limit`` leaves too few impostors to resolve it."""
    return number(tar_at_fmr(genuine, impostor, fmr)) if len(impostor) * fmr >= 1 else None


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.models", __doc__)
    add = parser.add_argument
    add("--weights", type=Path, help="pipeline folder (default: the weights inside the package)")
    # the labels of the pairs file come in twenty blocks
    add("--limit", type=at_least(20), help="no more than this many faces or pairs a figure, for a quick look")
    add("--sdedit-steps", type=at_least(1), default=10, help="denoising steps over t = 100..1 (default 10)")
    add("--faces", default=str(FACES), help="validation crops with landmarks_68")
    add("--pairs", type=Path, default=SHARED / "data" / "lfw", help="folder of the LFW pairs")
    add("--seed", type=int, default=0)
    text = "who taught each guide, in their order: for cosine_with_teacher"
    add("--teacher", nargs="+", default=[], metavar="NAME=FILE.onnx", help=text)
    add_black_boxes(add, BLACK_BOXES, nargs="+")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
