"""Tiny clips: a textured square stands for a face, and moves."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from toys import face_at, tiny_preset

from diffusers_dedim.faces import Face

SIDE = 64
GREY = 90
# what the toys reach in a round or two
PRESET = tiny_preset(
    guidance="estimate", guidance_scale=0.2, max_rounds=3, threshold=0.9, threshold_margin=0.03
)


def texture(seed: int) -> np.ndarray:
    """A face: smooth noise, another one for each seed, never grey in its first column."""
    coarse = np.random.default_rng(seed).integers(100, 220, (8, 8, 3)).astype(np.uint8)
    return coarse.repeat(SIDE // 8, axis=0).repeat(SIDE // 8, axis=1)


def picture(*places: tuple[int, int, int], size: tuple[int, int] = (160, 120)) -> np.ndarray:
    """A grey picture (width, height) with faces (seed, x, y)."""
    pixels = np.full((size[1], size[0], 3), GREY, np.uint8)
    for seed, x, y in places:
        face = texture(seed)[: size[1] - y, : size[0] - x]
        pixels[y : y + face.shape[0], x : x + face.shape[1]] = face
    return pixels


def moving(count: int = 12, seed: int = 0) -> list[np.ndarray]:
    return [picture((seed, 20 + 2 * index, 30)) for index in range(count)]


def detect(pixels: np.ndarray) -> list[Face]:
    """The face at the leftmost column that is not grey; coding blurs its edge by a pixel or so."""
    other = np.abs(pixels.astype(int) - GREY).max(2) > 8
    if other.sum() < SIDE:
        return []
    x, y = (int(np.argmax(other.sum(axis) > 8)) for axis in (0, 1))
    return [face_at(float(x), float(y), float(SIDE))]


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    sound: bool = True,
    times: Sequence[int] | None = None,
    pixel_format: str = "yuv420p",
    full_range: bool = False,
    codec: str = "libx264",
) -> Path:
    """Write a clip of 12 frames a second, with metadata that must not survive; times in 1/1200 s."""
    with av.open(str(path), "w") as output:
        output.metadata["comment"], output.metadata["location"] = "secret", "+48.1+11.5/"
        stream = output.add_stream(codec, rate=12, options={"crf": "4"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1200)
        stream.codec_context.color_range = 2 if full_range else 1
        track = output.add_stream("libopus" if codec != "libx264" else "aac", rate=48000) if sound else None
        if track is not None:
            track.layout = "mono"
        for index, pixels in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture = picture.reformat(format=pixel_format, dst_color_range=2 if full_range else 1)
            picture.pts, picture.time_base = times[index] if times else 100 * index, Fraction(1, 1200)
            output.mux(stream.encode(picture))
            if track is not None:
                output.mux(track.encode(_tone(index)))
        for each in (stream, track):
            if each is not None:
                output.mux(each.encode(None))
    return path


def _tone(index: int) -> av.AudioFrame:
    wave = (8000 * np.sin(np.arange(960 * 4) / 10 + index)).astype(np.int16)[None]
    frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
    frame.sample_rate, frame.pts = 48000, index * 960 * 4
    return frame


def sound_of(path: Path) -> list[tuple[Fraction, bytes]]:
    """Time and bytes of each packet of sound."""
    with av.open(str(path)) as container:
        packets = container.demux(container.streams.audio[0])
        return [
            (packet.pts * packet.time_base, bytes(packet)) for packet in packets if packet.dts is not None
        ]
