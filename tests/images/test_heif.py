"""HEIC and AVIF, as phones and web pages have them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from fake_pipeline import photo_array
from PIL import Image, ImageCms

from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.images import heif
from diffusers_dedim.images.files import decode_photo, encode_photo, read_photo, save_photo
from diffusers_dedim.images.heif import colour_code, container_kind

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MAKE, ORIENTATION = 271, 274


def smooth(size: tuple[int, int] = (64, 96)) -> np.ndarray:
    """What any coder keeps well: a ramp in each channel, ``[H, W, 3]``."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([2 * x, 3 * y, 255 - 2 * x], axis=2).clip(0, 255).astype(np.uint8)


def exif(orientation: int = 1) -> bytes:
    block = Image.Exif()
    block[MAKE], block[ORIENTATION] = "a phone", orientation
    block.get_ifd(0x8825)[1] = "N"  # GPS
    return block.tobytes()


def heic(image: Image.Image, **options: Any) -> bytes:
    buffer = BytesIO()
    given = {"quality": 90, "chroma": 444, **options}
    pillow_heif.encode(image.mode, image.size, image.tobytes(), buffer, **given)
    return buffer.getvalue()


def avif(image: Image.Image, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "AVIF", **{"quality": 95, "subsampling": "4:4:4", **options})
    return buffer.getvalue()


@pytest.mark.parametrize(("make", "kind"), [(heic, "HEIF"), (avif, "AVIF")])
def test_they_are_read_and_written_without_what_tells_about_people(
    tmp_path: Path, make: Any, kind: str
) -> None:
    data = make(Image.fromarray(smooth()), exif=exif(), icc_profile=SRGB)
    photo = decode_photo(data)
    assert (photo.format, photo.icc_profile, photo.notes) == (kind, SRGB, ())
    assert np.abs(photo.pixels.astype(int) - smooth()).max() < 20  # lossy
    changed = 255 - photo.pixels
    written = save_photo(photo, changed, tmp_path / "a")
    again = read_photo(tmp_path / "a")
    assert container_kind(written) == again.format == kind
    assert again.icc_profile == SRGB
    assert b"a phone" not in written
    assert np.abs(again.pixels.astype(int) - changed).mean() < 2
    kept = encode_photo(photo, changed, keep_metadata=True)
    assert b"a phone" in kept
    with Image.open(BytesIO(kept)) if kind == "AVIF" else heif.open_heif(kept) as image:
        assert image.getexif().get(ORIENTATION, 1) == 1
        assert image.getexif().get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize("make", [heic, avif])
@pytest.mark.parametrize("orientation", [3, 6, 7])
def test_they_come_upright(make: Any, orientation: int) -> None:
    turned = {
        3: np.rot90(smooth(), 2),
        6: np.rot90(smooth(), -1),
        7: np.rot90(smooth(), 2).transpose(1, 0, 2),
    }
    photo = decode_photo(make(Image.fromarray(smooth()), exif=exif(orientation)))
    expected = turned[orientation]
    assert photo.pixels.shape == expected.shape
    assert np.abs(photo.pixels.astype(int) - expected).mean() < 3
    again = decode_photo(encode_photo(photo, photo.pixels, keep_metadata=True))
    assert np.abs(again.pixels.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("make", [heic, avif])
@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_transparency_and_greyness_stay(make: Any, mode: str) -> None:
    image = Image.fromarray(smooth()).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(smooth()[..., 0]))
    photo = decode_photo(make(image))
    again = decode_photo(encode_photo(photo, photo.pixels))
    if mode == "RGBA":
        assert np.abs(again.alpha.astype(int) - smooth()[..., 0]).mean() < 3
    else:
        assert photo.grey
        assert again.grey
        assert (again.pixels == again.pixels[..., :1]).all()


def test_a_heic_of_a_rare_brand_is_read(tmp_path: Path) -> None:
    data = bytearray(heic(Image.fromarray(smooth())))
    data[8:12] = b"heis"
    assert decode_photo(bytes(data)).format == "HEIF"


