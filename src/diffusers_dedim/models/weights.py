"""Where the bundled weights are."""

from __future__ import annotations

from pathlib import Path

BUNDLED_WEIGHTS = Path(__file__).parents[1] / "weights"
