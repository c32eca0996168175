from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fake_pipeline import photo_array
from PIL import Image, ImageCms, PngImagePlugin
from PIL.ExifTags import GPS, IFD, Base

from diffusers_dedim.atomic import TEMPORARY_PREFIX, write_atomic
from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.images.files import Photo, encode_photo, photo_from_image, read_photo, save_photo
from diffusers_dedim.images.png import read_colours

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SECRETS = (b"secret comment", b"secret text", b"GPS secret", b"Maker secret", b"xpacket secret")


def exif_with_gps(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[Base.Make] = "Camera"
    exif[Base.Orientation] = orientation
    exif[700] = b"xpacket secret"
    exif.get_ifd(IFD.Exif)[Base.MakerNote] = b"Maker secret"
    exif.get_ifd(IFD.Exif)[Base.UserComment] = b"comment secret"
    exif.get_ifd(IFD.Exif)[0xC7A1] = b"vendor secret"
    exif.get_ifd(IFD.Exif)[Base.DateTimeOriginal] = "2024:05:06 07:08:09"
    exif.get_ifd(IFD.GPSInfo)[29] = "GPS secret"
    return exif


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_16_bit_colour(value: int, *chunks: bytes) -> bytes:
    rows = b"".join(b"\0" + np.full((5, 3), value, ">u2").tobytes() for _ in range(4))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, 2, 0, 0, 0)) + b"".join(chunks)
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def bmp_with_alpha(image: Image.Image) -> bytes:
    """A BMP of version 4, with a mask for each channel: Pillow reads such files, and writes none."""
    rows = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes("raw", "BGRA")  # BMP begins at the bottom
    header_size, masks = 108, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    start = 14 + header_size
    file_header = struct.pack("<2sIII", b"BM", start + len(rows), 0, start)
    # bit fields (3) of 32 bits, 2835 pixels a metre (72 dpi); sRGB, so that the 48 bytes of primaries are unused
    fields = struct.pack("<IiiHHIIiiII", header_size, *image.size, 1, 32, 3, len(rows), 2835, 2835, 0, 0)
    return file_header + fields + struct.pack("<4I4s48x", *masks, b"BGRs") + rows


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV"]
)
def test_any_mode_becomes_rgb_and_maybe_alpha(mode: str) -> None:
    source = Image.fromarray(photo_array())
    via = {"La": "LA", "RGBa": "RGBA", "PA": "LA"}.get(mode)
    image = (source.convert(via) if via else source).convert(mode)
    photo = photo_from_image(image)
    assert photo.pixels.shape == (32, 48, 3)
    assert photo.pixels.dtype == np.uint8
    assert (photo.alpha is not None) == (mode in ("LA", "La", "PA", "RGBA", "RGBa"))
    assert photo.one_channel == (mode in ("1", "L", "LA", "La"))


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65535, 40000]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    photo = read_photo(tmp_path / "deep.png")
    assert photo.pixels[0, :, 0].tolist() == [0, 1, 128, 255, 156]
    assert photo.grey
    assert photo.notes == ("16 bits a channel became 8",)


