from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_dedim.pipeline.inputs import from_pixels, take_photos, to_pixel_list

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(RGB).permute(2, 0, 1).float() / 255
FLOATS = RGB.astype(np.float32) / 255


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (Image.fromarray(RGB), 1),
        (RGB, 1),
        (TENSOR, 1),
        (np.stack([RGB, RGB]), 2),
        (FLOATS, 1),
        (np.stack([FLOATS, FLOATS]), 2),
        (FLOATS.astype(np.float64), 1),
        (FLOATS.astype(np.float16), 1),
        (torch.stack([TENSOR, TENSOR]), 2),
        ([RGB, TENSOR, Image.fromarray(RGB)], 3),
        ((RGB,), 1),
        (RGB[:, ::-1][:, ::-1], 1),
        (TENSOR.double(), 1),
        (TENSOR.half(), 1),
        (TENSOR.clone().requires_grad_(), 1),
    ],
)
def test_every_kind_gives_the_same_pixels(given: Any, count: int) -> None:
    photos = to_pixel_list(given)
    assert len(photos) == count
    for photo in photos:
        assert photo.dtype == np.uint8
        assert photo.flags.c_contiguous
        np.testing.assert_array_equal(photo, RGB)


def test_photos_of_several_sizes_may_be_mixed() -> None:
    assert [p.shape for p in to_pixel_list([RGB, RGB[:3]])] == [(5, 7, 3), (3, 7, 3)]


@pytest.mark.parametrize("grey", [RGB[..., 0], FLOATS[..., 0], Image.fromarray(RGB[..., 0])])
def test_grey_becomes_three_equal_channels(grey: Any) -> None:
    (photo,) = to_pixel_list(grey)
    for channel in range(3):
        np.testing.assert_array_equal(photo[..., channel], RGB[..., 0])


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_any_pil_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("I;16", (7, 5), 1000) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    (photo,) = to_pixel_list(image)
    assert photo.shape == (5, 7, 3)


def test_rounding_past_0_and_1_is_let_through() -> None:
    (photo,) = to_pixel_list(torch.tensor([-0.0005, 1.0005]).expand(3, 2, 2))
    assert photo[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_there_and_back_is_exact(output_type: str) -> None:
    np.testing.assert_array_equal(to_pixel_list(from_pixels(RGB, output_type))[0], RGB)


@pytest.mark.parametrize(("mode", "back"), [("RGBA", "RGBA"), ("RGB", "RGB"), ("LA", "RGBA"), ("L", "RGB")])
def test_what_is_hidden_stays_hidden_and_the_profile_goes_along(mode: str, back: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    alpha = Image.fromarray(RGB[..., 1])
    if mode.endswith("A"):
        image.putalpha(alpha)
    image.info["icc_profile"] = b"Display P3"
    (pixels,), (beside,) = take_photos(image)
    out = from_pixels(pixels, "pil", beside)
    assert out.mode == back
    np.testing.assert_array_equal(np.asarray(out)[..., :3], pixels)
    if back == "RGBA":
        np.testing.assert_array_equal(np.asarray(out)[..., 3], RGB[..., 1])
    # a profile of grey does not describe three channels
    assert out.info.get("icc_profile") == (b"Display P3" if mode.startswith("RGB") else None)
    assert from_pixels(pixels, "np", beside).shape == (5, 7, 3)


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ([], ValueError, "image: the list is empty; give at least one photo."),
        (torch.zeros(0, 3, 4, 4), ValueError, "image: the list is empty"),
        (
            "photo.jpg",
            TypeError,
            "image: expected PIL images, numpy arrays or torch tensors, got str; open a",
        ),
        ([None], TypeError, "image: expected PIL images, numpy arrays or torch tensors, got NoneType"),
        (
            RGB.astype(int),
            ValueError,
            "image: expected an array of uint8 in [0, 255] or of floats in [0, 1], got int64 [5, 7, 3]; convert it",
        ),
        (
            RGB.astype(float),
            ValueError,
            "image: expected float values in [0, 1], got 0 to 248; give image / 255 of one in [0, 255].",
        ),
        (np.dstack([RGB, RGB[..., :1]]), ValueError, "got uint8 [5, 7, 4]; convert it first."),
        (RGB[:0], ValueError, "got uint8 [0, 7, 3]; convert it first."),
        (RGB[0, 0], ValueError, "got uint8 [3]"),
        (
            TENSOR[:1],
            ValueError,
            "image: expected a float tensor [3, H, W] in [0, 1], got torch.float32 [1, 5, 7].",
        ),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), ValueError, "got torch.uint8 [3, 4, 4]."),
        (torch.zeros(3, 0, 4), ValueError, "got torch.float32 [3, 0, 4]."),
        (
            TENSOR * 2 - 1,
            ValueError,
            "image: expected float values in [0, 1], got -1 to 0.945; give (image + 1) / 2 of one in [-1, 1].",
        ),
        (TENSOR * 1.2, ValueError, "got 0 to 1.17; map them there, or clip them."),
        (
            TENSOR * float("nan"),
            ValueError,
            "image: expected float values in [0, 1], got nan to nan; map them",
        ),
    ],
)
def test_wrong_input_is_refused(wrong: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        to_pixel_list(wrong)
