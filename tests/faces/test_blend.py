from __future__ import annotations

import numpy as np
import pytest
import torch
from face_samples import make_face
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusers_dedim.faces import ARCFACE_TEMPLATE, AlignedFace, Face, align_face, landmark_mask, paste_back

FULL = torch.ones(1, 112, 112)


def smooth_change(amplitude: float = 0.15) -> Tensor:
    """Waves of 25 px: what a change of a face's form looks like, far from the sampling limit."""
    y, x = torch.meshgrid(torch.arange(112.0), torch.arange(112.0), indexing="ij")
    return amplitude * torch.stack([torch.sin(x / 4), torch.sin(y / 4), torch.cos((x + y) / 6)])


def face_mask(feather: float = 6.0) -> Tensor:
    points = torch.tensor(ARCFACE_TEMPLATE, dtype=torch.float32)[None]
    return landmark_mask(points, radius=14.0, feather=feather)[0]


def scaled(photo: NDArray[np.uint8], face: Face, side: int) -> tuple[NDArray[np.uint8], Face]:
    picture = np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.LANCZOS))
    return picture, make_face((face.landmarks + 0.5) * (side / 512) - 0.5)


def masked_distance(aligned: AlignedFace, mask: Tensor, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """True where a photo pixel lies more than 1.5 crop px away from every pixel of the mask's support."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]]
    where = np.stack([x, y], axis=-1) @ aligned.to_crop[:, :2].T + aligned.to_crop[:, 2]
    support = torch.nn.functional.max_pool2d((mask > 0).float()[None], 5, 1, 2)[0, 0].numpy() > 0
    nearest = np.rint(where).astype(int)
    inside = ((nearest >= -2) & (nearest < 114)).all(axis=-1)
    padded = np.pad(support, 2, mode="edge")
    index = np.clip(nearest + 2, 0, 115)
    return ~(inside & padded[index[..., 1], index[..., 0]])


@pytest.mark.parametrize("side", [100, 512, 1536, 2800])
def test_round_trip_gives_the_protected_crop(side: int, photo: NDArray[np.uint8], face: Face) -> None:
    picture, found = scaled(photo, face, side)
    aligned = align_face(picture, found)
    mask = face_mask()
    protected = (aligned.crop * 0.8 + smooth_change()).clamp(-0.95, 0.95)
    expected = aligned.crop + mask * (protected - aligned.crop)
    again = align_face(paste_back(picture, aligned, protected, mask), found).crop
    change = (expected - aligned.crop).square().sum()
    residual = (again - expected).square().sum() / change
    # Measured 0.0008 to 0.0014 from 512 px on (rounding to whole levels, two interpolations), 0.059 at
    # 100 px, where the face is 21 px and the photo cannot hold the crop's finer detail.
    assert residual < (0.1 if side == 100 else 0.004)


@pytest.mark.parametrize("side", [100, 300, 512, 1100])
def test_outside_the_mask_the_photo_keeps_its_bits(side: int, photo: NDArray[np.uint8], face: Face) -> None:
    picture, found = scaled(photo, face, side)
    aligned = align_face(picture, found)
    mask = face_mask(feather=0.0)
    pasted = paste_back(picture, aligned, -aligned.crop, mask)
    outside = masked_distance(aligned, mask, picture.shape)
    if side == 100:  # a photo pixel covers 5 crop px and so feels the mask further away
        outside[5:40, 25:65] = False
    assert outside.mean() > 0.5
    assert (pasted[outside] == picture[outside]).all()
    assert (pasted != picture).any()


def test_no_change_gives_the_photo_back(photo: NDArray[np.uint8], face: Face) -> None:
    aligned = align_face(photo, face)
    pasted = paste_back(photo, aligned, aligned.crop, FULL)
    assert (pasted == photo).all()
    assert pasted is not photo


def test_empty_mask_gives_the_photo_back(photo: NDArray[np.uint8], face: Face) -> None:
    aligned = align_face(photo, face)
    assert (paste_back(photo, aligned, -aligned.crop, torch.zeros(1, 112, 112)) == photo).all()


def test_the_photo_is_not_modified(photo: NDArray[np.uint8], face: Face) -> None:
    before = photo.copy()
    aligned = align_face(photo, face)
    paste_back(photo, aligned, -aligned.crop, FULL)
    assert (photo == before).all()


@pytest.mark.parametrize("scale", [0.25, 1.0, 5.0])
def test_a_flat_change_is_added_in_levels(scale: float) -> None:
    photo = np.full((700, 700, 3), 100, dtype=np.uint8)
    aligned = align_face(photo, make_face(ARCFACE_TEMPLATE * scale + 50))
    pasted = paste_back(photo, aligned, aligned.crop + 30 / 127.5, FULL)
    centre = round(50 + 56 * scale)
    assert pasted[centre, centre].tolist() == [130, 130, 130]
    assert pasted.min() >= 100
    assert pasted.max() <= 130


def test_values_are_cut_to_the_range_of_a_photo() -> None:
    photo = np.full((120, 120, 3), 250, dtype=np.uint8)
    photo[:, 60:] = 3
    aligned = align_face(photo, make_face(ARCFACE_TEMPLATE + 4))
    assert paste_back(photo, aligned, aligned.crop + 1, FULL)[60, 20].tolist() == [255] * 3
    assert paste_back(photo, aligned, aligned.crop - 1, FULL)[60, 100].tolist() == [0] * 3


def test_original_detail_survives() -> None:
    """A face of 600 px keeps its pixel-sized texture: the crop itself is never enlarged into the photo."""
    rng = np.random.default_rng(0)
    photo = rng.integers(60, 190, (700, 700, 3), dtype=np.uint8)
    aligned = align_face(photo, make_face(ARCFACE_TEMPLATE * 5.5 + 30))
    pasted = paste_back(photo, aligned, aligned.crop + smooth_change(), FULL)
    delta = pasted.astype(int) - photo
    assert np.abs(delta).max() <= 22  # 0.15 * 127.5 = 19 levels, and bicubic overshoot
    # neighbours 1 px apart change alike: waves of 25 crop px are 137 photo px here
    assert np.abs(np.diff(delta[150:550, 150:550], axis=0)).max() <= 3


@pytest.mark.parametrize("shift", [(-190, 0), (0, -90), (260, 0), (0, 360)])
def test_face_partly_outside_the_photo(shift: tuple[int, int], photo: NDArray[np.uint8], face: Face) -> None:
    moved = make_face(face.landmarks + np.array(shift))
    aligned = align_face(photo, moved)
    pasted = paste_back(photo, aligned, (aligned.crop + 0.3).clamp(-1, 1), FULL)
    assert pasted.shape == photo.shape
    assert (pasted != photo).any()


def test_face_wholly_outside_changes_nothing(photo: NDArray[np.uint8], face: Face) -> None:
    matrix = np.array([[1.0, 0, 5000], [0, 1, 0]])
    aligned = AlignedFace(face, torch.zeros(3, 112, 112), matrix)
    assert (paste_back(photo, aligned, torch.ones(3, 112, 112), FULL) == photo).all()


def test_huge_face_is_done_in_bands() -> None:
    photo = np.full((1300, 1250, 3), 90, dtype=np.uint8)  # more points than one band holds
    aligned = align_face(photo, make_face(ARCFACE_TEMPLATE * 40 - 1500))
    pasted = paste_back(photo, aligned, aligned.crop + 10 / 127.5, FULL)
    assert (pasted == 100).all()


def test_two_faces_one_after_another() -> None:
    photo = np.full((150, 300, 3), 100, dtype=np.uint8)
    pair = [align_face(photo, make_face(ARCFACE_TEMPLATE + np.array([x, 20]))) for x in (10, 170)]
    result = photo
    for aligned, levels in zip(pair, (20, -20), strict=True):
        result = paste_back(result, aligned, aligned.crop + levels / 127.5, FULL)
    assert result[76, 66, 0] == 120
    assert result[76, 226, 0] == 80
    assert result[76, 150, 0] == 100


def test_any_float_type_and_a_graph_are_taken(photo: NDArray[np.uint8], face: Face) -> None:
    aligned = align_face(photo, face)
    protected = (aligned.crop * 0.5).double().requires_grad_()
    expected = paste_back(photo, aligned, aligned.crop * 0.5, FULL)
    assert (paste_back(photo, aligned, protected, FULL.half()) == expected).all()


@pytest.mark.parametrize(
    ("crop", "mask", "text"),
    [
        (torch.zeros(1, 3, 112, 112), FULL, r"protected_crop: expected shape \[3, 112, 112\].*batch axis"),
        (torch.zeros(3, 112, 112), FULL[0], r"mask: expected shape \[1, 112, 112\], got \[112, 112\]"),
        (torch.zeros(3, 112, 112), FULL * 2, r"mask: expected values in \[0, 1\]"),
        (torch.full((3, 112, 112), torch.nan), FULL, "protected_crop: expected finite values"),
    ],
)
def test_wrong_input_is_named(
    crop: Tensor, mask: Tensor, text: str, photo: NDArray[np.uint8], face: Face
) -> None:
    with pytest.raises(ValueError, match=text):
        paste_back(photo, align_face(photo, face), crop, mask)
