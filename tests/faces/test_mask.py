from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusers_dedim.faces import keep_between_brows, keep_eyes, landmark_mask


def points(count: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(count, 51, 2, generator=torch.Generator().manual_seed(seed)) * 90 + 11


def brute_force(landmarks: Tensor, size: int) -> np.ndarray:
    """Distance of every pixel to the nearest landmark, one face, float64."""
    y, x = np.mgrid[0:size, 0:size]
    nodes = landmarks.double().numpy()
    return np.min([np.hypot(x - px, y - py) for px, py in nodes], axis=0)


def test_discs_equal_the_definition() -> None:
    landmarks = points(1)
    mask = landmark_mask(landmarks, radius=10.0)
    np.testing.assert_array_equal(mask[0, 0].numpy(), brute_force(landmarks[0], 112) <= 10.0)


def test_the_limit_belongs_to_the_disc() -> None:
    mask = landmark_mask(torch.tensor([[[50.0, 40.0]]]), radius=5.0)[0, 0]
    assert mask[40, 55] == mask[45, 50] == mask[43, 54] == 1  # (3, 4, 5)
    assert mask[40, 56] == mask[44, 54] == 0
    assert mask.sum() == 81  # lattice points in a disc of radius 5


def test_feather_is_a_half_cosine_inside_the_disc() -> None:
    landmarks = points(1)
    distance = brute_force(landmarks[0], 112)
    mask = landmark_mask(landmarks, radius=10.0, feather=4.0)[0, 0].double().numpy()
    expected = 0.5 * (1 + np.cos(math.pi * np.clip((distance - 6) / 4, 0, 1)))
    np.testing.assert_allclose(mask, expected, atol=1e-5)  # float32 distances
    assert (mask[distance >= 10.0001] == 0).all()
    assert (mask[distance <= 5.9999] == 1).all()


@pytest.mark.parametrize("feather", [0.0, 0.5, 10.0])
def test_feather_never_leaves_the_disc(feather: float) -> None:
    plain = landmark_mask(points(), radius=10.0)
    feathered = landmark_mask(points(), radius=10.0, feather=feather)
    assert ((feathered >= 0) & (feathered <= plain)).all()


def test_batch_equals_singles_across_chunks() -> None:
    landmarks = points(37)
    batch = landmark_mask(landmarks, 8.0, 3.0)
    assert batch.shape == (37, 1, 112, 112)
    singles = torch.cat([landmark_mask(one[None], 8.0, 3.0) for one in landmarks])
    assert torch.equal(batch, singles)


def test_empty_batch_other_size_and_points_outside() -> None:
    assert landmark_mask(torch.zeros(0, 51, 2)).shape == (0, 1, 112, 112)
    assert landmark_mask(torch.zeros(1, 51, 2), size=20).shape == (1, 1, 20, 20)
    assert landmark_mask(torch.full((1, 51, 2), -500.0)).sum() == 0


def test_result_is_float32_without_gradient() -> None:
    mask = landmark_mask(points().double().requires_grad_())
    assert mask.dtype == torch.float32
    assert not mask.requires_grad


@pytest.mark.parametrize(
    ("landmarks", "radius", "feather", "text"),
    [
        (torch.zeros(51, 2), 10.0, 0.0, r"landmarks: expected shape \[N, K, 2\].*got \[51, 2\]"),
        (torch.full((1, 51, 2), math.nan), 10.0, 0.0, "landmarks: expected finite"),
        (torch.zeros(1, 51, 2), 0.0, 0.0, "radius: expected a number of crop px above 0, got 0.0"),
        (torch.zeros(1, 51, 2), 5.0, 6.0, r"feather: expected 0\.\.radius \(5.0\) crop px, got 6.0"),
        (torch.zeros(1, 51, 2), 5.0, -1.0, "feather: expected"),
    ],
)
def test_wrong_input_is_named(landmarks: Tensor, radius: float, feather: float, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        landmark_mask(landmarks, radius, feather)


def test_the_middle_of_each_eye_keeps_its_share_and_nothing_else_changes() -> None:
    landmarks = points(2)
    mask = torch.ones(2, 1, 112, 112)
    kept = keep_eyes(mask, landmarks, 0.8)
    for face, face_mask in zip(landmarks, kept[:, 0], strict=True):
        for eye in (face[19:25].mean(0), face[25:31].mean(0)):
            x, y = eye.round().int().tolist()
            assert face_mask[y, x] == pytest.approx(0.2, abs=0.03)  # the middle lies between pixels
        centres = torch.stack([face[19:25].mean(0), face[25:31].mean(0)]).numpy()
        ys, xs = np.mgrid[0:112, 0:112]
        nearest = np.min([np.hypot(xs - x, ys - y) for x, y in centres], axis=0)
        np.testing.assert_allclose(face_mask, 1 - 0.8 * np.exp(-(nearest**2) / 18), atol=1e-5)
    assert torch.equal(keep_eyes(mask, landmarks, 0.0), mask)
    assert float(keep_eyes(mask * 0, landmarks, 1.0).abs().max()) == 0


def test_the_skin_between_the_brows_keeps_its_share_and_nothing_else_changes() -> None:
    landmarks = points(2)
    kept = keep_between_brows(torch.ones(2, 1, 112, 112), landmarks, 0.8)
    ys, xs = np.mgrid[0:112, 0:112]
    for face, face_mask in zip(landmarks, kept[:, 0], strict=True):
        x, y = face[4:6].mean(0).tolist()  # the inner ends
        expected = 1 - 0.8 * np.exp(-((xs - x) ** 2) / 32 - (ys - y) ** 2 / 72)
        np.testing.assert_allclose(face_mask, expected, atol=1e-5)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_of_the_eyes_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        keep_eyes(torch.ones(1, 1, 112, 112), points(1), share)


def test_the_eyes_of_other_landmarks_are_unknown() -> None:
    with pytest.raises(ValueError, match="51"):
        keep_eyes(torch.ones(1, 1, 112, 112), torch.zeros(1, 68, 2), 0.5)
