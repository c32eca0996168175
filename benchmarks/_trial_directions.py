"""The trial of `benchmarks.trials` on the pushes: how alike they are, and whether one can stand for the next."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._common import number
from benchmarks._measure import now
from benchmarks._trial_networks import aligned_crops
from diffusers_dedim.diffusion.guidance import EstimateGuidance
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.pipeline.inputs import to_pixel_list
from diffusers_dedim.pipeline.presets import DeDiMPreset

MOMENTUM = 0.9  # share of a face's last direction that is added to the next
FaceKey = bytes


class PlainGuidance(EstimateGuidance):
    """`EstimateGuidance` that writes down each push: step of the round and ``{face: direction}``."""

    def __init__(self, settings: DeDiMPreset) -> None:
        super().__init__(
            step_size=settings.guidance_scale,
            views=settings.views,
            smoothing=settings.smoothing,
            cutoff_step_ratio=settings.cutoff_step_ratio,
        )
        self.pushes: list[tuple[int, dict[FaceKey, Tensor]]] = []
        self.step_index, self.faces = 0, list[FaceKey]()

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: int, callback_kwargs: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Note whose faces these are: the reference embedding of a face stays the same over all rounds."""
        self.step_index = step_index
        self.faces = [row.cpu().numpy().tobytes() for row in callback_kwargs["reference"]]
        return super().callback_fn(pipeline, step_index, timestep, callback_kwargs)

    def _direction(self, gradient: Tensor, mask: Tensor) -> Tensor:
        direction = super()._direction(gradient, mask)
        self.pushes.append((self.step_index, dict(zip(self.faces, direction, strict=True))))
        return direction


class HeldGuidance(PlainGuidance):
    """Takes the gradient of a round's first step for all its steps."""

    held: Tensor

    def _similarity_gradient(self, face_encoder: Any, blend: Tensor, reference: Tensor) -> Tensor:
        if self.step_index == 0:
            self.held = super()._similarity_gradient(face_encoder, blend, reference)
        return self.held


class MomentumGuidance(PlainGuidance):
    """Adds a share of the face's last direction, also where that was in the round before."""

    def _direction(self, gradient: Tensor, mask: Tensor) -> Tensor:
        direction = EstimateGuidance._direction(self, gradient, mask)
        before = self.pushes[-1][1] if self.pushes else {}
        none = torch.zeros_like(direction[0])
        direction = direction + MOMENTUM * torch.stack([before.get(face, none) for face in self.faces])
        area = mask.expand_as(direction).flatten(1).sum(1).clamp_min(1)
        rms = (direction.square().flatten(1).sum(1) / area).sqrt().clamp_min(1e-12)
        direction = direction / rms.reshape(-1, 1, 1, 1)
        self.pushes.append((self.step_index, dict(zip(self.faces, direction, strict=True))))
        return direction


VARIANTS: dict[str, type[PlainGuidance]] = {
    "every_step": PlainGuidance,
    "first_of_the_round": HeldGuidance,
    "momentum": MomentumGuidance,
}


def run_directions(
    pipe: Any, photos: list[bytes], judge: Recogniser, settings: DeDiMPreset, places: int
) -> dict[str, Any]:
    """Effort, change and what a black box still sees with each way to find the direction; and how alike they are."""
    faces = to_pixel_list(aligned_crops(pipe, photos))
    rows: dict[str, Any] = {}
    alike: dict[str, float | None] = {}
    for name, variant in VARIANTS.items():
        guidance = variant(settings)
        begin = now(pipe.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a face may stay above the threshold
            out = pipe(
                faces,
                preset=settings,
                guidance=guidance,
                aligned=True,
                batch_size=places,
                output_type="np",
                generator=[torch.Generator().manual_seed(index) for index in range(len(faces))],
            )
        seconds = now(pipe.device) - begin
        rows[name] = {**_row(faces, out, judge), "seconds_per_face": number(seconds / len(faces))}
        alike = alike or _alikeness(guidance.pushes)
    return {"faces": len(faces), "judge": judge.name, **rows, **alike}


def _row(faces: list[Any], out: Any, judge: Recogniser) -> dict[str, Any]:
    pair = [
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1 for images in (faces, out.images)
    ]
    error = (pair[0] - pair[1]).square().flatten(1).mean(1)
    with torch.no_grad():
        before, after = (judge.encoder(crops) for crops in pair)
    return {
        "unet_calls_per_face": number(np.mean([face.unet_calls for face in out.faces]), 2),
        "reached_threshold": number(np.mean([face.reached_threshold for face in out.faces])),
        "psnr_of_the_crop": number(float((10 * torch.log10(4 / error)).mean()), 2),
        "cosine_to_original": number(float((before * after).sum(1).mean())),
    }


def _alikeness(pushes: list[tuple[int, dict[FaceKey, Tensor]]]) -> dict[str, float | None]:
    """Mean cosine of a push with the same face's next: within a round, and over the border to the next round."""
    within, across = list[float](), list[float]()
    for (_, before), (step, after) in itertools.pairwise(pushes):
        cosines = across if step == 0 else within
        cosines += [_cosine(before[face], after[face]) for face in before.keys() & after.keys()]
    return {"cosine_of_pushes_within_a_round": _mean(within), "cosine_of_pushes_over_rounds": _mean(across)}


def _cosine(left: Tensor, right: Tensor) -> float:
    return float(torch.cosine_similarity(left.flatten(), right.flatten(), dim=0))


def _mean(values: list[float]) -> float | None:
    return number(float(np.mean(values))) if values else None
