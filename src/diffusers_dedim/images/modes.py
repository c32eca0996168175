"""Any Pillow mode to 8-bit RGB and an alpha plane, and back to the family the photo came in."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

PixelArray = NDArray[np.uint8]

_MAX_16_BIT = 65535
_PIXELS_AT_A_TIME = 2**22
_TIFF_PHOTOMETRIC = 262
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
NOTE_16_BIT = "16 bits a channel became 8"
NOTE_CMYK = "CMYK became sRGB"
NOTE_CMYK_NO_PROFILE = "CMYK became sRGB without a usable colour profile, so colours are approximate"


def is_grey(image: Image.Image) -> bool:
    """Whether the photo has one channel of brightness, with or without alpha.

    Example:
        >>> is_grey(Image.new("LA", (2, 2))), is_grey(Image.new("P", (2, 2)))
        (True, False)
    """
    return image.mode in _GREY_MODES


def is_16_bit(image: Image.Image) -> bool:
    """Whether the file stores 16 bits a channel; ask before the pixels are loaded.

    Pillow reads 16-bit colour files as 8-bit RGB, and only the decoder's arguments show it.
    """
    return image.mode.startswith("I") or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def white_is_zero(image: Image.Image) -> bool:
    """Whether a TIFF counts brightness downwards; Pillow turns such pixels around, but not those of 16 bits.

    Example:
        >>> white_is_zero(Image.new("I;16", (2, 2)))
        False
    """
    return image.mode.startswith("I") and getattr(image, "tag_v2", {}).get(_TIFF_PHOTOMETRIC) == 0


def split_rgb_alpha(image: Image.Image, *, deep: bool = False) -> tuple[PixelArray, PixelArray | None]:
    """Pixels as uint8 RGB ``[H, W, 3]`` in [0, 255] and alpha as uint8 ``[H, W]`` or ``None``.

    Args:
        image: any mode.
        deep: whether the file had 16 bits a channel (`is_16_bit`). Pillow has cut those of colours to 8, but not the
            colour that is transparent: it is cut likewise, so that its neighbours in 16 bits become transparent too.

    Raises:
        ValueError: the mode has no known range (floating point, 32-bit integers beyond 16 bits).

    Example:
        >>> pixels, alpha = split_rgb_alpha(Image.new("LA", (4, 3), (7, 9)))
        >>> pixels.shape, alpha.shape
        ((3, 4, 3), (3, 4))
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it as 8-bit or 16-bit first")
    if image.mode.startswith("I"):
        return _grey_from_16_bit(image), _alpha_from_16_bit(image)
    if image.mode == "La":  # Pillow has no step from premultiplied grey to anything but LA
        image = image.convert("LA")
    key = image.info.get("transparency")
    if deep and isinstance(key, tuple):
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    alpha = np.empty((image.height, image.width), np.uint8) if mode == "RGBA" else None
    for rows, band in _bands(image):
        values = np.asarray(band if band.mode == mode else band.convert(mode))
        pixels[rows] = values[..., :3]
        if alpha is not None:
            alpha[rows] = values[..., 3]
    return pixels, alpha


def _bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """The photo in bands of whole rows: Pillow's own steps hold a large photo four times in memory."""
    # cutting a band out is subject to Pillow's limit, which the whole photo may be above
    limit = min(_PIXELS_AT_A_TIME, Image.MAX_IMAGE_PIXELS or _PIXELS_AT_A_TIME)
    for rows in row_bands((image.height, image.width), limit):
        yield rows, image.crop((0, rows.start, image.width, rows.stop))


