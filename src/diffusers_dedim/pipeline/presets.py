"""Named settings of the pipeline, with what was measured for each beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Literal

from diffusers.callbacks import PipelineCallback
from torch import Tensor

from diffusers_dedim.diffusion.guidance import EstimateGuidance, IdentityGuidance
from diffusers_dedim.diffusion.schedule import dedim_timesteps
from diffusers_dedim.faces import keep_between_brows, keep_eyes, landmark_mask

# A push that ended just where the sampler stops would let a face linger there: push a little past it (cosine).
STOP_MARGIN = 0.1


@dataclass(frozen=True)
class DeDiMPreset:
    """Settings of Algorithm 2 and of the guidance.

    Attributes:
        start_timestep: the paper's t_0, in 1..T; how far a face is diffused.
        num_inference_steps: denoising steps a round, spaced evenly over t_0..1; equal to t_0 for the paper.
        guidance: "log_probability" is the paper's (`IdentityGuidance`), "estimate" pushes the clean estimate by
            steps of fixed size (`EstimateGuidance`).
        guidance_scale: s of the paper, or the size of a push in [-1, 1] units.
        max_rounds: L, the most rounds a face gets.
        threshold: h, the match probability (Eq. 4) below which a face is done.
        threshold_margin: how much further than h the sampler goes, because carrying the change back to the
            photo and rounding to 8 bits give some of it back; 0 for the paper.
        mask_radius: pixels around each landmark, in the 112-px crop.
        mask_feather: width in pixels of the smooth rim inside that radius; 0 for the paper's hard mask.
        least_contrast: standard deviation in [-1, 1] units that a face of less contrast is raised to while it is
            sampled (`at_least_contrast`); 0 for the paper.
        keep_eyes: share in [0, 1] of the original that stays in the middle of each eye; 0 for the paper.
        keep_between_brows: share that stays between the brows; 0 for the paper.
        retries: how often a face that stays above the threshold is tried again, each time otherwise
            (`rescue.ATTEMPTS`), 0..3; each has ``max_rounds`` of its own. 0 for the paper.
        views, smoothing, contrast_masking, gradient_power, spread, spared_structure, realism, near_push,
            cutoff_step_ratio: of `EstimateGuidance`.
        error_correction: share in [0, 1] of what the denoiser loses of the original that is given back
            (`CorrectedDenoiser`), for twice the denoiser calls; 0 for the paper.
        reuse_noise: whether noise serves two rounds of a face, the second of which calls the denoiser half as often
            (`FaceNoise`); False for new noise in each round, the paper's. Without ``error_correction`` it does nothing.
        avoid_limit: in an album, cosine with a protected photo of the same person above which a face that is below the
            threshold goes on; 1 for none.
        avoid_similarity: in an album, cosine with such a photo below which a face is pushed no further from it.
        denoise_window: call the denoiser on a window around the mask alone (`WindowedDenoiser`), where that saves
            anything; False for the paper.

    Raises:
        ValueError: a setting is out of its range; the message names it.
    """

    start_timestep: int
    num_inference_steps: int
    guidance: Literal["log_probability", "estimate"]
    guidance_scale: float
    max_rounds: int
    threshold: float
    threshold_margin: float = 0.0
    mask_radius: float = 10.0
    mask_feather: float = 0.0
    views: int = 2
    smoothing: float = 0.8
    contrast_masking: float = 0.0
    gradient_power: float = 1.0
    spread: float = 0.0
    spared_structure: float = 0.0
    realism: float = 0.0
    near_push: float = 1.0
    cutoff_step_ratio: float = 0.7
    error_correction: float = 0.0
    reuse_noise: bool = False
    avoid_limit: float = 1.0
    avoid_similarity: float = -0.1
    denoise_window: bool = False
    keep_eyes: float = 0.0
    keep_between_brows: float = 0.0
    least_contrast: float = 0.0
    retries: int = 0

    def __post_init__(self) -> None:
        if self.guidance not in ("log_probability", "estimate"):
            raise ValueError(f"guidance: expected 'log_probability' or 'estimate', got {self.guidance!r}.")
        if not 0 < self.threshold < 1:
            raise ValueError(
                f"threshold: expected a probability strictly between 0 and 1 (Eq. 4), got {self.threshold}."
            )
        if not 0 <= self.threshold_margin < self.threshold:
            raise ValueError(
                f"threshold_margin: expected 0 or more and less than the threshold {self.threshold}, "
                f"got {self.threshold_margin}."
            )
        for name in ("start_timestep", "num_inference_steps", "max_rounds"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}.")
        if not 0 <= self.guidance_scale < math.inf:  # also refuses nan
            raise ValueError(
                f"guidance_scale: expected a finite number of 0 or more, got {self.guidance_scale}."
            )
        if not 0 <= self.error_correction <= 1:  # also refuses nan
            raise ValueError(f"error_correction: expected a share in [0, 1], got {self.error_correction}.")
        if not 0 <= self.least_contrast < 1:  # also refuses nan
            raise ValueError(
                f"least_contrast: expected a standard deviation in [0, 1), got {self.least_contrast}."
            )
        if not -1 <= self.avoid_limit <= 1:
            raise ValueError(f"avoid_limit: expected a cosine in [-1, 1], got {self.avoid_limit}.")
        for name in ("keep_eyes", "keep_between_brows"):
            if not 0 <= getattr(self, name) <= 1:  # also refuses nan
                raise ValueError(f"{name}: expected a share in [0, 1], got {getattr(self, name)}.")
        if self.retries not in range(4):
            raise ValueError(f"retries: expected a whole number in 0..3, got {self.retries!r}.")
        dedim_timesteps(self.start_timestep, self.num_inference_steps)  # raises where they do not fit
        self.make_guidance()

    def make_guidance(self) -> PipelineCallback | None:
        """Build the step callback; None where the scale is 0 (no guidance)."""
        if self.guidance_scale == 0:
            return None
        if self.guidance == "log_probability":
            return IdentityGuidance(self.guidance_scale)
        return EstimateGuidance(
            step_size=self.guidance_scale,
            stop_similarity=max(-1.0, 2 * self.sampler_threshold - 1 - STOP_MARGIN),
            views=self.views,
            smoothing=self.smoothing,
            contrast_masking=self.contrast_masking,
            gradient_power=self.gradient_power,
            spread=self.spread,
            spared_structure=self.spared_structure,
            realism=self.realism,
            near_push=self.near_push,
            cutoff_step_ratio=self.cutoff_step_ratio,
            avoid_similarity=self.avoid_similarity,
        )

    def told_apart(self) -> DeDiMPreset:
        """The settings of a face that is told apart from protected photos of its person, by the default's guidance.

        Pushes that are shorter near the aim, for of several aims one is easily overshot, that spare no structure and
        lead back to photos half as much (D23 in docs/paper.md).
        """
        if self.guidance != "estimate":
            return self
        return replace(
            self, near_push=0.6 * self.near_push, spread=0.0, spared_structure=0.0, realism=self.realism / 2
        )

    def make_mask(self, landmarks: Tensor) -> Tensor:
        """Build the mask ``[N, 1, 112, 112]`` in [0, 1] of faces with these landmarks ``[N, 51, 2]``, crop px."""
        mask = landmark_mask(landmarks, self.mask_radius, self.mask_feather)
        mask = keep_between_brows(mask, landmarks, self.keep_between_brows)
        return keep_eyes(mask, landmarks, self.keep_eyes)

    @property
    def unet_calls_per_round(self) -> int:
        """Images that the denoiser is called on for a face in a round whose noise is new."""
        return self.num_inference_steps * (2 if self.error_correction else 1)

    @property
    def sampler_threshold(self) -> float:
        """The probability at which the sampler stops a face: h less the margin."""
        return self.threshold - self.threshold_margin


_FAST = DeDiMPreset(
    start_timestep=250,
    num_inference_steps=5,
    guidance="estimate",
    guidance_scale=0.05,
    error_correction=0.7,
    reuse_noise=True,
    max_rounds=12,
    threshold=0.56,
    threshold_margin=0.08,
    mask_feather=4.0,
    keep_eyes=0.8,
    least_contrast=0.25,
    views=1,
    contrast_masking=0.5,
    gradient_power=0.75,
    spread=0.3,
    spared_structure=0.25,
    realism=0.3,
    retries=3,
    denoise_window=True,
    avoid_limit=0.15,
    avoid_similarity=0.0,
)

PRESETS: dict[str, DeDiMPreset] = {
    # Section 4 of the paper, to the letter: up to 10,000 denoiser calls a face. Cut to max_rounds=3 (300 calls),
    # 8 development faces of LFW: rank-1 foamliu 0.12, casia 0.00, the teacher 0.75; PSNR 28.6, SSIM 0.866, and
    # 1 of 8 below h. Measured once, by hand. max_rounds=2, and all rounds on four faces: docs/results.
    "paper": DeDiMPreset(
        start_timestep=100,
        num_inference_steps=100,
        guidance="log_probability",
        guidance_scale=250.0,
        max_rounds=100,
        threshold=0.2,
    ),
    # dedim evaluate, 500 LFW probes: rank-1 by both guides and dlib 0.000, casia 0.002, FaceNet 0.008, mbf_w2 0.264;
    # PSNR 33.2, SSIM 0.950; 32 denoiser calls a face. How it was chosen: D16 to D27 in docs/paper.md.
    "fast": _FAST,
    # dedim evaluate --limit 100, mbf_w2: gentle 0.52 at SSIM 0.963 and 34.5 dB, fast 0.21 at 0.949 and 32.9, strong
    # 0.12 at 0.938 and 31.7.
    "gentle": replace(
        _FAST,
        threshold=0.62,
        threshold_margin=0.06,
        gradient_power=0.6,
        spared_structure=0.5,
        keep_between_brows=0.8,
    ),
    "strong": replace(
        _FAST, threshold=0.48, threshold_margin=0.06, max_rounds=20, avoid_limit=0.1, avoid_similarity=-0.1
    ),
}


def resolve_preset(preset: str | DeDiMPreset, **overrides: float | None) -> DeDiMPreset:
    """Return the preset with every given value put in; None leaves the preset's own.

    The preset's margin is at most half of a threshold that is given.

    Raises:
        ValueError: the name is unknown, or a value is out of its range.

    Example:
        >>> resolve_preset("paper", max_rounds=3).max_rounds
        3
    """
    if isinstance(preset, str):
        if preset not in PRESETS:
            raise ValueError(f"preset: expected one of {sorted(PRESETS)} or a DeDiMPreset, got {preset!r}.")
        preset = PRESETS[preset]
    given = {name: value for name, value in overrides.items() if value is not None}
    threshold = given.get("threshold")
    if threshold is not None and threshold > 0 and "threshold_margin" not in given:
        given["threshold_margin"] = min(preset.threshold_margin, threshold / 2)
    return replace(preset, **given)  # type: ignore[arg-type]  # dataclasses.replace checks the names
