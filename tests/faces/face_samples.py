"""Sample points and faces the tests of this folder share (a module: conftest names clash across folders)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusers_dedim.faces import Face

# MTCNN's points in the 512-px photo bundled with scikit-image, rounded and looked at in an aligned crop.
ASTRONAUT_POINTS = np.array([[205.0, 102.0], [247.0, 104.0], [225.5, 129.0], [202.5, 140.0], [245.5, 142.0]])


def make_face(points: NDArray[np.float64]) -> Face:
    """A face whose box surrounds its points by half their extent."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = (high - low) / 2 + 1e-3
    x0, y0 = low - margin
    x1, y1 = high + margin
    return Face((float(x0), float(y0), float(x1), float(y1)), points, 1.0)
