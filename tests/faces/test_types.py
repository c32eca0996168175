from __future__ import annotations

import numpy as np
import pytest

from diffusers_dedim import errors
from diffusers_dedim.faces import Face

POINTS = np.array([[30, 40], [60, 40], [45, 60], [33, 75], [57, 75]], dtype=float)


def test_size_is_the_longer_side() -> None:
    assert Face((20.0, 10.0, 70.0, 90.0), POINTS, 0.9).size == 80
    assert Face((0.0, 10.0, 95.0, 90.0), POINTS, 0.9).size == 95


def test_landmarks_become_float64() -> None:
    assert Face((0.0, 0.0, 9.0, 9.0), POINTS.astype(np.float32), 0.9).landmarks.dtype == np.float64


@pytest.mark.parametrize(
    ("box", "points", "text"),
    [
        ((0.0, 0.0, 9.0, 9.0), POINTS[:4], r"landmarks: expected 5 finite points.*got shape \[4, 2\]"),
        ((0.0, 0.0, 9.0, 9.0), POINTS * np.nan, "with nan or inf"),
        ((50.0, 0.0, 9.0, 9.0), POINTS, "box: expected .* with x1 > x0"),
    ],
)
def test_face_refuses_nonsense(box: tuple[float, float, float, float], points: np.ndarray, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Face(box, points, 0.9)


@pytest.mark.parametrize(
    "name", ["NoFaceError", "FaceTooSmallError", "UnreadablePhotoError", "NotProtectedError"]
)
def test_errors_share_a_base(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.DeDiMError)
    assert issubclass(errors.DeDiMError, ValueError)
