"""Which faces does a detector find? LFW's people, alone and in crowds, upright and as photos go wrong.

    python -m benchmarks.detectors --photos 40 --json out/detectors.json
    python -m benchmarks.detectors --detectors mtcnn mymodule:find

LFW's photos are laid so that the person's face is in the middle, a little over 100 px tall: that is the truth, and no
detector had a say in it. Each case changes the photos: ``small`` to the size in px, ``dark`` to 0.07 of the light,
``dim`` to a third with noise, ``tilt`` and ``turn`` by degrees, the others by a cover of `benchmarks.covers`.
``crowd`` lays all of them, shrunk to 20 to 100 px, over pictures without a face, some twenty to a picture.

For each detector and case: ``found`` (share of the faces with a finding at their place and of their size), ``agreed``
(share whose points the landmark model then finds right, so that the pipeline would change them), ``milliseconds`` of
processor time for a photo; in a crowd also ``false``, findings where no face was laid, for each picture. Faces of 40 px
or more count for ``agreed``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data as pictures

from benchmarks._command import LFW, at_least, make_parser, number, run_with_pipeline, say
from benchmarks.covers import make_case
from diffusers_dedim.evaluation import read_protocol
from diffusers_dedim.faces import (
    ARCFACE_TEMPLATE,
    MIN_FACE_SIZE,
    Face,
    FaceDetection,
    align_face,
    contradictions,
    named_detector,
)

Pixels = NDArray[np.uint8]
_MIDDLE, _TALL = np.array([0.5, 0.53]), 0.44  # of LFW's faces, in sides of the photo
_NEAR, _SIZES = (
    0.35,
    (0.4, 2.2),
)  # a finding is of a face: distance of the middles and size, in sizes of the face
_COVERS = ("glasses", "mask", "hand", "bar", "half")
_CROWD, _SIDE, _FACELESS = (6, 4), 160, ("brick", "gravel", "grass", "coffee", "chelsea", "rocket", "coins")


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, and where its faces are: middles ``[N, 2]`` and sizes ``[N]``, px."""

    photo: Pixels
    middles: NDArray[np.float64]
    sizes: NDArray[np.float64]


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object; for the arguments see `run_with_pipeline`."""
    run_with_pipeline("benchmarks.detectors", _parse, measure_detectors, arguments, load_pipeline)


def measure_detectors(pipe: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Search all scenes with all detectors; returns what the JSON object holds."""
    photos = [record.read_photo() for record in read_protocol(options.data).gallery[: options.photos]]
    detectors = {name: named_detector(name) for name in options.detectors}
    cases: dict[str, Any] = {}
    for case, make in make_cases().items():
        scenes = [make(photo, seed) for seed, photo in enumerate(photos)]
        cases[case] = {name: _measure(pipe, finder, scenes) for name, finder in detectors.items()}
        say("benchmarks.detectors", f"{case}: {cases[case]}")
    crowds = list(draw_crowds(photos))
    cases["crowd"] = {name: _measure(pipe, finder, crowds) for name, finder in detectors.items()}
    return {"photos": len(photos), "crowds": len(crowds), "cases": cases, "data": str(options.data)}


def make_cases() -> dict[str, Callable[[Pixels, int], Scene]]:
    """What is done to a photo, by the case's name: (photo, seed) -> scene."""
    return {
        "plain": lambda photo, seed: _scene(photo),
        **{f"small {size}": partial(_small, size=size) for size in (16, 24, 39)},
        "dark": lambda photo, seed: _scene((photo * 0.07).astype(np.uint8)),
        "dim": _dim,
        **{f"tilt {angle}": partial(_tilt, angle=angle) for angle in (30, 45, 60)},
        **{f"turn {90 * turn}": partial(_turn, turn=turn) for turn in (1, 2, 3)},
        **{kind: partial(_covered, kind=kind) for kind in _COVERS},
    }


def _scene(photo: Pixels, scale: float = 1.0) -> Scene:
    """One face in the middle; ``scale``: what is left of the photo's size within it."""
    height, width = photo.shape[:2]
    return Scene(photo, (_MIDDLE * (width, height))[None], np.array([_TALL * scale * height]))


def _small(photo: Pixels, seed: int, size: int) -> Scene:
    side = round(size / _TALL)
    small = np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.LANCZOS))
    return _scene(small)


def _dim(photo: Pixels, seed: int) -> Scene:
    noise = np.random.default_rng(seed).normal(0, 6, photo.shape)
    return _scene((photo * 0.35 + noise).clip(0, 255).astype(np.uint8))


def _tilt(photo: Pixels, seed: int, angle: int) -> Scene:
    return _scene(np.asarray(Image.fromarray(photo).rotate(angle, Image.Resampling.BICUBIC)))