def test_of_several_pictures_the_main_one_is_taken() -> None:
    several = pillow_heif.HeifFile()
    for value in (10, 200, 90):
        several.add_from_pillow(Image.new("RGB", (64, 64), (value, 0, 0)))
    buffer = BytesIO()
    several.save(buffer, primary_index=1, quality=90)
    photo = decode_photo(buffer.getvalue())
    assert abs(int(photo.pixels[0, 0, 0]) - 200) < 6
    assert photo.notes == ("only the main picture of several in the HEIC is written",)


def test_the_colours_of_a_heic_keep_their_meaning() -> None:
    wide = {
        "color_primaries": 12,
        "transfer_characteristics": 13,
        "matrix_coefficients": 6,
        "full_range_flag": 1,
    }
    photo = decode_photo(heic(Image.fromarray(smooth()), **wide))
    assert photo.colours == (12, 13, 6, 1)
    assert decode_photo(encode_photo(photo, photo.pixels)).colours == (12, 13, 6, 1)
    assert decode_photo(heic(Image.fromarray(smooth()))).colours is None


def test_an_avif_of_a_wide_range_says_what_is_lost() -> None:
    data = bytearray(avif(Image.fromarray(smooth())))
    place = data.index(b"colrnclx") + 8
    data[place : place + 4] = (9).to_bytes(2, "big") + (16).to_bytes(2, "big")  # BT.2020, PQ
    assert colour_code(bytes(data), {})[:2] == (9, 16)
    (note,) = decode_photo(bytes(data)).notes
    assert "wider range, which is not kept" in note


def test_animations_are_no_photos() -> None:
    buffer = BytesIO()
    frames = [Image.fromarray(photo_array((90, 90, index))) for index in range(3)]
    frames[0].save(buffer, "AVIF", save_all=True, append_images=frames[1:])
    with pytest.raises(UnreadablePhotoError, match="has 3 frames or pages"):
        decode_photo(buffer.getvalue())


@pytest.mark.parametrize("make", [heic, avif])
def test_a_torn_one_is_told_and_too_large_a_one_is_not_decoded(make: Any) -> None:
    data = make(Image.fromarray(smooth()))
    for length in (16, 40, len(data) // 2, len(data) - 40):
        with pytest.raises(UnreadablePhotoError, match=r"damaged or truncated|not a photo in a known format"):
            decode_photo(data[:length])
    with pytest.raises(UnreadablePhotoError, match="too large: 96 x 64 = 6144 pixels, limit 6000"):
        decode_photo(data, max_pixels=6000)


def test_without_the_packages_it_is_said_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    heic_data, avif_data = heic(Image.fromarray(smooth())), avif(Image.fromarray(smooth()))

    def refuse(module: str, needed_by: str, install: str) -> Any:
        raise ImportError(f"{needed_by} needs the package {module!r}; run: {install}")

    monkeypatch.setattr(heif, "import_extra", refuse)
    monkeypatch.setattr(heif.features, "check", lambda name: False)
    with pytest.raises(
        UnreadablePhotoError, match=r'a HEIC photo needs .*run: pip install "diffusers-dedim\[heif\]"'
    ):
        decode_photo(heic_data)
    with pytest.raises(UnreadablePhotoError, match=r"AVIF photos need Pillow 11\.3"):
        decode_photo(avif_data)


@pytest.mark.parametrize("brand", ["heis", "hevx", "hevm", "hevs", "heic", "mif1", "avis"])
def test_every_brand_is_told_from_what_is_no_photo(brand: str) -> None:
    data = b"\0\0\0\x18ftyp" + brand.encode() + bytes(40)
    assert container_kind(data) == ("AVIF" if brand == "avis" else "HEIF")
    with pytest.raises(UnreadablePhotoError, match=r"damaged or truncated|not a photo in a known format"):
        decode_photo(data)
    assert container_kind(b"\0\0\0\x18ftypisom\0\0\0\0isommp42") is None
