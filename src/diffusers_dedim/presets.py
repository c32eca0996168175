"""Named settings of the pipeline, with what was measured for each beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from diffusers.callbacks import PipelineCallback

from diffusers_dedim.guidance import EstimateGuidance, IdentityGuidance


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
        mask_radius: pixels around each landmark, in the 112-px crop.
        mask_feather: width in pixels of the smooth rim inside that radius; 0 for the paper's hard mask.
        views: views the estimate's gradient is averaged over.
    """

    start_timestep: int
    num_inference_steps: int
    guidance: Literal["log_probability", "estimate"]
    guidance_scale: float
    max_rounds: int
    threshold: float
    mask_radius: float = 10.0
    mask_feather: float = 0.0
    views: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(
                f"threshold: expected a probability strictly between 0 and 1 (Eq. 4), got {self.threshold}."
            )
        if self.max_rounds < 1:
            raise ValueError(f"max_rounds: expected at least 1, got {self.max_rounds}.")
        if self.guidance_scale < 0:
            raise ValueError(f"guidance_scale: expected 0 or more, got {self.guidance_scale}.")

    def make_guidance(self) -> PipelineCallback | None:
        """Build the step callback; None where the scale is 0 (plain DDPM)."""
        if self.guidance_scale == 0:
            return None
        if self.guidance == "log_probability":
            return IdentityGuidance(self.guidance_scale)
        stop_similarity = 2 * self.threshold - 1
        return EstimateGuidance(self.guidance_scale, stop_similarity, self.views)


PRESETS: dict[str, DeDiMPreset] = {
    # Section 4 of the paper, to the letter.
    "paper": DeDiMPreset(
        start_timestep=100, num_inference_steps=100, guidance="log_probability", guidance_scale=250.0,
        max_rounds=100, threshold=0.2,
    ),
    "fast": DeDiMPreset(
        start_timestep=100, num_inference_steps=10, guidance="estimate", guidance_scale=0.02,
        max_rounds=6, threshold=0.4, mask_feather=4.0,
    ),
}  # fmt: skip


def resolve_preset(preset: str | DeDiMPreset, **overrides: float | None) -> DeDiMPreset:
    """Return the preset with every given value put in; None leaves the preset's own.

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
    return replace(preset, **given)  # type: ignore[arg-type]  # dataclasses.replace checks the names
