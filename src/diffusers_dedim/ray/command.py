"""``dedim run --ray``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.presets import resolve_preset
from diffusers_dedim.ray.run import run_ray
from diffusers_dedim.run import RunResult
from diffusers_dedim.run_batch import RunSettings


def run_on_ray(
    paths: Sequence[Path],
    out: Path,
    settings: RunSettings,
    load: Callable[[], Any],
    device: str | None,
    **options: Any,
) -> RunResult:
    """`run_ray` with a GPU for each actor where the device is one, and a missing package as a plain error.

    Raises:
        DeDiMError: Ray is not installed, or as `run_ray`. ValueError: the preset is unknown.
    """
    import torch

    # here, not in every actor
    resolve_preset(settings.preset, threshold=settings.threshold, max_rounds=settings.max_rounds)
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.device(chosen)  # whether it is there is the workers' business
    except RuntimeError as error:
        raise DeDiMError(f"device {chosen!r} cannot be used: {error}") from error
    try:
        return run_ray(paths, out, settings, load, accelerators=int(chosen.startswith("cuda")), **options)
    except ImportError as error:
        raise DeDiMError(str(error)) from error
