from __future__ import annotations

import numpy as np
import pytest
import torch
from face_samples import make_face
from numpy.typing import NDArray
from PIL import Image
from skimage.transform import SimilarityTransform

from diffusers_dedim.faces import (
    ARCFACE_TEMPLATE,
    Face,
    align_face,
    estimate_similarity,
    inside_photo,
    whole_crop,
)
from diffusers_dedim.faces.align import invert, warp


def similarity(scale: float, degrees: float, shift: tuple[float, float]) -> NDArray[np.float64]:
    c, s = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def apply(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return points @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize("seed", range(5))
def test_estimate_equals_skimage(seed: int) -> None:
    rng = np.random.default_rng(seed)
    src = ARCFACE_TEMPLATE * rng.uniform(0.2, 9) + rng.normal(0, 3, (5, 2))
    dst = apply(similarity(0.7, rng.uniform(-170, 170), (500, -3)), ARCFACE_TEMPLATE)
    reference = SimilarityTransform.from_estimate(src, dst).params[:2]
    # both are closed forms in float64; shifts of hundreds of px leave 1e-10
    np.testing.assert_allclose(estimate_similarity(src, dst), reference, rtol=0, atol=1e-9)


def test_estimate_recovers_an_exact_similarity() -> None:
    matrix = similarity(3.5, 25, (-40, 900))
    src = ARCFACE_TEMPLATE
    np.testing.assert_allclose(estimate_similarity(src, apply(matrix, src)), matrix, atol=1e-9)


@pytest.mark.parametrize(
    ("src", "dst", "text"),
    [
        (np.zeros((5, 3)), ARCFACE_TEMPLATE, r"src: expected at least two points .* got \[5, 3\]"),
        (ARCFACE_TEMPLATE, ARCFACE_TEMPLATE[:4], r"dst: expected as many points as src \(5\), got 4"),
        (ARCFACE_TEMPLATE[:1], ARCFACE_TEMPLATE[:1], r"src: expected at least two points"),
        (ARCFACE_TEMPLATE * np.nan, ARCFACE_TEMPLATE, "src: expected finite coordinates"),
        (np.full((5, 2), 7.3), ARCFACE_TEMPLATE, "points that lie in one place"),
        (ARCFACE_TEMPLATE, np.full((5, 2), 7.3), "points that lie in one place"),
    ],
)
def test_estimate_says_what_is_wrong(src: np.ndarray, dst: np.ndarray, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        estimate_similarity(src, dst)


def test_identity_transform_gives_the_pixels_themselves() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (160, 150, 3), dtype=np.uint8)
    aligned = align_face(photo, make_face(ARCFACE_TEMPLATE + np.array([20, 30])))
    expected = torch.from_numpy(photo[30:142, 20:132].copy()).permute(2, 0, 1) / 127.5 - 1
    assert aligned.crop.shape == (3, 112, 112)
    assert aligned.crop.dtype == torch.float32
    # float32 positions are 1e-5 px off, times a contrast of 2
    torch.testing.assert_close(aligned.crop, expected, atol=2e-4, rtol=0)
    np.testing.assert_allclose(aligned.to_crop, [[1, 0, -20], [0, 1, -30]], atol=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.7, 2.0, 4.6, 11.0])
@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_a_ramp_is_sampled_where_it_should_be(scale: float, degrees: float) -> None:
    """On a linear ramp any fair resampling gives the value at the centre: half-pixel errors show at once."""
    photo = np.zeros((900, 1100, 3), dtype=np.uint8)
    photo[..., 0] = np.arange(1100) * 255 // 1099
    photo[..., 1] = np.arange(900)[:, None] * 255 // 899
    height_width = 112 * scale
    to_photo = similarity(scale, degrees, (540 - height_width / 2, 440 - height_width / 2))
    face = make_face(apply(to_photo, ARCFACE_TEMPLATE))
    crop = (align_face(photo, face).crop.double() + 1) * 127.5
    y, x = np.mgrid[0:112, 0:112]
    where = apply(to_photo, np.stack([x, y], axis=-1).reshape(-1, 2)).reshape(112, 112, 2)
    inside = ((where > 12) & (where < [1087, 887])).all(axis=-1)
    for channel, length in ((0, 1099), (1, 899)):
        error = crop[channel].numpy() - (where[..., channel] * 255 / length - 0.5)
        # 0.5 for the whole-number steps of the ramp at scales below 1, less where steps average out
        assert np.abs(error[inside]).max() < 0.65
        assert abs(error[inside].mean()) < 0.05


