"""Clips made of still photos: one who talks, panned, zoomed, turned, lit, with a camera's noise; a crossing; a cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from diffusers_dedim.faces import ARCFACE_TEMPLATE, Face, estimate_similarity
from diffusers_dedim.video.reading import Frame

Pixels = NDArray[np.uint8]
KINDS = ("still", "talk", "pan", "zoom", "turn", "light", "cross", "cut")
"""A still camera; a head that sways and talks; a camera that moves, comes nearer, turns; light that changes; two people
who cross; another and back."""

SIZE = (320, 240)
_NOISE = 2.5  # levels of 255, of each pixel and frame
_GREY = 96
# Of a mouth that opens, in px of the aligned crop: where the lips meet, how far the jaw goes down, where nothing moves.
_LIPS, _JAW, _STILL = (56.0, 92.3), 9.0, 140.0


@dataclass(frozen=True, eq=False)
class MadeFrame:
    """A frame, and the faces in it as they are known from the photos.

    Attributes:
        frame: the picture with its time.
        faces: number of the photo -> the face, px of the frame; those that lie behind another one are left out.
    """

    frame: Frame
    faces: dict[int, Face]


def make_clip(
    photos: Sequence[tuple[Pixels, Face]], kind: str, frames: int, rate: int, seed: int = 0
) -> Iterator[MadeFrame]:
    """Yield the frames of a clip.

    Args:
        photos: uint8 RGB photos, each with the face that is meant; "cross" and "cut" take two.
        kind: one of `KINDS`.
        frames: how many.
        rate: frames a second.
        seed: of the noise.
    """
    draw = np.random.default_rng(seed)
    for index in range(frames):
        share = index / max(1, frames - 1)
        shown = _shown(kind, share, index / rate)
        canvas = np.full((SIZE[1], SIZE[0], 3), _GREY, dtype=np.float32)
        faces: dict[int, Face] = {}
        for number, matrix in shown:  # the later ones lie in front
            photo, face = photos[number]
            if kind == "talk":
                photo = _open_mouth(photo, face, _speech(index / rate))
            layer, alpha = _place(photo, matrix)
            canvas = np.where(alpha[..., None] > 0, layer, canvas)
            faces = {other: each for other, each in faces.items() if not _behind(each, alpha)}
            faces[number] = _moved(face, photo.shape, matrix)
        gain = 1 + 0.35 * math.sin(2 * math.pi * share) if kind == "light" else 1.0
        ramp = (
            np.linspace(gain, 1 / gain, SIZE[0], dtype=np.float32)[None, :, None] if kind == "light" else gain
        )
        noisy = canvas * ramp + draw.normal(0, _NOISE, canvas.shape)
        pixels = noisy.round().clip(0, 255).astype(np.uint8)
        yield MadeFrame(Frame(pixels, Fraction(index, rate), Fraction(1, rate)), faces)


def _shown(kind: str, share: float, seconds: float) -> list[tuple[int, NDArray[np.float64]]]:
    """Which photos a frame shows, and where: matrix ``[2, 3]`` from px about a photo's middle to px of the frame."""
    middle, wave = np.array(SIZE) / 2, math.sin(2 * math.pi * share)
    if kind == "cross":
        way = 110 * math.cos(math.pi * share)
        return [
            (0, _matrix(0.8, 0.0, middle + np.array([way, 0]))),
            (1, _matrix(0.8, 0.0, middle - np.array([way, 0]))),
        ]
    if kind == "cut":
        return [(int(1 / 3 <= share < 2 / 3), _matrix(1.0, 0.0, middle + np.array([10 * wave, 0])))]
    if kind == "talk":  # sways, nods and tilts at frequencies without a common beat
        x, y, tilt = (math.sin(2 * math.pi * rate * seconds) for rate in (0.31, 0.47, 0.23))
        return [(0, _matrix(1 + 0.03 * tilt, 4 * x, middle + np.array([8 * x, 4 * y])))]
    scale = 1 + 0.25 * wave if kind == "zoom" else 1.0
    angle = 15 * wave if kind == "turn" else 0.0
    shift = (45 * wave, 10 * math.sin(4 * math.pi * share)) if kind == "pan" else (0.0, 0.0)
    return [(0, _matrix(scale, angle, middle + shift))]


