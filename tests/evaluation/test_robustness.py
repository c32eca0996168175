from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from scipy.ndimage import gaussian_filter

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.evaluation.robustness import (
    BLUR_SIGMA,
    TRANSFORMS,
    make_purifier,
    make_transforms,
    sdedit,
)
from diffusers_dedim.faces import ARCFACE_TEMPLATE, Face


@pytest.fixture
def photo(crop: np.ndarray) -> np.ndarray:
    """Not square, of odd sides, larger than a crop."""
    return np.tile(crop, (2, 2, 1))[:151, :133]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_keeps_shape_and_input_and_is_deterministic(name: str, photo: np.ndarray) -> None:
    before, small = photo.copy(), photo[:3, :2]
    first, tiny = TRANSFORMS[name]([photo, small])
    again = TRANSFORMS[name]([small, photo])[1]
    assert (first.shape, first.dtype) == (photo.shape, np.uint8)
    assert tiny.shape == small.shape
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(photo, before)
    assert not np.array_equal(first, photo)
    # blocks of 8 px in mid tones survive: no channel swap, no shift
    assert np.abs(first.astype(float) - photo).mean() < 10


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_flat_photo_stays_flat(name: str) -> None:
    flat = np.full((40, 30, 3), 128, np.uint8)
    np.testing.assert_array_equal(TRANSFORMS[name]([flat])[0], flat)


def test_lower_jpeg_quality_changes_more(photo: np.ndarray) -> None:
    errors = [
        np.square(TRANSFORMS[f"jpeg-{quality}"]([photo])[0].astype(float) - photo).mean()
        for quality in (95, 75, 50)
    ]
    assert errors == sorted(errors)


def test_jpeg_is_what_pillow_writes(photo: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "JPEG", quality=75, subsampling=2)  # 2: 4:2:0
    np.testing.assert_array_equal(TRANSFORMS["jpeg-75"]([photo])[0], np.array(Image.open(file)))


def test_the_blur_is_gaussian(photo: np.ndarray) -> None:
    expected = gaussian_filter(photo.astype(float), (BLUR_SIGMA, BLUR_SIGMA, 0), mode="mirror", truncate=4)
    # one grey level: rounding of two sums
    np.testing.assert_allclose(TRANSFORMS["gaussian-blur"]([photo])[0], expected, atol=0.51)


def test_purification_changes_the_face_alone_and_follows_its_seed(
    pipe: DeDiMPipeline, photo: np.ndarray
) -> None:
    pipe.face_detector = lambda _: [Face((4.0, 4.0, 116.0, 116.0), ARCFACE_TEMPLATE + 4, 1.0)]
    before, other = photo.copy(), photo[::-1].copy()
    first = make_purifier(pipe, 20)([photo, other])
    assert [item.shape for item in first] == [photo.shape, other.shape]
    np.testing.assert_array_equal(photo, before)
    # beside the crop (it ends at x, y = 4 + 111, one more for the bilinear rim) the photo keeps its bits
    np.testing.assert_array_equal(first[0][118:], photo[118:])
    np.testing.assert_array_equal(first[0][:, 118:], photo[:, 118:])
    assert np.abs(first[0][4:116, 4:116].astype(float) - photo[4:116, 4:116]).mean() > 1
    # alone, or in another place, a photo gets the same noise
    np.testing.assert_array_equal(make_purifier(pipe, 20)([other, photo])[1], first[0])
    assert not np.array_equal(make_purifier(pipe, 20, seed=1)([photo])[0], first[0])


def test_more_noise_washes_more_away(pipe: DeDiMPipeline, crop: np.ndarray) -> None:
    washed = [make_purifier(pipe, start, aligned=True)([crop])[0] for start in (10, 100)]
    weak, strong = (np.square(item.astype(float) - crop).mean() for item in washed)
    assert 0 < weak < strong


def test_the_pipelines_own_scheduler_is_used(pipe: DeDiMPipeline, crop: np.ndarray) -> None:
    by_ddpm = make_purifier(pipe, 20, aligned=True)([crop])[0]
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    by_ddim = make_purifier(pipe, 20, aligned=True)([crop])[0]
    assert not np.array_equal(by_ddim, by_ddpm)


def test_a_photo_without_a_face_comes_back(pipe: DeDiMPipeline, photo: np.ndarray) -> None:
    pipe.face_detector = lambda _: []
    (result,) = make_purifier(pipe, 20)([photo])
    np.testing.assert_array_equal(result, photo)
    assert result is not photo


def test_purifiers_join_the_others_by_name(pipe: DeDiMPipeline) -> None:
    assert list(make_transforms(pipe, start_timesteps=(5, 100))) == [*TRANSFORMS, "purify-5", "purify-100"]


def test_wrong_timesteps_are_refused_at_once(pipe: DeDiMPipeline) -> None:
    with pytest.raises(ValueError, match="start_timestep: expected at least 1, got 0"):
        make_purifier(pipe, 0)
    with pytest.raises(ValueError, match=r"start_timestep: expected 1\.\.1000, the scheduler's number of"):
        make_purifier(pipe, 2000)
    with pytest.raises(ValueError, match="generators: expected one for each of 2 crops, got 1"):
        sdedit(pipe, torch.zeros(2, 3, 112, 112), 20, 2, [torch.Generator()])