def test_large_faces_do_not_alias() -> None:
    """A one-pixel checkerboard is flat grey at a sixth of its size; plain bilinear shows moire."""
    photo = (np.indices((900, 900)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    crop = align_face(photo, make_face(ARCFACE_TEMPLATE * 6.3 + 60)).crop
    assert crop.abs().max() < 0.1


def test_scale_does_not_change_the_crop(photo: NDArray[np.uint8], face: Face) -> None:
    crop = align_face(photo, face).crop
    for side in (768, 1536, 2304):
        larger = np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.LANCZOS))
        scaled = make_face((face.landmarks + 0.5) * (side / 512) - 0.5)
        error = (align_face(larger, scaled).crop - crop).square().mean().sqrt()
        # 45 dB: the two paths blur a little differently; half a pixel of shift would be 29 dB
        assert 20 * torch.log10(2 / error) > 42


def test_beyond_the_photo_its_edge_is_repeated(photo: NDArray[np.uint8], face: Face) -> None:
    cut = photo[:, 205:]
    crop = align_face(cut, make_face(face.landmarks - [205, 0])).crop
    repeated = np.pad(cut, ((0, 0), (205, 0), (0, 0)), mode="edge")
    # the same pixels, from positions in another frame: float32 rounding
    torch.testing.assert_close(crop, align_face(repeated, face).crop, atol=2e-3, rtol=0)


def test_tiny_photo_and_tiny_face() -> None:
    photo = np.full((3, 2, 3), 200, dtype=np.uint8)
    crop = align_face(photo, make_face(ARCFACE_TEMPLATE / 60)).crop
    torch.testing.assert_close(crop, torch.full((3, 112, 112), 200 / 127.5 - 1), atol=1e-5, rtol=0)


def test_huge_face_fills_the_photo() -> None:
    photo = np.full((1000, 700, 3), 40, dtype=np.uint8)
    crop = align_face(photo, make_face(ARCFACE_TEMPLATE * 90 - 3000)).crop
    torch.testing.assert_close(crop, torch.full((3, 112, 112), 40 / 127.5 - 1), atol=1e-5, rtol=0)


def test_face_outside_the_photo_is_an_error() -> None:
    photo = np.zeros((50, 60, 3), dtype=np.uint8)
    with pytest.raises(
        ValueError, match=r"face: expected landmarks inside the photo of 60x50 px.*another photo"
    ):
        align_face(photo, make_face(ARCFACE_TEMPLATE + 500))


def test_photo_must_be_uint8(face: Face) -> None:
    with pytest.raises(TypeError, match="photo: expected a numpy array of dtype uint8, got float32"):
        align_face(np.zeros((50, 60, 3), dtype=np.float32), face)  # type: ignore[arg-type]


def test_inside_the_photo_is_what_a_white_photo_on_black_shows() -> None:
    """Against `warp` with a black surrounding: a pixel is inside where at least half of it is white."""
    photo = np.full((90, 130, 3), 255, dtype=np.uint8)
    face = Face((0.0, 0.0, 90.0, 90.0), apply(similarity(0.9, 20, (40, -15)), ARCFACE_TEMPLATE), 1.0)
    aligned = align_face(photo, face)
    white = warp(torch.ones(1, 90, 130), invert(aligned.to_crop), (112, 112), "bilinear", "zeros")
    inside = inside_photo(aligned, photo.shape)
    assert inside.shape == (1, 112, 112)
    assert 0.2 < inside.mean() < 0.95
    clear = (white < 0.2) | (white > 0.8)  # at a corner half of a pixel and half of its weight differ
    torch.testing.assert_close(inside[clear], (white[clear] > 0.5).float(), rtol=0, atol=0)


def test_a_whole_face_is_inside() -> None:
    photo = np.zeros((112, 112, 3), dtype=np.uint8)
    assert inside_photo(whole_crop(photo), photo.shape).all()
