"""Files that other programs open although something in them is wrong, or larger than Pillow takes."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fake_pipeline import photo_array
from PIL import Image, ImageCms
from test_photo_files import png_chunk

from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.images.files import encode_photo, read_photo, save_photo

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def sound_png() -> bytes:
    buffer = BytesIO()
    Image.fromarray(photo_array(size=(200, 200))).save(buffer, "PNG")
    return buffer.getvalue()


def png_with(*chunks: bytes, behind: bool = False) -> bytes:
    """A PNG of random pixels with more chunks in front of its pixels, or behind them."""
    data = sound_png()
    place = data.index(b"IEND" if behind else b"IDAT") - 4
    return data[:place] + b"".join(chunks) + data[place:]


def test_long_texts_do_not_refuse_a_sound_png(tmp_path: Path) -> None:
    text = zlib.compress(b"secret workflow " * 200_000, 1)  # 3 MB: what image generators write
    chunks = [
        png_chunk(b"zTXt", b"workflow\0\0" + text),
        png_chunk(b"iTXt", b"prompt\0\1\0\0\0" + text),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + text),
        png_chunk(b"zTXt", b"Raw profile type exif\0\0" + text),
    ]
    for behind in (False, True):
        (tmp_path / "texts.png").write_bytes(png_with(*chunks, behind=behind))
        photo = read_photo(tmp_path / "texts.png")
        assert np.array_equal(photo.pixels, photo_array(size=(200, 200)))
        assert b"XMP" not in encode_photo(photo, photo.pixels, keep_metadata=True)


def test_the_orientation_in_a_text_still_counts(tmp_path: Path) -> None:
    xmp = b'<rdf:Description tiff:Orientation="3"/>'
    for packed, content in ((b"\0", xmp), (b"\1", zlib.compress(xmp))):
        chunk = png_chunk(b"iTXt", b"XML:com.adobe.xmp\0" + packed + b"\0\0\0" + content)
        (tmp_path / "turned.png").write_bytes(png_with(chunk, png_chunk(b"tEXt", b"a\0b")))
        expected = photo_array(size=(200, 200))[::-1, ::-1]
        assert np.array_equal(read_photo(tmp_path / "turned.png").pixels, expected)


def test_a_long_profile_is_read_and_kept(tmp_path: Path) -> None:
    profile = SRGB + bytes(2_000_000)
    packed = b"ICC profile\0\0" + zlib.compress(profile)
    (tmp_path / "wide.png").write_bytes(png_with(png_chunk(b"iCCP", packed)))
    photo = read_photo(tmp_path / "wide.png")
    assert photo.icc_profile == profile
    save_photo(photo, photo.pixels, tmp_path / "out.png")
    assert read_photo(tmp_path / "out.png").icc_profile == profile


def test_a_profile_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    packed = b"ICC profile\0\0" + zlib.compress(bytes(20_000_000))
    (tmp_path / "bomb.png").write_bytes(png_with(png_chunk(b"iCCP", packed)))
    with pytest.raises(
        UnreadablePhotoError, match=r"bomb\.png: damaged or truncated \(Decompressed data too large"
    ):
        read_photo(tmp_path / "bomb.png")


@pytest.mark.parametrize("name", [b"tIME", b"pHYs", b"bKGD", b"tEXt", b"vpAg"])
@pytest.mark.parametrize("behind", [False, True])
def test_a_wrong_checksum_where_it_does_not_matter(tmp_path: Path, name: bytes, behind: bool) -> None:
    damaged = png_chunk(name, bytes(9))[:-1] + b"?"
    (tmp_path / "sound.png").write_bytes(png_with(damaged, behind=behind))
    assert np.array_equal(read_photo(tmp_path / "sound.png").pixels, photo_array(size=(200, 200)))


@pytest.mark.parametrize("name", [b"IHDR", b"tRNS", b"iCCP", b"gAMA", b"eXIf"])
def test_a_wrong_checksum_where_it_matters(tmp_path: Path, name: bytes) -> None:
    data = png_with(
        *(png_chunk(kind, bytes(6)) for kind in (b"tRNS", b"iCCP", b"gAMA", b"eXIf") if kind == name)
    )
    place = data.index(name)
    length = int.from_bytes(data[place - 4 : place], "big")
    end = place + 4 + length  # of the content, where the checksum begins
    (tmp_path / "damaged.png").write_bytes(data[:end] + b"????" + data[end + 4 :])
    with pytest.raises(UnreadablePhotoError, match=r"damaged\.png: "):
        read_photo(tmp_path / "damaged.png")


@pytest.mark.parametrize(
    "options",
    [{}, {"quality": 97, "subsampling": 0}, {"restart_marker_blocks": 4}, {"restart_marker_rows": 1}],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_that_lacks_only_the_mark_of_its_end(
    tmp_path: Path, options: dict[str, int], mode: str
) -> None:
    image = Image.fromarray(photo_array(size=(200, 200))).convert(mode)
    image.save(tmp_path / "whole.jpg", **options)
    data = (tmp_path / "whole.jpg").read_bytes()
    for missing in (1, 2):
        (tmp_path / "cut.jpg").write_bytes(data[:-missing])
        assert np.array_equal(
            read_photo(tmp_path / "cut.jpg").pixels, read_photo(tmp_path / "whole.jpg").pixels
        )
    for missing in (*range(5, 60), 100, 1000):
        (tmp_path / "cut.jpg").write_bytes(data[:-missing])
        with pytest.raises(UnreadablePhotoError, match=r"cut\.jpg: damaged or truncated \("):
            read_photo(tmp_path / "cut.jpg")


def test_a_progressive_jpeg_without_its_last_scans_is_refused(tmp_path: Path) -> None:
    Image.fromarray(photo_array(size=(200, 200))).save(tmp_path / "whole.jpg", progressive=True)
    data = (tmp_path / "whole.jpg").read_bytes()
    scans = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    assert len(scans) > 2
    (tmp_path / "cut.jpg").write_bytes(data[: scans[2]])
    with pytest.raises(UnreadablePhotoError, match=r"cut\.jpg: damaged or truncated \("):
        read_photo(tmp_path / "cut.jpg")
