"""DeDiM face de-identification as a diffusers plugin.

Example:
    >>> from diffusers_dedim import DeDiMPipeline
    >>> pipe = DeDiMPipeline.from_pretrained()  # doctest: +SKIP
    >>> out = pipe(photo)  # doctest: +SKIP
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Where onnxruntime is installed diffusers imports it, and its builds report their use to Microsoft unless this is set
# before they are loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Album": "pipeline.album",
    "DeDiMOutput": "pipeline.output",
    "DeDiMPipeline": "pipeline.pipeline_dedim",
    "DeDiMPreset": "pipeline.presets",
    "EncoderEnsemble": "encoders",
    "EstimateGuidance": "diffusion.guidance",
    "FaceResult": "pipeline.output",
    "IdentityGuidance": "diffusion.guidance",
    "LandmarkRegressor": "models",
    "MobileFaceNet": "models",
    "PRESETS": "pipeline.presets",
    "PatchDiscriminator": "models",
    "PersonChoice": "pipeline.persons",
    "VisibilityNet": "models",
    "make_scheduler": "diffusion.schedule",
    "protect_frames": "video.protect",
    "protect_video": "video.protect",
    "sample_dedim": "diffusion.sampling",
}
__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from diffusers_dedim.diffusion.guidance import EstimateGuidance as EstimateGuidance
    from diffusers_dedim.diffusion.guidance import IdentityGuidance as IdentityGuidance
    from diffusers_dedim.diffusion.sampling import sample_dedim as sample_dedim
    from diffusers_dedim.diffusion.schedule import make_scheduler as make_scheduler
    from diffusers_dedim.encoders import EncoderEnsemble as EncoderEnsemble
    from diffusers_dedim.models import LandmarkRegressor as LandmarkRegressor
    from diffusers_dedim.models import MobileFaceNet as MobileFaceNet
    from diffusers_dedim.models import PatchDiscriminator as PatchDiscriminator
    from diffusers_dedim.models import VisibilityNet as VisibilityNet
    from diffusers_dedim.pipeline.album import Album as Album
    from diffusers_dedim.pipeline.output import DeDiMOutput as DeDiMOutput
    from diffusers_dedim.pipeline.output import FaceResult as FaceResult
    from diffusers_dedim.pipeline.persons import PersonChoice as PersonChoice
    from diffusers_dedim.pipeline.pipeline_dedim import DeDiMPipeline as DeDiMPipeline
    from diffusers_dedim.pipeline.presets import PRESETS as PRESETS
    from diffusers_dedim.pipeline.presets import DeDiMPreset as DeDiMPreset
    from diffusers_dedim.video.protect import protect_frames as protect_frames
    from diffusers_dedim.video.protect import protect_video as protect_video


def __getattr__(name: str) -> Any:
    """Import public names on first use: `dedim --help` need not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f"diffusers_dedim.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
