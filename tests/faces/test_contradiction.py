from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from toys import MEAN_FACE

from diffusers_dedim.faces import AlignedFace, Face, align_face, contradictions
from diffusers_dedim.faces.contradiction import mirror_errors, point_errors
from diffusers_dedim.models.landmarks import mirror_landmarks

LANDMARKS = MEAN_FACE[None]
FIVE = torch.stack(
    [MEAN_FACE[19:25].mean(0), MEAN_FACE[25:31].mean(0), MEAN_FACE[13], MEAN_FACE[31], MEAN_FACE[37]]
)


def found(points: torch.Tensor = FIVE, confidence: float = 1.0) -> AlignedFace:
    """A face in a photo of 300 px whose crop, twice as small, shows these five points, crop px."""
    photo = np.zeros((300, 300, 3), dtype=np.uint8)
    face = Face((20.0, 20.0, 244.0, 244.0), 2 * points.double().numpy() + 20, confidence)
    return align_face(photo, face)


def placed(aligned: AlignedFace) -> torch.Tensor:
    """The landmarks in the crop as it was aligned."""
    points = 2 * MEAN_FACE.double().numpy() + 20
    return torch.from_numpy(points @ aligned.to_crop[:, :2].T + aligned.to_crop[:, 2]).float()[None]


def test_points_that_agree_are_believed() -> None:
    face = found()
    landmarks = placed(face)
    assert contradictions([face], landmarks, mirror_landmarks(landmarks)) == [""]
    assert point_errors([face], landmarks).item() == pytest.approx(0, abs=1e-5)  # float32
    assert mirror_errors(landmarks, mirror_landmarks(landmarks)).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("confidence", [1.0, 0.95])
def test_upright_points_in_a_face_on_its_side_are_not_believed(confidence: float) -> None:
    face = found(confidence=confidence)
    x, y = placed(face).unbind(-1)
    lying = torch.stack([111 - y, x], -1)  # what it truly shows, a quarter turn away
    assert contradictions([face], lying, mirror_landmarks(lying)) == [
        "the points found in it contradict one another"
    ]


def test_an_unsure_finding_may_contradict_less() -> None:
    moved = FIVE.clone()
    moved[2:, 0] += 14  # nose and mouth to one side
    reasons = []
    for confidence in (0.999, 0.95):
        face = found(moved, confidence)
        landmarks = placed(face)
        reasons += contradictions([face], landmarks, mirror_landmarks(landmarks))
    assert [bool(reason) for reason in reasons] == [False, True]


def test_landmarks_that_change_under_mirroring_are_not_believed() -> None:
    face = found()
    landmarks = placed(face)
    assert contradictions([face], landmarks, mirror_landmarks(landmarks) + torch.tensor([8.0, 0]))[0]


def test_nan_is_not_believed() -> None:
    face = found()
    assert contradictions([face], placed(face) * float("nan"), LANDMARKS)[0]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=re.escape("expected [1, 51, 2] each, got [2, 51, 2] and [1, 51, 2]")
    ):
        contradictions([found()], LANDMARKS.expand(2, -1, -1), LANDMARKS)