def _matrix(scale: float, degrees: float, middle: NDArray[np.float64]) -> NDArray[np.float64]:
    cosine, sine = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return np.array([[cosine, -sine, middle[0]], [sine, cosine, middle[1]]])


def _place(photo: Pixels, matrix: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The photo on the frame's grid, and where it lies: float32 ``[H, W, 3]`` in [0, 255], ``[H, W]``."""
    inverse = np.linalg.inv(matrix[:, :2])
    offset = np.array(photo.shape[1::-1]) / 2 - inverse @ matrix[:, 2]
    coefficients = np.hstack([inverse, offset[:, None]]).ravel().tolist()
    image = Image.fromarray(photo).convert("RGBA")
    moved = image.transform(SIZE, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    layer = np.asarray(moved, dtype=np.float32)
    return layer[..., :3], layer[..., 3]


def _speech(seconds: float) -> float:
    """How far the mouth is open, 0 to 1: syllables, and pauses between the phrases."""
    phrase = max(0.0, math.sin(2 * math.pi * 0.4 * seconds + 0.5) + 0.5) / 1.5
    return phrase * math.sin(math.pi * 2.7 * seconds) ** 2


def _open_mouth(photo: Pixels, face: Face, opened: float) -> Pixels:
    """The photo with the jaw down and a dark gap between the lips; ``opened`` from 0 to 1."""
    to_crop = estimate_similarity(face.landmarks, ARCFACE_TEMPLATE)
    height, width = photo.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float64)
    u, v = np.moveaxis(grid @ to_crop[:, :2].T + to_crop[:, 2] - _LIPS, -1, 0)
    jaw = _JAW * opened * np.exp(-((u / 26) ** 2))
    down = jaw * np.clip(v / (jaw + 4), 0, 1) * np.clip((_STILL - _LIPS[1] - v) / 30, 0, 1)
    source = grid - (down[..., None] * np.linalg.inv(to_crop[:, :2])[:, 1])
    scaled = (2 * source + 1) / (width, height) - 1
    layer = torch.from_numpy(photo.astype(np.float64)).permute(2, 0, 1)[None]
    moved = functional.grid_sample(layer, torch.from_numpy(scaled)[None], "bicubic", "border", False)[0]
    gap = np.clip(1.3 - (u / 13) ** 2 - ((v - jaw / 2) / np.maximum(jaw / 2, 1e-3)) ** 2, 0, 1) * min(
        1, 4 * opened
    )
    dark = moved.permute(1, 2, 0).numpy() * (1 - 0.8 * gap[..., None])
    return dark.round().clip(0, 255).astype(np.uint8)


def _moved(face: Face, shape: tuple[int, ...], matrix: NDArray[np.float64]) -> Face:
    half = (np.array(shape[1::-1]) - 1) / 2
    points = (face.landmarks - half) @ matrix[:, :2].T + matrix[:, 2] - 0.5
    x0, y0, x1, y1 = face.box
    corners = np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]])
    box = (corners - half) @ matrix[:, :2].T + matrix[:, 2] - 0.5
    (left, top), (right, bottom) = box.min(axis=0).tolist(), box.max(axis=0).tolist()
    return Face((left, top, right, bottom), points, 1.0)


def _behind(face: Face, alpha: NDArray[np.float32]) -> bool:
    """Whether something in front covers a corner of a face, or more."""
    x0, y0, x1, y1 = (max(0, round(edge)) for edge in face.box)
    return bool((alpha[y0:y1, x0:x1] > 0).mean() > 0.02)
