from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_dedim.pipeline.inputs import from_pixels, take_photos, to_pixel_list

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(RGB).permute(2, 0, 1).float() / 127.5 - 1


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (Image.fromarray(RGB), 1),
        (RGB, 1),
        (TENSOR, 1),
        (np.stack([RGB, RGB]), 2),
        (torch.stack([TENSOR, TENSOR]), 2),
        ([RGB, TENSOR, Image.fromarray(RGB)], 3),
        ((RGB,), 1),
        (RGB[:, ::-1][:, ::-1], 1),
        (TENSOR.double(), 1),
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


@pytest.mark.parametrize("grey", [RGB[..., 0], Image.fromarray(RGB[..., 0])])
def test_grey_becomes_three_equal_channels(grey: Any) -> None:
    (photo,) = to_pixel_list(grey)
    for channel in range(3):
        np.testing.assert_array_equal(photo[..., channel], RGB[..., 0])


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_any_pil_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("I;16", (7, 5), 1000) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    (photo,) = to_pixel_list(image)
    assert photo.shape == (5, 7, 3)


def test_bf16_rounding_past_1_is_let_through() -> None:
    (photo,) = to_pixel_list(torch.full((3, 2, 2), 1.0005))
    assert photo.max() == 255


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
    assert from_pixels(pixels, "np", beside) is pixels


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
            RGB.astype(float),
            ValueError,
            "image: expected an array uint8 [H, W, 3] (RGB) or [H, W] (grey), got float64 [5, 7, 3]",
        ),
        (np.dstack([RGB, RGB[..., :1]]), ValueError, "got uint8 [5, 7, 4]; convert it first."),
        (RGB[0, 0], ValueError, "got uint8 [3]"),
        (
            TENSOR[:1],
            ValueError,
            "image: expected a float tensor [3, H, W] in [-1, 1], got torch.float32 [1, 5, 7].",
        ),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), ValueError, "got torch.uint8 [3, 4, 4]."),
        (torch.zeros(3, 0, 4), ValueError, "got torch.float32 [3, 0, 4]."),
        (TENSOR * 127.5 + 127.5, ValueError, "image: expected tensor values in [-1, 1], got"),
        (TENSOR * float("nan"), ValueError, "image: expected tensor values in [-1, 1], got nan to nan."),
    ],
)
def test_wrong_input_is_refused(wrong: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        to_pixel_list(wrong)
