"""Algorithm 2 of the paper, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from diffusers_dedim.diffusion.callbacks import StepCallback, StepCallbacks
from diffusers_dedim.diffusion.denoisers import CorrectedDenoiser, Denoiser, round_denoiser
from diffusers_dedim.diffusion.matching import judged_probability, no_faces_to_avoid
from diffusers_dedim.diffusion.noise import FaceNoise


@dataclass(frozen=True)
class SampleResult:
    """What the sampler returns.

    Attributes:
        crops: ``[N, 3, H, W]``, x_0 of the last accepted round; outside the mask equal to x_org.
        probability_history: per face, the match probability (Eq. 4) before and after each of its rounds; it
            never rises.
        rounds: per face, how many rounds were run.
        unet_calls: per face, how many images the denoiser was called on: with ``error_correction`` two a step.
        reached_threshold: per face, whether its probability fell below the threshold.
    """

    crops: Tensor
    probability_history: list[list[float]]
    rounds: list[int]
    unet_calls: list[int]
    reached_threshold: list[bool]


@torch.no_grad()
def sample_dedim(
    x_org: Tensor,
    mask: Tensor,
    *,
    unet: Callable[[Tensor, int], Tensor],
    scheduler: DDPMScheduler,
    face_encoder: nn.Module,
    threshold: float,
    max_rounds: int,
    generators: list[torch.Generator],
    guidance: StepCallback | None = None,
    error_correction: float = 0.0,
    window: tuple[int, int] | None = None,
    pipeline: Any = None,
    x_0: Tensor | None = None,
    probability: Tensor | None = None,
    avoid: Tensor | None = None,
    avoid_limit: float = 1.0,
    reference: Tensor | None = None,
    noises: Sequence[FaceNoise] | None = None,
) -> SampleResult:
    """Sample de-identified faces (Algorithm 2); each face stops on its own and leaves the batch.

    Args:
        x_org: aligned crops ``[N, 3, H, W]`` in [-1, 1].
        mask: ``[N, 1, H, W]`` in [0, 1]; 1 = sampled, 0 = original.
        unet: epsilon prediction (x_t ``[n, 3, H, W]``, timestep) -> ``[n, 3, H, W]``.
        scheduler: a `DDPMScheduler` whose timesteps are set (`dedim_timesteps`), or what `prepare_scheduler` makes of
            another one.
        face_encoder: maps crops to unit embeddings ``[N, D]``; judges each round's result.
        threshold: h, a probability below 1; a face is done when its match probability is below it, at 0 never.
        max_rounds: L.
        generators: one per face, each another, so that a face's result does not depend on its batch.
        guidance: step callback ``(pipeline, step_index, timestep, kwargs) -> kwargs``, with or without a
            ``before_step`` (`StepCallbacks`); None for plain DDPM.
        error_correction: share in [0, 1] of the denoiser's error that is put right (`CorrectedDenoiser`); 0 is
            the paper's.
        window: rows and columns of the part of a crop, around its mask, that the denoiser is called on
            (`WindowedDenoiser`); None for the whole crop, the paper's.
        pipeline: handed to the callback; it reads ``face_encoder`` and ``scheduler`` from it.
        x_0, probability: crops ``[N, 3, H, W]`` and probabilities ``[N]`` at which earlier rounds ended, to go on
            from there; None for the beginning.
        avoid: embeddings ``[N, M, D]`` (``[N, M, K, D]`` of an ensemble) of what each face is to be told apart from;
            a row of zeros stands for none. Ours, not the paper's.
        avoid_limit: cosine with those above which a face is not done (`judged_probability`); 1 for none.
        reference: v_0 of each face, ``[N, D]``, where it is known better than from one picture, as in a video; None
            for ``face_encoder(x_org)``, the paper's.
        noises: one per face, what it remembers of the noise of its rounds, also of those of earlier calls with the
            same originals, masks and timesteps; None for new noise in each round, the paper's.

    Returns:
        The crops and the record of each face.

    Raises:
        ValueError: a tensor has another shape or range, the threshold is no probability, there are no rounds,
            ``error_correction`` is no share, or generators or noises are not one for each face.

    Source:
        Algorithm 2; the comments give its lines. D1 and D2 are explained in docs/paper.md.
    """
    _check(x_org, mask, threshold, max_rounds, generators, error_correction)
    given = _of_each_face(x_org, mask, face_encoder(x_org) if reference is None else reference, avoid)
    x_0 = (x_org if x_0 is None else x_0).clone()  # line 1
    probability = x_org.new_ones(len(x_org)) if probability is None else probability.clone()
    course = _Course(probability.tolist(), generators, noises)
    active = torch.arange(len(x_org), device=x_org.device)
    timesteps, guide = [int(t) for t in scheduler.timesteps], StepCallbacks([guidance])

    for _ in range(max_rounds):  # line 2
        faces, known = course.begin(active.tolist())  # [D27]
        fixed = {name: value[active] for name, value in given.items()}
        noise = randn_tensor(fixed["x_org"].shape, faces, x_org.device, x_org.dtype)
        x_t = scheduler.add_noise(x_0[active], noise, torch.tensor(timesteps[:1]))  # line 3 [D1]
        denoise = round_denoiser(
            unet, scheduler, fixed["x_org"], fixed["mask"], noise, faces, known, error_correction, window
        )
        for step_index, timestep in enumerate(timesteps):  # line 4
            eps = denoise(x_t, timestep)  # [n, 3, H, W] [D16]
            tensors = {"sample": x_t, "noise_pred": eps, **fixed}
            eps = guide.before_step(pipeline, step_index, timestep, tensors)["noise_pred"]  # ours only [D9]
            x_prev = scheduler.step(eps, timestep, x_t, generator=faces).prev_sample  # lines 5-6
            tensors |= {"noise_pred": eps, "prev_sample": x_prev}
            # line 7: x_prev += s * sigma_t * grad log p(not y_0 | x_t) [D2]
            x_t = guide(pipeline, step_index, timestep, tensors)["prev_sample"].detach()  # line 8
        candidate = fixed["mask"] * x_t + (1 - fixed["mask"]) * fixed["x_org"]  # line 9
        candidate_probability = judged_probability(face_encoder(candidate), fixed, threshold, avoid_limit)
        better = candidate_probability < probability[active]  # line 10
        x_0[active[better]] = candidate[better]
        probability[active[better]] = candidate_probability[better]  # line 11
        course.end(active.tolist(), probability.tolist(), better.tolist(), denoise, len(timesteps))
        active = active[probability[active] >= threshold]  # line 12
        if len(active) == 0:
            break  # line 13

    return course.result(x_0, (probability < threshold).tolist())


class _Course:
    """What is noted of each face from round to round: its probabilities, its denoiser calls, and of its noise."""

    def __init__(
        self,
        probability: Sequence[float],
        generators: list[torch.Generator],
        noises: Sequence[FaceNoise] | None,
    ) -> None:
        self.history = [[value] for value in probability]
        self.unet_calls = [0] * len(self.history)
        self._generators = generators
        self._noises = [FaceNoise() for _ in generators] if noises is None else noises
        if len(self._noises) != len(generators):
            raise ValueError(
                f"noises: expected one for each of the {len(generators)} faces, got {len(self._noises)}."
            )

    def begin(self, faces: list[int]) -> tuple[list[torch.Generator], list[Tensor | None]]:
        """The generators of these faces, ready for a round, and what is known of its noise (`FaceNoise.begin`)."""
        generators = [self._generators[face] for face in faces]
        known = [self._noises[face].begin(self._generators[face]) for face in faces]
        return generators, known

    def end(
        self, faces: list[int], probability: list[float], kept: list[bool], denoise: Denoiser, steps: int
    ) -> None:
        """Note a round of these faces, of which some were ``kept``."""
        images = denoise.images if isinstance(denoise, CorrectedDenoiser) else [1] * len(faces)
        errors = denoise.errors if isinstance(denoise, CorrectedDenoiser) else [None] * len(faces)
        for row, face in enumerate(faces):
            self.history[face].append(probability[face])
            self.unet_calls[face] += steps * images[row]
            self._noises[face].end(self._generators[face], errors[row], kept=kept[row])

    def result(self, crops: Tensor, reached_threshold: list[bool]) -> SampleResult:
        """What has come of all faces."""
        rounds = [len(values) - 1 for values in self.history]
        return SampleResult(crops, self.history, rounds, self.unet_calls, reached_threshold)


def _of_each_face(x_org: Tensor, mask: Tensor, reference: Tensor, avoid: Tensor | None) -> dict[str, Tensor]:
    """What stays the same in all rounds of a face, by the names that callbacks know it by."""
    reference = reference.to(x_org.dtype)  # inside torch.autocast a recogniser may give another
    avoid = no_faces_to_avoid(reference) if avoid is None else avoid
    return {"x_org": x_org, "mask": mask, "reference": reference, "avoid": avoid}


def _check(
    x_org: Tensor, mask: Tensor, threshold: float, max_rounds: int, generators: list[torch.Generator],
    error_correction: float,
) -> None:  # fmt: skip
    """Refuse what would be broadcast, or fail in the middle."""
    if x_org.ndim != 4 or x_org.shape[1] != 3:
        raise ValueError(f"x_org: expected crops [N, 3, H, W], got {list(x_org.shape)}.")
    expected = [len(x_org), 1, *x_org.shape[2:]]
    if list(mask.shape) != expected:
        raise ValueError(f"mask: expected {expected} for these crops, got {list(mask.shape)}.")
    if not ((mask >= 0) & (mask <= 1)).all():  # also refuses nan
        raise ValueError(
            f"mask: expected values in [0, 1], got {float(mask.min()):.3g} to {float(mask.max()):.3g}."
        )
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold: expected a probability of at least 0 and below 1, got {threshold}.")
    if max_rounds < 1:
        raise ValueError(f"max_rounds: expected at least 1, got {max_rounds}.")
    if len(generators) != len(x_org):
        raise ValueError(
            f"generators: expected one for each of the {len(x_org)} faces, got {len(generators)}."
        )
    if not 0 <= error_correction <= 1:  # also refuses nan
        raise ValueError(f"error_correction: expected a share in [0, 1], got {error_correction}.")
    if error_correction and len(set(map(id, generators))) < len(generators):
        raise ValueError("generators: expected another one for each face, got one of them twice.")