def _turn(photo: Pixels, seed: int, turn: int) -> Scene:
    return _scene(np.ascontiguousarray(np.rot90(photo, turn)))


def _covered(photo: Pixels, seed: int, kind: str) -> Scene:
    side, tall = photo.shape[0], _TALL * photo.shape[0]
    x, y = _MIDDLE * side - tall / 2
    points = np.array([x, y]) + tall * (ARCFACE_TEMPLATE / 112 * 0.94 + [0.03, 0.0])
    return _scene(make_case(kind, photo, Face((x, y, x + tall, y + tall), points, 1.0), seed).photo)


def draw_crowds(photos: Sequence[Pixels]) -> Iterator[Scene]:
    """Lay the people over pictures without a face.

    Args:
        photos: of one person each, with the face in the middle.

    Example:
        >>> photo = np.zeros((250, 250, 3), dtype=np.uint8)
        >>> [len(scene.sizes) for scene in draw_crowds([photo] * 30)]
        [24, 6]
    """
    rng, (columns, rows) = np.random.default_rng(0), _CROWD
    for start in range(0, len(photos), columns * rows):
        background = Image.fromarray(getattr(pictures, _FACELESS[start // 24 % len(_FACELESS)])())
        canvas = background.convert("RGB").resize((columns * _SIDE, rows * _SIDE))
        middles, sizes = [], []
        for place, photo in enumerate(photos[start : start + columns * rows]):
            size = float(np.exp(rng.uniform(np.log(20), np.log(100))))
            side = round(size / _TALL)
            tile = Image.fromarray(photo).resize((side, side), Image.Resampling.LANCZOS)
            shown = min(side, round(1.5 * size))  # of the middle alone: others may stand beside
            left, top = (side - shown) // 2, (side - shown) // 2
            corner = np.array([place % columns, place // columns]) * _SIDE + rng.integers(
                0, _SIDE - shown + 1, 2
            )
            canvas.paste(tile.crop((left, top, left + shown, top + shown)), tuple(corner.tolist()))
            middles.append(corner + _MIDDLE * side - (left, top))
            sizes.append(size)
        yield Scene(np.asarray(canvas), np.array(middles), np.array(sizes))


def _measure(pipe: Any, finder: FaceDetection, scenes: Sequence[Scene]) -> dict[str, Any]:
    found, agreed, large, false, seconds = 0, 0, 0, 0, 0.0
    for scene in scenes:
        begin = time.process_time()
        faces = finder(scene.photo)
        seconds += time.process_time() - begin
        hits = [
            _nearest(faces, middle, size) for middle, size in zip(scene.middles, scene.sizes, strict=True)
        ]
        found += sum(hit is not None for hit in hits)
        big = [hit for hit, size in zip(hits, scene.sizes, strict=True) if size >= MIN_FACE_SIZE]
        large += len(big)
        agreed += _agreeing(pipe, scene.photo, [hit for hit in big if hit is not None])
        false += len(faces) - len({id(hit) for hit in hits if hit is not None})
    row = {
        "found": number(found / sum(len(scene.sizes) for scene in scenes)),
        "agreed": number(agreed / large) if large else None,
        "milliseconds": number(1000 * seconds / len(scenes), 0),
    }
    return {**row, "false": number(false / len(scenes))} if len(scenes[0].sizes) > 1 else row


def _nearest(faces: Sequence[Face], middle: NDArray[np.float64], size: float) -> Face | None:
    """The finding that is of the face there."""

    def away(face: Face) -> float:
        return float(np.linalg.norm(face.landmarks.mean(axis=0) - middle)) / size

    fitting = [face for face in faces if _SIZES[0] < face.size / size < _SIZES[1] and away(face) < _NEAR]
    return min(fitting, key=away, default=None)


@torch.no_grad()
def _agreeing(pipe: Any, photo: Pixels, faces: Sequence[Face]) -> int:
    """How many of them the pipeline would change: their points do not contradict the landmark model's."""
    if not faces:
        return 0
    aligned = [align_face(photo, face) for face in faces]
    crops = torch.stack([each.crop for each in aligned]).to(pipe.device)
    reasons = contradictions(aligned, pipe.landmarker(crops), pipe.landmarker(crops.flip(3)))
    return sum(not reason for reason in reasons)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.detectors", str(__doc__))
    add = parser.add_argument
    add("--data", default=LFW, help="photos with roles, as for benchmarks.main_job; the gallery's are taken")
    add("--photos", type=at_least(1), default=40)
    add("--detectors", nargs="+", default=["mtcnn"], help="names, as for dedim run --detector")
    add("--weights", help="pipeline folder (default: the bundled one)")
    add("--device", default="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
