"""Videos out: H.264 that does not undo the protection, with the source's times, colours and sound."""

from __future__ import annotations

import os
import secrets
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusers_dedim.atomic import TEMPORARY_PREFIX
from diffusers_dedim.extras import import_extra
from diffusers_dedim.video.reading import INSTALL_VIDEO, Colours, Frame, VideoReader

DEFAULT_CRF = 18
"""Constant rate factor of x264, 0 (without loss) to 51. How it was chosen: docs/video.md."""

_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
_WITHOUT_PTS = Fraction(1, 25)
_OF_X264 = {"preset": "fast"}


def video_name(name: str) -> str:
    """The name under which a video is written: H.264 goes into MP4, MOV and Matroska, others get ``.mkv`` added.

    Example:
        >>> video_name("a.MP4"), video_name("b.webm")
        ('a.MP4', 'b.webm.mkv')
    """
    return name if Path(name).suffix.lower() in _FORMATS else f"{name}.mkv"


class VideoWriter:
    """A video file that appears under its name when it is whole, and not at all where its block ends with an error.

    H.264 with 4:2:0 chroma, whose sides must be even: of an odd side the last row or column is repeated once. Sound
    goes in as packets, not coded anew. No metadata goes in. The file is written beside its place and renamed.

    Args:
        path: where to; its folder must exist. The ending decides the container: MP4, MOV or Matroska.
        source: the reader whose sound, times and colours the file gets.
        crf: of x264, 0 to 51; lower is better and larger.

    Raises:
        ValueError: the ending is none of these, or ``crf`` out of its range.
        ImportError: PyAV is not installed.

    Example:
        >>> with VideoReader("clip.mp4") as clip, VideoWriter("copy.mp4", clip) as copy:  # doctest: +SKIP
        ...     for frame in clip.frames(copy.add_sound):
        ...         copy.add(frame.pixels, frame)
    """

    def __init__(self, path: str | os.PathLike[str], source: VideoReader, crf: int = DEFAULT_CRF) -> None:
        self.path: Path = Path(path)
        kind = _FORMATS.get(self.path.suffix.lower())
        if kind is None:
            raise ValueError(
                f"target: expected a name that ends in {' '.join(_FORMATS)}, got {self.path.name!r}; "
                f"{video_name(self.path.name)!r} is one."
            )
        if not 0 <= crf <= 51:
            raise ValueError(f"crf: expected 0 (without loss) to 51, got {crf}.")
        self._av = import_extra("av", "a video", INSTALL_VIDEO)
        self._source, self._crf = source, crf
        self._temporary = self.path.parent / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        options = {"movflags": "faststart"} if kind != "matroska" else {}
        self._output: Any = self._av.open(str(self._temporary), "w", format=kind, options=options)
        self._stream: Any = None
        self._tracks: dict[int, Any] = {}
        self._waiting: list[Any] = []  # packets of sound before the first frame

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
            else:
                self._close_quietly()
        finally:
            self._temporary.unlink(missing_ok=True)

    def add(self, pixels: NDArray[np.uint8], like: Frame) -> None:
        """Write a frame.

        Args:
            pixels: uint8 RGB ``[H, W, 3]``.
            like: the frame that it was, for its time.
        """
        even = _even(pixels)
        if self._stream is None:
            self._stream = self._start(even, self._source.colours)
            for packet in self._waiting:
                self.add_sound(packet)
            self._waiting.clear()
        colours, base = self._source.colours, self._stream.codec_context.time_base
        picture = self._av.VideoFrame.from_ndarray(even, format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=colours.matrix,
            dst_color_range=2 if colours.full_range else 1,
            interpolation="BICUBIC",
        )
        time = like.time if like.time is not None else _WITHOUT_PTS
        picture.pts, picture.time_base = round(time / base), base
        if like.duration is not None:
            picture.duration = round(like.duration / base)
        self._output.mux(self._stream.encode(picture))

    def add_sound(self, packet: Any) -> None:
        """Write a packet of a sound track of the source as it is."""
        if self._stream is None:
            self._waiting.append(packet)
            return
        track = self._tracks.get(packet.stream_index)
        if track is not None:
            packet.stream = track
            self._output.mux(packet)

    def _copy_track(self, track: Any) -> Any:
        try:
            return self._output.add_stream_from_template(track)
        except (self._av.FFmpegError, ValueError) as error:  # this container does not take it
            self._source.notes.append(
                f"a sound track ({track.codec_context.name}) does not go into {self.path.suffix}: left out ({error})"
            )
            return None

    def _start(self, pixels: NDArray[np.uint8], colours: Colours) -> Any:
        source = self._source
        stream = self._output.add_stream(
            "libx264", rate=source.rate or 25, options={"crf": str(self._crf), **_OF_X264}
        )
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = source.stream.time_base or Fraction(1, 90_000)
        context.color_range = 2 if colours.full_range else 1
        context.colorspace, context.color_primaries = colours.space, colours.primaries
        context.color_trc = colours.transfer
        if source.pixel_aspect and source.pixel_aspect != 1:
            context.sample_aspect_ratio = source.pixel_aspect
        self._tracks = {track.index: self._copy_track(track) for track in source.sound}
        return stream

    def _finish(self) -> None:
        if self._stream is not None:
            self._output.mux(self._stream.encode(None))
        self._output.close()
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())
        self._temporary.replace(self.path)

    def _close_quietly(self) -> None:
        try:
            self._output.close()
        except Exception:  # what began it is raised already
            return


def _even(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The last row or column once more where a side is odd."""
    height, width = pixels.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return np.ascontiguousarray(pixels)
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