def test_16_bit_colour_is_noted(tmp_path: Path) -> None:
    (tmp_path / "deep.png").write_bytes(png_16_bit_colour(0x80FF))
    photo = read_photo(tmp_path / "deep.png")
    assert photo.notes == ("16 bits a channel became 8",)
    assert photo.pixels[0, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize(("key", "alpha"), [(0x1234, 0), (0x1334, 255)])
def test_the_transparent_colour_of_16_bits_stays_transparent(tmp_path: Path, key: int, alpha: int) -> None:
    colour = png_16_bit_colour(0x1234, png_chunk(b"tRNS", struct.pack(">3H", key, key, key)))
    (tmp_path / "colour.png").write_bytes(colour)
    assert np.unique(read_photo(tmp_path / "colour.png").alpha).tolist() == [alpha]
    Image.fromarray(np.array([[0x1234, 0x1235]], np.uint16)).save(tmp_path / "grey.png", transparency=key)
    assert read_photo(tmp_path / "grey.png").alpha.tolist() == [[alpha, 255]]


def test_16_bit_tiff_that_counts_from_white_is_turned_around(tmp_path: Path) -> None:
    values = Image.fromarray(np.array([[0, 65535]], np.uint16))
    for photometric, expected in ((0, [255, 0]), (1, [0, 255])):
        values.save(tmp_path / "deep.tif", tiffinfo={262: photometric})
        assert read_photo(tmp_path / "deep.tif").pixels[0, :, 0].tolist() == expected


def test_what_a_pngs_colours_mean_is_kept_and_nothing_else(tmp_path: Path) -> None:
    kept = [
        (b"cICP", bytes([9, 16, 0, 1])),
        (b"gAMA", struct.pack(">I", 100000)),
        (b"cHRM", bytes(range(32))),
    ]
    odd = [(b"sRGB", b"secret text"), (b"tEXt", b"Comment\0secret comment"), (b"tIME", bytes(7))]
    data = png_16_bit_colour(0x8000, *(png_chunk(*pair) for pair in (*kept, *odd)))
    (tmp_path / "wide.png").write_bytes(data)
    photo = read_photo(tmp_path / "wide.png")
    written = encode_photo(photo, photo.pixels)
    assert all(png_chunk(*pair) in written for pair in kept)
    assert not any(name in written for name, _ in odd)
    assert b"secret" not in written
    assert read_colours(data[:60]) == tuple(kept[:1])  # broken off in the middle of the second


@pytest.mark.parametrize(
    ("array", "text"),
    [(np.zeros((4, 4), np.float32), "floating-point"), (np.full((4, 4), 70000, np.int32), "32-bit integer")],
)
def test_pixels_without_known_range_are_refused(tmp_path: Path, array: np.ndarray, text: str) -> None:
    Image.fromarray(array).save(tmp_path / "range.tif")
    with pytest.raises(UnreadablePhotoError, match=rf"range\.tif: .*{text} pixels.*no known range"):
        read_photo(tmp_path / "range.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    Image.fromarray(photo_array()).save(tmp_path / "turned.png", exif=exif)
    turned = read_photo(tmp_path / "turned.png")
    pixels = photo_array()
    expected = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).swapaxes(0, 1),
        8: np.rot90(pixels),
    }[orientation]
    assert np.array_equal(turned.pixels, expected)
    saved = read_photo_bytes(encode_photo(turned, turned.pixels, keep_metadata=True))
    assert saved.getexif()[Base.Orientation] == 1  # or a viewer would turn it a second time


def read_photo_bytes(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("keep", [False, True])
def test_metadata_is_dropped_or_filtered(tmp_path: Path, file_format: str, keep: bool) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "secret text")
    extra = {"JPEG": {"comment": b"secret comment"}, "PNG": {"pnginfo": text}}.get(file_format, {})
    exif = exif_with_gps().tobytes()
    Image.fromarray(photo_array()).save(source, file_format, exif=exif, icc_profile=SRGB, **extra)
    photo = read_photo(source)
    save_photo(photo, photo.pixels, target, keep_metadata=keep)
    data = target.read_bytes()
    saved = read_photo_bytes(data)
    assert saved.info["icc_profile"] == SRGB
    assert saved.format == file_format
    assert saved.size == (32, 48)
    kept = saved.getexif()
    assert (kept.get(Base.Make) == "Camera") == keep
    assert (kept.get_ifd(IFD.GPSInfo).get(29) == "GPS secret") == keep
    assert (kept.get_ifd(IFD.Exif).get(Base.DateTimeOriginal) == "2024:05:06 07:08:09") == keep
    gone = [secret for secret in SECRETS if not keep or secret != b"GPS secret"]
    assert [secret for secret in gone if secret in data] == []


def odd_exif(entry: bytes, orientation: int) -> bytes:
    """A block of the camera, the orientation and one entry of 12 bytes, in a TIFF's layout."""
    make = struct.pack("<HHI4s", 0x010F, 2, 3, b"Me")
    turn = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    entries = sorted([make, turn, entry], key=lambda packed: struct.unpack("<H", packed[:2])[0])
    values = struct.pack("<II", 7, 2)  # at 50: a rational number
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 3) + b"".join(entries) + bytes(4) + values


