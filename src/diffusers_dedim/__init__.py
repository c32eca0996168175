"""DeDiM face de-identification as a diffusers plugin.

Example:
    >>> from diffusers_dedim import DeDiMPipeline
    >>> pipe = DeDiMPipeline.from_pretrained()  # doctest: +SKIP
    >>> out = pipe(photo)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "DeDiMOutput": "results",
    "DeDiMPipeline": "pipeline_dedim",
    "DeDiMPreset": "presets",
    "EncoderEnsemble": "encoders",
    "EstimateGuidance": "guidance",
    "FaceResult": "results",
    "IdentityGuidance": "guidance",
    "LandmarkRegressor": "faces",
    "MobileFaceNet": "encoders",
    "PRESETS": "presets",
    "make_scheduler": "schedule",
    "sample_dedim": "sampling",
}
__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from diffusers_dedim.encoders import EncoderEnsemble as EncoderEnsemble
    from diffusers_dedim.encoders import MobileFaceNet as MobileFaceNet
    from diffusers_dedim.faces import LandmarkRegressor as LandmarkRegressor
    from diffusers_dedim.guidance import EstimateGuidance as EstimateGuidance
    from diffusers_dedim.guidance import IdentityGuidance as IdentityGuidance
    from diffusers_dedim.pipeline_dedim import DeDiMPipeline as DeDiMPipeline
    from diffusers_dedim.presets import PRESETS as PRESETS
    from diffusers_dedim.presets import DeDiMPreset as DeDiMPreset
    from diffusers_dedim.results import DeDiMOutput as DeDiMOutput
    from diffusers_dedim.results import FaceResult as FaceResult
    from diffusers_dedim.sampling import sample_dedim as sample_dedim
    from diffusers_dedim.schedule import make_scheduler as make_scheduler


def __getattr__(name: str) -> Any:
    """Import public names on first use: `dedim --help` need not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f"diffusers_dedim.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
