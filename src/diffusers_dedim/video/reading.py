"""Videos in: upright 8-bit RGB frames with their times, and the packets of their sound as they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusers_dedim.errors import UnreadablePhotoError
from diffusers_dedim.extras import import_extra

VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".3gp", ".mts", ".m2ts"))
"""File name endings of the videos that are read."""

INSTALL_VIDEO = 'pip install "diffusers-dedim[video]"'
_KNOWN_SPACES = (
    1,
    4,
    5,
    6,
    7,
    9,
)  # of ITU-T H.273, those that the conversion knows: BT.709, FCC, 601, 170M, 240M, 2020
_FULL_RANGE = 2
_HIGH_DYNAMIC_RANGE = (16, 18)  # transfer PQ and HLG
_MOST_DAMAGE = 100  # damaged packets after one another, after which nothing sound is expected


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a video.

    Attributes:
        pixels: uint8 RGB ``[H, W, 3]`` in [0, 255], upright.
        time: when it is shown, s; None where nobody says.
        duration: for how long, s; None where nobody says.
        alpha: uint8 ``[H, W]`` of an animation with transparency, or None.
    """

    pixels: NDArray[np.uint8]
    time: Fraction | None = None
    duration: Fraction | None = None
    alpha: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Colours:
    """What the numbers of a video's pixels mean, as ITU-T H.273 counts them; 2 is "not said".

    Attributes:
        space: of the matrix from RGB to luma and chroma.
        primaries: of red, green and blue.
        transfer: from light to numbers.
        full_range: luma from 0 to 255, not from 16 to 235.
    """

    space: int = 2
    primaries: int = 2
    transfer: int = 2
    full_range: bool = False

    @property
    def matrix(self) -> int:
        """The space for the conversion: what is not said is taken for BT.601, both ways, so that nothing shifts."""
        return self.space if self.space in _KNOWN_SPACES else 5


class VideoReader:
    """A video file that is read once, frame by frame; nothing but the frame at hand is held.

    Args:
        path: MP4, MOV, Matroska, WebM or another container that FFmpeg knows.

    Attributes:
        rate: frames a second on the average, as the file says, or None.
        expected_frames: how many frames there are, by number or duration; None where the file does not say.
        notes: what reading could not keep, in words; complete once the frames are read.

    Raises:
        UnreadablePhotoError: it is no video, or damaged from its beginning; names the file.
        ImportError: PyAV is not installed.

    Example:
        >>> with VideoReader("clip.mp4") as clip:  # doctest: +SKIP
        ...     sizes = {frame.pixels.shape for frame in clip.frames()}
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)
        self._av = import_extra("av", "a video", INSTALL_VIDEO)
        self.notes: list[str] = []
        try:
            self.container: Any = self._av.open(str(self.path), metadata_errors="replace")
        except (self._av.FFmpegError, OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UnreadablePhotoError(
                f"{self.path}: not a video that can be read, or cut off ({why})"
            ) from error
        videos = [stream for stream in self.container.streams.video if not _is_cover(stream)]
        if not videos:
            self.close()
            raise UnreadablePhotoError(f"{self.path}: holds no moving pictures")
        self.stream: Any = videos[0]
        self.sound: list[Any] = list(self.container.streams.audio)
        left_out = len(self.container.streams) - 1 - len(self.sound)
        if left_out:
            self.notes.append(
                f"{left_out} other tracks (subtitles, data, pictures, a second video) are left out"
            )
        self.stream.thread_type = "AUTO"
        self.rate: Fraction | None = self.stream.average_rate or self.stream.guessed_rate
        self.colours: Colours = Colours()
        self.pixel_aspect: Fraction | None = self.stream.sample_aspect_ratio
        self._damaged = 0

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self.container.close()

    @property
    def expected_frames(self) -> int | None:
        """How many frames there are, by the file's own count or by duration and rate; None where it says neither."""
        if self.stream.frames:
            return int(self.stream.frames)
        if self.stream.duration is not None and self.stream.time_base is not None:
            seconds = self.stream.duration * self.stream.time_base
        elif self.container.duration is not None:
            seconds = Fraction(self.container.duration, self._av.time_base)
        else:
            return None
        return max(1, round(seconds * self.rate)) if self.rate else None

    def frames(self, on_sound: Callable[[Any], object] | None = None) -> Iterator[Frame]:
        """Yield the frames in the order in which they are shown.

        Damaged packets are passed over and counted in ``notes``.

        Args:
            on_sound: gets each packet of each sound track, in the order of the file.

        Raises:
            UnreadablePhotoError: there is not one frame, or the size changes on the way.
        """
        shape, last = None, None
        for picture in self._pictures(on_sound):
            frame = self._frame(picture, last)
            if shape is None:
                shape = frame.pixels.shape
                self._describe(picture)
            elif frame.pixels.shape != shape:
                raise UnreadablePhotoError(
                    f"{self.path}: the size changes from {shape[1]}x{shape[0]} to "
                    f"{frame.pixels.shape[1]}x{frame.pixels.shape[0]}; cut it there first"
                )
            last = frame.time
            yield frame
        if shape is None:
            raise UnreadablePhotoError(f"{self.path}: not one frame can be decoded; the file is damaged")
        if self._damaged:
            self.notes.append(f"{self._damaged} damaged packets were passed over: frames may be missing")

    def _pictures(self, on_sound: Callable[[Any], object] | None) -> Iterator[Any]:
        in_a_row = 0
        packets = self.container.demux(self.stream, *self.sound)
        while in_a_row < _MOST_DAMAGE:
            try:
                packet = next(packets)
                if packet.stream is not self.stream:
                    if on_sound is not None and packet.dts is not None:
                        on_sound(packet)
                    continue
                pictures = packet.decode()
            except StopIteration:
                return
            except self._av.FFmpegError:
                self._damaged, in_a_row = self._damaged + 1, in_a_row + 1
                continue
            in_a_row = 0
            yield from pictures

    def _frame(self, picture: Any, last: Fraction | None) -> Frame:
        base = self.stream.time_base
        time = None if picture.pts is None else picture.pts * base
        if time is None or (last is not None and time <= last):
            step = 1 / self.rate if self.rate else Fraction(1, 25)
            time = Fraction(0) if last is None else last + (step if time is None else base)
        self.colours = _colours(picture)
        pixels = picture.to_ndarray(
            format="rgb24",
            src_colorspace=self.colours.matrix,
            src_color_range=_FULL_RANGE if self.colours.full_range else 1,
            interpolation="BICUBIC",
        )
        turns = round(picture.rotation / 90)  # counter-clockwise, as np.rot90 counts
        if turns % 2 and self.pixel_aspect and last is None:
            self.pixel_aspect = 1 / self.pixel_aspect
        upright = np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
        return Frame(upright, time, picture.duration * base if picture.duration else None)

    def _describe(self, picture: Any) -> None:
        """Note what 8 bits cannot hold."""
        bits = max(component.bits for component in picture.format.components)
        if bits > 8:
            self.notes.append(f"{bits} bits a channel became 8")
        if self.colours.transfer in _HIGH_DYNAMIC_RANGE:
            self.notes.append("a high dynamic range is kept in 8 bits: bands may show")


def _colours(picture: Any) -> Colours:
    return Colours(
        int(picture.colorspace),
        int(picture.color_primaries),
        int(picture.color_trc),
        int(picture.color_range) == _FULL_RANGE or picture.format.name.startswith("yuvj"),
    )


def _is_cover(stream: Any) -> bool:
    """Whether a video stream is a still picture that was attached, as the cover of a record."""
    return "attached_pic" in str(getattr(stream.disposition, "name", "") or "")
