"""Animated GIF, WebP and PNG: read and written by Pillow, with their times, loops and transparency."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from diffusers_dedim.atomic import write_atomic
from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.images.modes import join_rgb_alpha, split_rgb_alpha
from diffusers_dedim.video.reading import Frame

MAX_ANIMATION_PIXELS = 2**28
"""Most pixels of an animation, all frames together: Pillow writes one as a whole, so it is held whole."""

_FORMATS = ("GIF", "WEBP", "PNG")
# GIF has 256 colours, which would undo the protection
_WRITTEN: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".apng": {"format": "PNG"},
    ".webp": {"format": "WEBP", "lossless": True, "exact": True},
}
_SHORTEST = 20  # ms; what says less, or nothing, is shown for 100 ms, as browsers do
_UNSAID = 100


def is_animation(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a GIF, WebP or PNG of several frames.

    Example:
        >>> is_animation("no/such/file")
        False
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # whatever it is, it is no animation
        return False


class AnimationReader:
    """An animation, read frame by frame.

    Args:
        path: of the file.

    Attributes:
        notes: what reading could not keep, in words.
        loops: how often it is shown, 0 for ever.
        expected_frames: how many there are.

    Raises:
        UnreadablePhotoError: it cannot be read, or has too many pixels.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)
        try:
            self._image = Image.open(self.path, formats=_FORMATS)
            self.expected_frames: int = int(getattr(self._image, "n_frames", 1))
        except (OSError, ValueError, SyntaxError) as error:
            raise UnreadablePhotoError(f"{self.path}: not an animation that can be read ({error})") from error
        pixels = self._image.width * self._image.height * self.expected_frames
        if pixels > MAX_ANIMATION_PIXELS:
            self._image.close()
            raise UnreadablePhotoError(
                f"{self.path}: too large: {self.expected_frames} frames of {self._image.width}x{self._image.height} "
                f"are {pixels} pixels, limit {MAX_ANIMATION_PIXELS}; make a video of it"
            )
        self.loops: int = int(self._image.info.get("loop", 1 if self._image.format == "GIF" else 0))
        self.notes: list[str] = (
            ["GIF is written as PNG, because 256 colours would undo the protection"]
            if self._image.format == "GIF"
            else []
        )

    def __enter__(self) -> AnimationReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._image.close()

    def frames(self) -> Iterator[Frame]:
        """Yield the frames as they are shown, whole pictures.

        Raises:
            UnreadablePhotoError: a frame is damaged.
        """
        time = Fraction(0)
        try:
            for image in ImageSequence.Iterator(self._image):
                # one with transparency somewhere is read so throughout
                pixels, alpha = split_rgb_alpha(image.convert("RGBA"), deep=False)
                stated = image.info.get("duration") or 0  # a WebP says it once the frame is decoded
                duration = Fraction(stated if stated >= _SHORTEST else _UNSAID) / 1000
                opaque = alpha is None or bool((alpha == 255).all())
                yield Frame(pixels, time, duration, None if opaque else alpha)
                time += duration
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise UnreadablePhotoError(f"{self.path}: damaged or cut off ({error})") from error


@dataclass(eq=False)
class AnimationWriter:
    """An animation that appears under its name when its block ends well.

    Args:
        path: ends in ``.png``, ``.apng`` or ``.webp``; both are written without loss.
        source: how often it is shown is taken from there.

    Raises:
        ValueError: the ending is another one.
    """

    path: str | os.PathLike[str]
    source: AnimationReader
    _images: list[Image.Image] = field(default_factory=list)
    _durations: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if Path(self.path).suffix.lower() not in _WRITTEN:
            raise ValueError(
                f"target: expected a name that ends in {' '.join(_WRITTEN)} for an animation, got "
                f"{Path(self.path).name!r}."
            )

    def __enter__(self) -> AnimationWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None or not self._images:
            return
        # all frames of one mode, or Pillow takes the first one's
        if any(image.mode == "RGBA" for image in self._images):
            self._images = [image.convert("RGBA") for image in self._images]
        buffer = BytesIO()
        first, *others = self._images
        first.save(
            buffer, save_all=True, append_images=others, duration=self._durations, loop=self.source.loops,
            **_WRITTEN[Path(self.path).suffix.lower()],
        )  # fmt: skip
        write_atomic(self.path, buffer.getvalue())

    def add(self, pixels: NDArray[np.uint8], like: Frame) -> None:
        """Add a frame: uint8 RGB ``[H, W, 3]``, and the one that it was, for its time and transparency."""
        self._images.append(join_rgb_alpha(pixels, like.alpha, grey=False))
        duration = like.duration if like.duration is not None else Fraction(_UNSAID, 1000)
        self._durations.append(round(duration * 1000))
