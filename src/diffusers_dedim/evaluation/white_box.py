"""The methods guided by a recogniser that somebody exported, instead of the pipeline's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers_dedim.encoders import EncoderEnsemble, OnnxEncoder

OWN = "own"


def guided_by(pipe: Any, guides: Sequence[str | Path]) -> Any:
    """Return a pipeline of the same parts with another recogniser, or several at once (`EncoderEnsemble`).

    Args:
        pipe: a `DeDiMPipeline`.
        guides: ONNX files, which are converted to torch; ``"own"`` is the pipeline's.

    Returns:
        A new pipeline on the same device, without progress bars.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: onnxruntime or onnx2torch is missing.
        ValueError: a file does not fit, or no guide is named.
    """
    encoders = [
        pipe.face_encoder if str(guide) == OWN else OnnxEncoder(guide, differentiable=True)
        for guide in guides
    ]
    encoder = encoders[0] if len(encoders) == 1 else EncoderEnsemble(encoders)
    guided = type(pipe)(pipe.unet, pipe.scheduler, encoder.to(pipe.device), pipe.landmarker)
    guided.face_detector = pipe.face_detector
    guided.set_progress_bar_config(disable=True)
    return guided
