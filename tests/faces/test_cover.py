from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toys import face_at

from diffusers_dedim.faces import Face, cover_face

Pixels = NDArray[np.uint8]
COVERS = ["blur", "pixelate"]


@pytest.fixture(scope="module")
def photo() -> Pixels:
    """Two big squares as eyes on skin, a little noise, on a blue wall."""
    rng = np.random.default_rng(0)
    pixels = np.full((120, 160, 3), (40, 60, 160), float)
    pixels[36:84, 56:104] = (190, 150, 130)
    pixels[50:58, 66:74] = pixels[50:58, 86:94] = 30
    return (pixels + rng.normal(0, 2, (120, 160, 1))).round().clip(0, 255).astype(np.uint8)


FACE = face_at(56, 36, 48)


@pytest.mark.parametrize("cover", COVERS)
def test_features_go_skin_stays_and_the_rest_keeps_its_bits(photo: Pixels, cover: str) -> None:
    original = photo.copy()
    covered = cover_face(photo, FACE, cover)
    np.testing.assert_array_equal(photo, original)
    outside = np.ones(photo.shape[:2], bool)
    outside[20:100, 40:120] = False
    np.testing.assert_array_equal(covered[outside], photo[outside])
    eyes, skin = (slice(50, 58), slice(66, 74)), (slice(60, 66), slice(76, 84))
    contrast = photo[skin].mean() - photo[eyes].mean()
    assert covered[skin].mean() - covered[eyes].mean() < contrast / (4 if cover == "blur" else 1.2)
    # of what is covered the mean colour stays, within the darker eyes' share: none of the wall's blue flows in
    middle = (slice(42, 78), slice(62, 98))
    np.testing.assert_allclose(covered[middle].mean((0, 1)), photo[middle].mean((0, 1)), rtol=0, atol=12)


def test_the_blur_has_the_grain_of_the_photo_and_fades(photo: Pixels) -> None:
    def grain(pixels: Pixels) -> float:
        return float(np.diff(pixels[60:66, 76:84].astype(float).mean(2), axis=1).std()) / 2**0.5

    covered = cover_face(photo, FACE)
    assert grain(covered) == pytest.approx(grain(photo), rel=0.6)  # some forty samples each
    clean = np.full((120, 160, 3), 90, np.uint8)
    np.testing.assert_array_equal(cover_face(clean, FACE), clean)
    # along the middle row no step is as high as that from skin to wall
    line = covered[60, :, 0].astype(int)
    assert abs(np.diff(line)).max() < abs(np.diff(photo[60, :, 0].astype(int))).max() / 2


def test_the_same_photo_gets_the_same_cover_whatever_was_drawn(photo: Pixels) -> None:
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    first = cover_face(photo, FACE)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    np.testing.assert_array_equal(cover_face(photo, FACE), first)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        np.testing.assert_array_equal(cover_face(photo, FACE), first)


@pytest.mark.parametrize("cover", COVERS)
def test_a_grey_photo_stays_grey(photo: Pixels, cover: str) -> None:
    grey = np.repeat(photo.mean(2, keepdims=True).astype(np.uint8), 3, axis=2)
    covered = cover_face(grey, FACE, cover)
    assert (covered != grey).any()
    np.testing.assert_array_equal(covered, covered[..., :1].repeat(3, axis=2))


@pytest.mark.parametrize("cover", COVERS)
@pytest.mark.parametrize("x", [-30.0, 140.0, 158.0])
def test_a_face_cut_by_the_edge_is_covered_as_far_as_it_is_there(photo: Pixels, cover: str, x: float) -> None:
    noisy = np.random.default_rng(1).integers(0, 256, photo.shape, dtype=np.uint8)
    covered = cover_face(noisy, face_at(x, 40, 48), cover)
    column = min(max(round(x + 24), 0), 159)
    assert (covered[55:70, column] != noisy[55:70, column]).any()


def test_a_face_beyond_the_photo_changes_nothing(photo: Pixels) -> None:
    np.testing.assert_array_equal(cover_face(photo, face_at(400, 400, 30)), photo)


def test_points_outside_the_box_are_covered_too() -> None:
    noisy = np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    points = FACE.landmarks + np.array([[0, 0], [24, 0], [0, 0], [0, 0], [0, 0]])
    covered = cover_face(noisy, Face(FACE.box, points, 0.9))
    x, y = points[1].round().astype(int)
    change = abs(covered[y - 2 : y + 3, x - 2 : x + 3].astype(int) - noisy[y - 2 : y + 3, x - 2 : x + 3])
    assert change.mean() > 30


def test_a_face_of_thousands_of_pixels_takes_no_time_and_keeps_no_detail() -> None:
    noisy = np.random.default_rng(1).integers(0, 256, (2000, 1600, 3), dtype=np.uint8)
    begin = time.process_time()
    covered = cover_face(noisy, face_at(100, 300, 1400))
    assert time.process_time() - begin < 10
    assert covered[900:1100, 700:900].std() < 12  # at most the grain; 74 before


def test_a_pixelated_face_is_of_squares(photo: Pixels) -> None:
    noisy = np.random.default_rng(1).integers(0, 256, photo.shape, dtype=np.uint8)
    covered = cover_face(noisy, FACE, "pixelate")
    assert len(np.unique(covered[50:70, 70:90].reshape(-1, 3), axis=0)) <= 16


def test_another_cover_is_refused(photo: Pixels) -> None:
    with pytest.raises(ValueError, match=r"cover: expected one of \['blur', 'pixelate'\], got 'emoji'\."):
        cover_face(photo, FACE, "emoji")  # type: ignore[arg-type]


@pytest.mark.parametrize("cover", COVERS)
def test_a_larger_face_in_front_keeps_its_bits(cover: str) -> None:
    noisy = np.random.default_rng(1).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    behind, front = face_at(60, 30, 40), face_at(90, 20, 60)
    covered = cover_face(noisy, behind, cover, [front])
    np.testing.assert_array_equal(covered[40:60, 100:130], noisy[40:60, 100:130])
    assert (covered[40:60, 65:80] != noisy[40:60, 65:80]).any(axis=2).mean() > 0.9
    for other in (face_at(90, 20, 30), face_at(55, 20, 60), behind):  # smaller; around it; itself
        np.testing.assert_array_equal(
            cover_face(noisy, behind, cover, [other]), cover_face(noisy, behind, cover)
        )


@pytest.mark.parametrize("cover", COVERS)
def test_what_lies_near_its_middle_is_covered_whoever_stands_in_front(cover: str) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    # the ellipse of the one in front ends beside the middle of the other
    behind, front = face_at(40, 30, 48), face_at(64, 20, 60)
    covered = cover_face(noisy, behind, cover, [front])
    middle = (slice(40, 66), slice(60, 72))
    changed = abs(covered[middle].astype(int) - noisy[middle])
    alone = abs(cover_face(noisy, behind, cover)[middle].astype(int) - noisy[middle])
    np.testing.assert_array_equal(changed, alone)
