from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from toys import MEAN_FACE, ToyEncoder, ToyLandmarker, face_at, in_bytes, seeded, tiny_preset, tiny_unet

from diffusers_dedim import (
    DeDiMPipeline,
    DeDiMPreset,
    LandmarkRegressor,
    MobileFaceNet,
    VisibilityNet,
    make_scheduler,
)

EASY = tiny_preset(threshold=0.999, max_rounds=1)


class HalfVisible(nn.Module):
    """Hides the crop from this row on."""

    def __init__(self, row: int) -> None:
        super().__init__()
        self.row = row

    def forward(self, crops: Tensor) -> Tensor:
        seen = torch.ones_like(crops[:, :1])
        seen[:, :, self.row :] = 0.0
        return seen


def pipeline(visibility: nn.Module | None) -> DeDiMPipeline:
    made = DeDiMPipeline(tiny_unet(), make_scheduler(), ToyEncoder(), ToyLandmarker(), visibility)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(90, 160, (150, 150, 3), dtype=np.uint8)


def test_what_is_covered_keeps_its_bits(photo: NDArray[np.uint8]) -> None:
    out = in_bytes(
        pipeline(HalfVisible(70))(photo, preset=EASY, faces=[face_at(20, 20, 112)], generator=seeded(0)[0])
    )
    changed = (out.images[0] != photo).any(axis=2)
    assert changed[:80].any()
    assert not changed[20 + 70 :].any()
    assert out.faces[0].treatment == "changed"


@pytest.mark.parametrize(
    ("small_faces", "fallback", "treatment"),
    [
        ("blur", "leave-out", "blurred"),
        ("pixelate", "leave-out", "pixelated"),
        ("skip", "leave-out", "left"),
        ("skip", "blur", "blurred"),
        ("error", "pixelate", "pixelated"),
    ],
)
@pytest.mark.parametrize(
    ("row", "preset"), [(40, EASY), (75, tiny_preset(threshold=0.01, max_rounds=1, retries=3))]
)  # too little to try; too little to succeed
def test_a_face_of_which_too_little_is_visible_is_treated_like_a_small_one(
    photo: NDArray[np.uint8], row: int, preset: DeDiMPreset, small_faces: str, fallback: str, treatment: str
) -> None:
    with pytest.warns(UserWarning, match="too little of it is visible|stayed above the threshold"):
        out = in_bytes(
            pipeline(HalfVisible(row))(
                photo, preset=preset, faces=[face_at(20, 20, 112)], small_faces=small_faces, fallback=fallback
            )
        )
    (face,) = out.faces
    if treatment == "left" and row == 75:
        treatment = "changed"  # as far as it went
    assert (face.treatment, face.reason) == (treatment, "too little of it is visible")
    assert face.attempts == (("first", "stronger") if row == 75 else ())
    assert face.is_protected == (treatment in ("blurred", "pixelated"))
    assert np.array_equal(out.images[0], photo) == (treatment == "left")


def test_without_a_visibility_network_all_is_visible(photo: NDArray[np.uint8]) -> None:
    assert pipeline(None).visibility is None
    whole, seen = (
        in_bytes(pipeline(part)(photo, preset=EASY, faces=[face_at(20, 20, 112)], generator=seeded(0)[0]))
        for part in (None, HalfVisible(112))
    )
    assert np.array_equal(whole.images[0], seen.images[0])


def test_points_that_contradict_one_another_are_covered(photo: NDArray[np.uint8]) -> None:
    upside_down = face_at(20, 20, 112)
    points = np.array([[130.0, 130.0]]) + 18 - upside_down.landmarks
    wrong = type(upside_down)(upside_down.box, points * (1, 0.4) + (0, 40), 0.95)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        out = in_bytes(pipeline(None)(photo, preset=EASY, faces=[wrong]))
    assert [(face.treatment, face.reason) for face in out.faces] == [
        ("blurred", "the points found in it contradict one another")
    ]


def test_the_network_is_saved_and_loaded_and_may_be_missing(tmp_path: Path) -> None:
    landmarker = LandmarkRegressor()
    landmarker.mean_shape.copy_(MEAN_FACE)
    whole = DeDiMPipeline(tiny_unet(), make_scheduler(), MobileFaceNet(), landmarker, VisibilityNet(0.2))
    whole.save_pretrained(tmp_path / "whole")
    loaded = DeDiMPipeline.from_pretrained(tmp_path / "whole")
    assert isinstance(loaded.visibility, VisibilityNet)
    assert loaded.visibility.config.width == 0.2
    assert (tmp_path / "whole" / "visibility" / "diffusers_dedim.py").is_file()
    old = DeDiMPipeline(tiny_unet(), make_scheduler(), MobileFaceNet(), landmarker)
    old.save_pretrained(tmp_path / "old")
    assert not (tmp_path / "old" / "visibility").exists()
    assert DeDiMPipeline.from_pretrained(tmp_path / "old").visibility is None
    assert DeDiMPipeline.from_pipe(loaded).visibility is loaded.visibility