def row_bands(shape: tuple[int, ...], pixels: int = _PIXELS_AT_A_TIME) -> Iterator[slice]:
    """Slices over the rows of a photo ``[H, W, ...]``, so that what is made of each stays small.

    Example:
        >>> list(row_bands((3, 2**22)))
        [slice(0, 1, None), slice(1, 2, None), slice(2, 3, None)]
    """
    rows = max(1, pixels // max(1, shape[1]))
    return (slice(top, min(top + rows, shape[0])) for top in range(0, shape[0], rows))


def is_neutral(pixels: PixelArray) -> bool:
    """Whether every pixel of RGB ``[H, W, 3]`` is grey: such a photo stays grey, also where it is stored in colour.

    Example:
        >>> is_neutral(np.full((2, 2, 3), 7, np.uint8)), is_neutral(np.zeros((1, 1, 3), np.uint8) + np.uint8([0, 0, 1]))
        (True, False)
    """
    for rows in row_bands(pixels.shape):
        band = pixels[rows]
        if (band[..., 0] != band[..., 1]).any() or (band[..., 1] != band[..., 2]).any():
            return False
    return True


def same_pixels(first: PixelArray, second: PixelArray) -> bool:
    """`numpy.array_equal` in bands of rows.

    Example:
        >>> same_pixels(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2, 3), np.uint8))
        False
    """
    return first.shape == second.shape and all(
        np.array_equal(first[rows], second[rows]) for rows in row_bands(first.shape)
    )


def cmyk_to_srgb(image: Image.Image, icc_profile: bytes | None) -> tuple[Image.Image, str]:
    """Convert CMYK to sRGB through its profile, and say how it was done.

    Args:
        image: a CMYK photo.
        icc_profile: the profile inside the file, if any.

    Returns:
        The RGB photo and a note for the user: without a usable profile Pillow's plain formula is used.
    """
    if icc_profile is not None:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(icc_profile))
            converted = ImageCms.profileToProfile(
                image,
                source,
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
                renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )
        except (ImageCms.PyCMSError, OSError):
            converted = None
        if converted is not None:
            return converted, NOTE_CMYK
    return image.convert("RGB"), NOTE_CMYK_NO_PROFILE


def as_written(pixels: PixelArray, *, grey: bool) -> PixelArray:
    """uint8 RGB ``[H, W, 3]`` as `join_rgb_alpha` keeps it: of a grey photo the luma, three times.

    Example:
        >>> as_written(np.full((1, 1, 3), (255, 0, 0), np.uint8), grey=True).tolist()
        [[[76, 76, 76]]]
    """
    if not grey:
        return pixels
    luma = np.empty_like(pixels)
    for rows in row_bands(pixels.shape):
        luma[rows] = np.asarray(Image.fromarray(pixels[rows]).convert("L"))[..., None]
    return luma


def join_rgb_alpha(pixels: PixelArray, alpha: PixelArray | None, *, grey: bool) -> Image.Image:
    """Image in mode L, LA, RGB or RGBA from uint8 RGB ``[H, W, 3]`` and alpha ``[H, W]``.

    Grey is the BT.601 luma, which gives back exactly the pixels whose three channels are equal.

    Example:
        >>> join_rgb_alpha(np.full((2, 2, 3), 7, np.uint8), None, grey=True).mode
        'L'
    """
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if grey:
        image = image.convert("L")
    if alpha is not None:
        image.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
    return image


def _grey_from_16_bit(image: Image.Image) -> PixelArray:
    """Scale 0..65535 to 0..255, rounding to the nearest; Pillow's own conversion clips at 255 instead."""
    low, high = image.getextrema()
    if low < 0 or high > _MAX_16_BIT:  # type: ignore[operator]  # of one channel
        raise ValueError(
            f"32-bit integer pixels from {low} to {high} have no known range; save it as 8-bit or 16-bit first"
        )
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows, band in _bands(image):
        pixels[rows] = ((np.asarray(band).astype(np.int64) + 128) // 257)[..., None]
    return pixels


def _alpha_from_16_bit(image: Image.Image) -> PixelArray | None:
    """0 where a pixel has the grey that is transparent, 255 elsewhere; None where no grey is."""
    key = image.info.get("transparency")
    return np.where(np.array(image) == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