ODD = {
    "XResolution": struct.pack("<HHI4s", 0x011A, 2, 3, b"72"),  # text, where a rational number belongs
    "ResolutionUnit": struct.pack("<HHII", 0x0128, 4, 1, 70_000),  # LONG, and too large for a SHORT
    "Model": struct.pack("<HHII", 0x0110, 5, 1, 50),  # a rational number, where text belongs
    "Exif": struct.pack("<HHIi", 0x8769, 9, 1, -5),  # a negative place of a directory
    "GPSInfo": struct.pack("<HHIi", 0x8825, 9, 1, -5),
}


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("tag", ODD)
def test_odd_exif_does_not_refuse_a_sound_photo(tmp_path: Path, tag: str, orientation: int) -> None:
    Image.fromarray(photo_array()).save(tmp_path / "in.png", exif=odd_exif(ODD[tag], orientation))
    photo = read_photo(tmp_path / "in.png")
    expected = photo_array() if orientation == 1 else np.rot90(photo_array(), -1)
    np.testing.assert_array_equal(photo.pixels, expected)
    assert photo.notes == ()
    assert photo.exif_notes == (f"EXIF tags that cannot be written were left out: {tag}",)
    kept = read_photo_bytes(encode_photo(photo, photo.pixels, keep_metadata=True)).getexif()
    assert (kept[Base.Make], kept[Base.Orientation]) == ("Me", 1)


def test_nothing_but_the_position_is_kept_of_the_gps_block(tmp_path: Path) -> None:
    exif = Image.Exif()
    position = {
        GPS.GPSLatitudeRef: "N",
        GPS.GPSLatitude: (52.0, 31.0, 12.0),
        GPS.GPSVersionID: b"\2\3\0\0",
        GPS.GPSDateStamp: "2024:05:06",
    }
    exif.get_ifd(IFD.GPSInfo).update(position)
    secrets = {GPS.GPSProcessingMethod: b"secret method", GPS.GPSAreaInformation: b"secret area"}
    secrets[0x7777] = b"secret vendor"
    exif.get_ifd(IFD.GPSInfo).update(secrets)
    Image.fromarray(photo_array()).save(tmp_path / "in.jpg", exif=exif)
    photo = read_photo(tmp_path / "in.jpg")
    data = encode_photo(photo, photo.pixels, keep_metadata=True)
    kept = read_photo_bytes(data).getexif().get_ifd(IFD.GPSInfo)
    assert kept == position
    assert [secret for secret in secrets.values() if secret in data] == []


def test_exif_thumbnail_is_dropped(tmp_path: Path) -> None:
    # A thumbnail shows the face as it was. Pillow writes none, so the block is laid out by hand: header (8 bytes),
    # IFD0 at 8 with the camera (18 bytes), IFD1 at 26 with the place and length of the preview (30), preview at 56.
    preview = b"PREVIEW-OF-THE-FACE"
    ifd0 = struct.pack("<HHHI4sI", 1, 0x010F, 2, 3, b"Me", 26)
    ifd1 = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(preview), 0)
    block = b"Exif\0\0II*\0" + struct.pack("<I", 8) + ifd0 + ifd1 + preview
    Image.fromarray(photo_array()).save(tmp_path / "in.jpg", exif=block)
    assert Image.open(tmp_path / "in.jpg").getexif().get_ifd(IFD.IFD1)[0x0202] == len(preview)
    assert preview in (tmp_path / "in.jpg").read_bytes()
    photo = read_photo(tmp_path / "in.jpg")
    assert photo.exif is not None
    data = encode_photo(photo, photo.pixels, keep_metadata=True)
    assert read_photo_bytes(data).getexif()[Base.Make] == "Me"
    assert preview not in data


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [
        ("L", "JPEG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("RGB", "JPEG"),
        ("RGB", "BMP"),
        ("RGBA", "PNG"),
        ("RGBA", "WEBP"),
        ("RGBA", "TIFF"),
        ("LA", "TIFF"),
        ("L", "BMP"),
    ],
)
def test_mode_and_format_stay(tmp_path: Path, mode: str, file_format: str) -> None:
    image = Image.fromarray(photo_array())
    if mode.endswith("A"):
        image.putalpha(Image.fromarray(np.arange(32 * 48, dtype=np.uint8).reshape(32, 48)))
    image.convert(mode).save(tmp_path / "in", file_format, lossless=True, exact=True)
    photo = read_photo(tmp_path / "in")
    save_photo(photo, photo.pixels, tmp_path / "out")
    back = Image.open(tmp_path / "out")
    assert (back.format, back.mode) == (file_format, mode)
    again = read_photo(tmp_path / "out")
    if file_format == "JPEG":
        difference = np.abs(again.pixels.astype(int) - photo.pixels)
        assert difference.mean() < 1  # quality 97 rounds DCT coefficients to steps of a few levels at most
    else:
        assert np.array_equal(again.pixels, photo.pixels)
        assert (again.alpha is None) == (photo.alpha is None)
        assert photo.alpha is None or np.array_equal(again.alpha, photo.alpha)


