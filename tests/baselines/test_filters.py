from __future__ import annotations

import numpy as np
import pytest

from diffusers_dedim.baselines import blur_face, pixelate_face
from diffusers_dedim.baselines.filters import box_region
from diffusers_dedim.faces import ARCFACE_TEMPLATE, Face

PHOTO = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
FACE = Face((20.0, 10.0, 79.0, 69.0), ARCFACE_TEMPLATE / 2 + 20, 1.0)  # 60 x 60 px, both ends included
INSIDE = np.s_[10:70, 20:80]


@pytest.mark.parametrize("change", [blur_face, pixelate_face])
def test_the_box_changes_and_nothing_else(change) -> None:
    before = PHOTO.copy()
    result = change(PHOTO, FACE)
    outside = np.ones(PHOTO.shape, bool)
    outside[INSIDE] = False
    assert np.array_equal(PHOTO, before)
    assert np.array_equal(result[outside], PHOTO[outside])
    assert (result[INSIDE] != PHOTO[INSIDE]).mean() > 0.9
    assert result[INSIDE].std() < 0.5 * PHOTO[INSIDE].std()
    # rounding, and at the box's rim what the blur takes from around it
    assert result[INSIDE].mean() == pytest.approx(PHOTO[INSIDE].mean(), abs=3)


def test_pixelate_equals_block_means() -> None:
    result = pixelate_face(PHOTO, FACE, blocks=12)
    blocks = PHOTO[INSIDE].reshape(12, 5, 12, 5, 3).astype(float)
    expected = blocks.mean((1, 3)).repeat(5, 0).repeat(5, 1)
    assert np.abs(result[INSIDE] - expected).max() <= 1 + 1e-9  # Pillow rounds after each of two passes


def test_one_block_is_the_mean() -> None:
    assert len(np.unique(pixelate_face(PHOTO, FACE, blocks=1)[INSIDE].reshape(-1, 3), axis=0)) == 1


def test_a_box_beyond_the_photo_is_cut() -> None:
    face = Face((-30.0, -5.0, 400.0, 20.0), ARCFACE_TEMPLATE, 1.0)
    assert box_region(PHOTO, face) == (0, 0, 120, 21)
    for change in (blur_face, pixelate_face):
        assert np.array_equal(change(PHOTO, face)[21:], PHOTO[21:])


def test_errors() -> None:
    away = Face((500.0, 500.0, 520.0, 520.0), ARCFACE_TEMPLATE, 1.0)
    with pytest.raises(ValueError, match="face: expected a box inside the photo of 120x90 px"):
        blur_face(PHOTO, away)
    with pytest.raises(ValueError, match="strength: expected a share above 0 and up to 1, got 0"):
        blur_face(PHOTO, FACE, strength=0)
    with pytest.raises(ValueError, match="blocks: expected at least 1, got 0"):
        pixelate_face(PHOTO, FACE, blocks=0)
