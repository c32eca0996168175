"""Other ways to change a face, to compare DeDiM with: adversarial noise (TIP-IM, FGSM) and filters."""

from diffusers_dedim.baselines.fgsm import apply_fgsm
from diffusers_dedim.baselines.filters import blur_face, pixelate_face
from diffusers_dedim.baselines.tip_im import TIP_IM_PRESETS, TipImPreset, TipImResult, apply_tip_im

__all__ = [
    "TIP_IM_PRESETS",
    "TipImPreset",
    "TipImResult",
    "apply_fgsm",
    "apply_tip_im",
    "blur_face",
    "pixelate_face",
]