def test_jpeg_keeps_fine_colour_detail(tmp_path: Path) -> None:
    Image.fromarray(photo_array()).save(tmp_path / "in.jpg", quality=60, subsampling=2)
    photo = read_photo(tmp_path / "in.jpg")
    save_photo(photo, photo.pixels, tmp_path / "out.jpg")
    saved = Image.open(tmp_path / "out.jpg")
    assert {layer[1:3] for layer in saved.layer} == {(1, 1)}  # no chroma subsampling
    assert max(map(max, saved.quantization.values())) <= 10  # quality 97; 75 has steps of up to 60


def test_palette_with_transparency_becomes_rgba_png(tmp_path: Path) -> None:
    image = Image.fromarray(photo_array()).quantize(16)
    image.save(tmp_path / "in.png", transparency=3)
    photo = read_photo(tmp_path / "in.png")
    save_photo(photo, photo.pixels, tmp_path / "out.png")
    assert Image.open(tmp_path / "out.png").mode == "RGBA"


def test_gif_becomes_png(tmp_path: Path) -> None:
    Image.fromarray(photo_array()).save(tmp_path / "in.gif")
    photo = read_photo(tmp_path / "in.gif")
    assert photo.format == "PNG"
    assert "GIF is written as PNG" in photo.notes[0]


def test_bmp_with_transparency_becomes_png(tmp_path: Path) -> None:
    image = Image.fromarray(photo_array())
    image.putalpha(Image.fromarray(np.arange(32 * 48, dtype=np.uint8).reshape(32, 48)))
    (tmp_path / "in.bmp").write_bytes(bmp_with_alpha(image))
    photo = read_photo(tmp_path / "in.bmp")
    assert photo.notes == (
        "BMP with transparency is written as PNG, because few programs read it from a BMP",
    )
    save_photo(photo, photo.pixels, tmp_path / "out")
    assert (Image.open(tmp_path / "out").format, Image.open(tmp_path / "out").mode) == ("PNG", "RGBA")
    again = read_photo(tmp_path / "out")
    assert np.array_equal(again.pixels, photo.pixels)
    assert np.array_equal(again.alpha, photo.alpha)


@pytest.mark.parametrize("profile", [None, b"no profile at all"])
def test_cmyk_without_usable_profile_becomes_srgb(tmp_path: Path, profile: bytes | None) -> None:
    image = Image.fromarray(photo_array()).convert("CMYK")
    image.save(tmp_path / "in.jpg", quality=97, icc_profile=profile)
    photo = read_photo(tmp_path / "in.jpg")
    assert photo.notes[0].startswith("CMYK became sRGB without a usable colour profile")
    save_photo(photo, photo.pixels, tmp_path / "out.jpg")
    saved = Image.open(tmp_path / "out.jpg")
    assert saved.mode == "RGB"
    assert "icc_profile" not in saved.info  # the CMYK profile does not describe RGB


def test_cmyk_goes_through_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No CMYK profile can be made by Pillow or shipped here, so the transform itself is replaced.
    asked = {}

    def transform(image: Image.Image, source: object, target: object, **options: object) -> Image.Image:
        asked.update(options)
        return Image.new("RGB", image.size, (10, 20, 30))

    monkeypatch.setattr(ImageCms, "profileToProfile", transform)
    Image.fromarray(photo_array()).convert("CMYK").save(tmp_path / "in.jpg", icc_profile=SRGB)
    photo = read_photo(tmp_path / "in.jpg")
    assert photo.pixels[0, 0].tolist() == [10, 20, 30]
    assert photo.notes == ("CMYK became sRGB",)
    assert asked["outputMode"] == "RGB"
    assert photo.icc_profile is None


def jpeg_bytes() -> bytes:
    buffer = BytesIO()
    Image.fromarray(photo_array(size=(200, 200))).save(buffer, "JPEG")
    return buffer.getvalue()


