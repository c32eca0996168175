"""How finely photos are packed."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusers_dedim.images.coding import LOSSLESS, SourceCoding, check_quality, coding_steps, turned_sideways
from diffusers_dedim.images.files import Photo, decode_photo, encode_photo, photo_from_image
from diffusers_dedim.images.webp import webp_quality


def textured(size: tuple[int, int] = (160, 240)) -> np.ndarray:
    """Something like a photo: smooth, with some noise."""
    y, x = np.mgrid[: size[0], : size[1]]
    base = np.stack([x, y, 255 - x], axis=2) + np.random.default_rng(0).normal(0, 6, (*size, 3))
    return base.clip(0, 255).astype(np.uint8)


def packed(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def as_asked(photo: Photo, quality: Any) -> bytes:
    step = coding_steps(photo.format, photo.coding, quality)[0]
    return encode_photo(photo, photo.pixels, coding=step)


@pytest.mark.parametrize("quality", [40, 75, 92])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_a_jpeg_keeps_its_tables_and_its_size(quality: int, subsampling: int) -> None:
    data = packed(Image.fromarray(textured()), "JPEG", quality=quality, subsampling=subsampling)
    photo = decode_photo(data)
    same, best = as_asked(photo, "same"), encode_photo(photo, photo.pixels)
    with Image.open(BytesIO(data)) as before, Image.open(BytesIO(same)) as after:
        assert [after.quantization[key] for key in (0, 1)] == [before.quantization[key] for key in (0, 1)]
        assert [layer[1:3] for layer in after.layer] == [layer[1:3] for layer in before.layer]
    assert len(same) == pytest.approx(len(data), rel=0.1)
    assert len(best) > 1.2 * len(data)


def test_a_progressive_jpeg_stays_progressive_and_a_grey_one_grey() -> None:
    colour, grey = Image.fromarray(textured()), Image.fromarray(textured()[..., 0])
    for image, options in ((colour, {"progressive": True}), (grey, {})):
        photo = decode_photo(packed(image, "JPEG", quality=60, **options))
        with Image.open(BytesIO(as_asked(photo, "same"))) as after:
            assert (after.mode, "progressive" in after.info) == (image.mode, bool(options))


def test_the_tables_turn_with_the_photo() -> None:
    image, exif = Image.fromarray(textured()), Image.Exif()
    exif[274] = 6
    table = [1 + at % 8 for at in range(64)]  # finer to the left than down
    photo = decode_photo(packed(image, "JPEG", qtables=[table, table], subsampling=1, exif=exif))
    with Image.open(BytesIO(as_asked(photo, "same"))) as after:
        assert after.size == (160, 240)
        assert after.quantization[0] == [1 + at // 8 for at in range(64)]
        assert [layer[1:3] for layer in after.layer] == [(1, 1)] * 3
    twice = turned_sideways(turned_sideways(SourceCoding((tuple(table),), subsampling=2)))
    assert twice == SourceCoding((tuple(table),), subsampling=2)


def test_steps_go_from_what_is_asked_to_the_finest() -> None:
    source = decode_photo(packed(Image.fromarray(textured()), "JPEG", quality=30)).coding
    tables = [sum(step["qtables"][0]) for step in coding_steps("JPEG", source, "same")[:-1]]
    assert tables[1] < 0.6 * tables[0]
    assert coding_steps("JPEG", source, "same")[-1] == {"quality": 97, "subsampling": 0}
    assert [step["quality"] for step in coding_steps("JPEG", source, 30)] == [30, 65, 83, 92, 96, 97]
    assert [step["quality"] for step in coding_steps("JPEG", source, 99)] == [99]
    assert coding_steps("JPEG", source, "best") == ({"quality": 97, "subsampling": 0},)
    assert coding_steps("WEBP", LOSSLESS, "same") == ({"lossless": True, "exact": True},)
    assert coding_steps("WEBP", LOSSLESS, 80)[0] == {"quality": 80, "exact": True}
    assert coding_steps("PNG", LOSSLESS, 10) == coding_steps("PNG", LOSSLESS, "same") == ({},)
    assert coding_steps("HEIF", LOSSLESS, "same")[-1] == {"quality": 95, "chroma": 444}
    assert all("quality" in step for step in coding_steps("AVIF", LOSSLESS, "same"))


@pytest.mark.parametrize("quality", [30, 60, 75, 90])
def test_the_quality_of_a_webp_is_read_from_it(quality: int) -> None:
    data = packed(Image.fromarray(textured()), "WEBP", quality=quality)
    assert webp_quality(data) == pytest.approx(quality, abs=1)
    photo = decode_photo(data)
    assert not photo.coding.lossless
    again = as_asked(photo, "same")
    assert len(again) == pytest.approx(len(data), rel=0.35)
    assert webp_quality(again) is not None


def test_a_webp_without_loss_stays_so() -> None:
    photo = decode_photo(packed(Image.fromarray(textured()), "WEBP", lossless=True))
    assert photo.coding.lossless
    again = as_asked(photo, "same")
    assert webp_quality(again) is None
    assert np.array_equal(decode_photo(again).pixels, photo.pixels)


@pytest.mark.parametrize("length", range(0, 60, 3))
def test_a_torn_webp_is_no_surprise(length: int) -> None:
    webp_quality(packed(Image.fromarray(textured()), "WEBP", quality=60)[:length])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_a_grey_photo_stored_in_colour_comes_back_grey_to_the_bit(kind: str) -> None:
    grey = np.repeat(textured()[..., :1], 3, axis=2)
    # a WebP with loss is not quite grey from the start
    options = {"JPEG": {"quality": 80}, "PNG": {}, "WEBP": {"lossless": True}, "AVIF": {"quality": 80}}[kind]
    photo = decode_photo(packed(Image.fromarray(grey), kind, **options))
    assert (photo.grey, photo.one_channel) == (True, False)
    again = decode_photo(as_asked(photo, "same")).pixels
    assert (again == again[..., :1]).all()
    with Image.open(BytesIO(as_asked(photo, "same"))) as image:
        assert image.mode == "RGB"
    assert not decode_photo(packed(Image.fromarray(textured()), "PNG")).grey


def test_the_film_of_a_motion_photo_is_mentioned() -> None:
    jpeg = packed(Image.fromarray(textured()), "JPEG")
    film = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(100)
    assert decode_photo(jpeg).notes == ()
    assert decode_photo(jpeg + film).notes == ("the film of the motion photo was left out",)
    written = encode_photo(decode_photo(jpeg + film), textured())
    assert b"ftyp" not in written


@pytest.mark.parametrize("wrong", [0, 101, "fine", True, 80.5, None])
def test_what_is_no_quality_is_refused(wrong: Any) -> None:
    with pytest.raises(
        ValueError, match='quality must be "same", "best" or a whole number from 1 to 100, got'
    ):
        check_quality(wrong)


def test_a_photo_of_another_program_is_written_as_fine_as_can_be() -> None:
    photo = photo_from_image(Image.fromarray(textured()))
    assert photo.coding is LOSSLESS