def png_bytes() -> bytes:
    buffer = BytesIO()
    Image.fromarray(photo_array(size=(200, 200))).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("empty.jpg", b"", r"empty\.jpg: the file is empty \(0 bytes\)"),
        ("text.jpg", b"dear diary, " * 30, r"text\.jpg: not a photo in a known format \(JPEG, PNG, WebP"),
        ("cut.jpg", jpeg_bytes()[:900], r"cut\.jpg: damaged or truncated \("),
        ("cut.png", png_bytes()[:300], r"cut\.png: damaged or truncated \("),
        ("stub.jpg", b"\xff\xd8\xff\xe0", r"stub\.jpg: "),
        ("a.heic", b"\0\0\0\x18ftypheic" + bytes(40), r"a\.heic: damaged or truncated \("),
        ("a.avif", b"\0\0\0\x18ftypavif" + bytes(40), r"a\.avif: not a photo in a known format"),
    ],
)
def test_bad_files_are_named_with_the_reason(tmp_path: Path, name: str, data: bytes, text: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnreadablePhotoError, match=text):
        read_photo(tmp_path / name)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_resolution_is_kept(tmp_path: Path, file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[Base.Orientation] = orientation
    Image.fromarray(photo_array()).save(tmp_path / "in", file_format, dpi=(300, 150), exif=exif)
    photo = read_photo(tmp_path / "in")
    save_photo(photo, photo.pixels, tmp_path / "out")
    expected = (300, 150) if orientation == 1 else (150, 300)  # turned with the photo
    assert Image.open(tmp_path / "out").info["dpi"] == pytest.approx(expected, rel=1e-4)  # PNG: dots a metre


@pytest.mark.parametrize("dpi", [(0, 0), (float("nan"), 72), (1e9, 1e9), "?", None])
def test_a_resolution_that_makes_no_sense_is_left_out(dpi: object) -> None:
    image = Image.fromarray(photo_array())
    image.info["dpi"] = dpi
    photo = photo_from_image(image)
    assert photo.dpi is None
    assert "dpi" not in read_photo_bytes(encode_photo(photo, photo.pixels)).info


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadablePhotoError, match=r"gone\.jpg: cannot be opened \(No such file"):
        read_photo(tmp_path / "gone.jpg")
    with pytest.raises(UnreadablePhotoError, match="cannot be opened"):
        read_photo(tmp_path)


@pytest.mark.parametrize("limit", [39_999, 10_000])
def test_decompression_bomb_is_refused_with_its_pixels(tmp_path: Path, limit: int) -> None:
    # 39,999 is Pillow's warning (up to twice its limit), 10,000 its error; both must be ours
    (tmp_path / "bomb.png").write_bytes(png_bytes())
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            UnreadablePhotoError, match=rf"bomb\.png: too large.*limit {limit}|40000"
        ) as caught:
            read_photo(tmp_path / "bomb.png", max_pixels=limit)
    assert "40000" in str(caught.value)
    assert before == Image.MAX_IMAGE_PIXELS
    assert read_photo(tmp_path / "bomb.png", max_pixels=40_000).pixels.shape == (200, 200, 3)


def test_limit_may_be_above_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large.png").write_bytes(png_bytes())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_photo(tmp_path / "large.png").pixels.shape == (200, 200, 3)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(tmp_path: Path, file_format: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving", file_format, save_all=True, append_images=frames[1:])
    with pytest.raises(UnreadablePhotoError, match=r"moving: has 2 frames or pages, and only single"):
        read_photo(tmp_path / "moving")


def test_multi_picture_jpeg_is_its_first_picture(tmp_path: Path) -> None:
    second = Image.new("RGB", (48, 32), "blue")
    Image.fromarray(photo_array()).save(tmp_path / "in.jpg", "MPO", save_all=True, append_images=[second])
    assert Image.open(tmp_path / "in.jpg").format == "MPO"
    photo = read_photo(tmp_path / "in.jpg")
    assert photo.format == "JPEG"
    assert photo.notes == ("only the main picture of a multi-picture JPEG is written",)
    save_photo(photo, photo.pixels, tmp_path / "out.jpg")
    assert Image.open(tmp_path / "out.jpg").format == "JPEG"


def test_pixels_of_another_shape_or_type_are_refused(tmp_path: Path) -> None:
    photo = Photo(photo_array())
    with pytest.raises(
        ValueError, match=r"pixels must be uint8 of shape \(32, 48, 3\).*got uint8 of shape \(31,"
    ):
        save_photo(photo, photo.pixels[1:], tmp_path / "out.png")
    with pytest.raises(ValueError, match="got float64"):
        save_photo(photo, photo.pixels.astype(float), tmp_path / "out.png")
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "photo.png"
    target.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(TEMPORARY_PREFIX)] == []


def test_written_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_bytes(b"")
    write_atomic(tmp_path / "written", b"")
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
