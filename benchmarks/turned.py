"""Faces in photos that are turned by a quarter or half turn and do not say so: who is found, and how well.

    python -m benchmarks.turned --photos 200 --json out/turned.json

Photos with an upright face are turned by 0, 90, 180 and 270 degrees, and searched by MTCNN as it is (``plain``) and at
all quarter turns (``any_turn``, as the pipeline does). The face is ``right`` where its five points
are those of the upright photo, turned; ``wrong`` where other points lie in it; else ``none``. ``refused``: the share of
the right, and of the wrong, that the pipeline leaves alone because its points contradict one another. ``seconds``
are those of a search, per photo.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks._command import LFW, at_least, make_parser, number, run_with_pipeline, say
from diffusers_dedim.evaluation import read_protocol
from diffusers_dedim.evaluation.gallery import central_face
from diffusers_dedim.faces import Face, FaceDetection, FaceDetector, align_face, contradictions, turn_back

_RIGHT, _TOUCHES = 0.15, 0.75  # sizes of the face: mean distance of the points, and of the centres

Pixels = NDArray[np.uint8]


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object; for the arguments see `run_with_pipeline`."""
    run_with_pipeline("benchmarks.turned", _parse, measure_turns, arguments, load_pipeline)


def measure_turns(pipe: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Search each photo at each turn by both ways; returns what the JSON object holds."""
    finders: dict[str, FaceDetection] = {
        "plain": FaceDetector(device=pipe.device),
        "any_turn": FaceDetector(device=pipe.device, any_turn=True),
    }
    counts: Counter[tuple[str, int, str]] = Counter()
    seconds: Counter[tuple[str, int]] = Counter()
    photos = 0
    for record in read_protocol(options.data).gallery[: options.photos]:
        photo = _read(record, options.side)
        upright = central_face(photo, finders["plain"])
        if upright is None:
            continue
        photos += 1
        for name, finder in finders.items():
            _count(pipe, name, finder, photo, upright, counts, seconds)
        say("turned", f"{photos} photos")
    return {
        "photos": photos,
        "turns": {
            str(90 * turn): {name: _row(name, turn, photos, counts, seconds) for name in finders}
            for turn in range(4)
        },
        "data": str(options.data),
    }


def judge(faces: Sequence[Face], upright: Face, turn: int, shape: tuple[int, ...]) -> tuple[str, Face | None]:
    """Whether a face is among those found in the turned photo: "right", "wrong" or "none", and the finding.

    Args:
        faces: found in the turned photo, in its px.
        upright: the face in the photo itself.
        turn: quarter turns against the clock.
        shape: of the photo itself.

    Example:
        >>> judge([], None, 1, (2, 2))
        ('none', None)
    """
    touching = []
    for face in faces:
        points = turn_back(face.landmarks, turn, shape)
        apart = np.linalg.norm(points.mean(axis=0) - upright.landmarks.mean(axis=0)) / upright.size
        error = np.linalg.norm(points - upright.landmarks, axis=1).mean() / upright.size
        if apart < _TOUCHES:
            touching.append((float(error), face))
    if not touching:
        return "none", None
    error, face = min(touching, key=lambda pair: pair[0])
    return ("right" if error < _RIGHT else "wrong"), face


def _count(
    pipe: Any,
    name: str,
    finder: FaceDetection,
    photo: Pixels,
    upright: Face,
    counts: Counter[tuple[str, int, str]],
    seconds: Counter[tuple[str, int]],
) -> None:
    for turn in range(4):
        turned = np.ascontiguousarray(np.rot90(photo, turn))
        begin = time.perf_counter()
        faces = finder(turned)
        seconds[name, turn] += time.perf_counter() - begin  # type: ignore[assignment]
        word, face = judge(faces, upright, turn, photo.shape)
        counts[name, turn, word] += 1
        if face is not None and _is_refused(pipe, turned, face):
            counts[name, turn, f"refused {word}"] += 1


@torch.no_grad()
def _is_refused(pipe: Any, photo: Pixels, face: Face) -> bool:
    aligned = align_face(photo, face)
    crops = aligned.crop[None].to(pipe.device)
    return bool(contradictions([aligned], pipe.landmarker(crops), pipe.landmarker(crops.flip(3)))[0])


def _row(
    name: str,
    turn: int,
    photos: int,
    counts: Counter[tuple[str, int, str]],
    seconds: Counter[tuple[str, int]],
) -> dict[str, Any]:
    row: dict[str, Any] = {word: counts[name, turn, word] for word in ("right", "wrong", "none")}
    row["refused"] = {word: counts[name, turn, f"refused {word}"] for word in ("right", "wrong")}
    return {**row, "seconds": number(seconds[name, turn] / max(1, photos))}


def _read(record: Any, side: int) -> Pixels:
    photo: Pixels = record.read_photo()
    if not side:
        return photo
    scale = side / max(photo.shape[:2])
    size = (round(photo.shape[1] * scale), round(photo.shape[0] * scale))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.turned", str(__doc__))
    add = parser.add_argument
    add("--data", default=LFW, help="photos with roles, as for benchmarks.main_job; the gallery's are taken")
    add("--photos", type=at_least(1), default=200)
    add(
        "--side", type=at_least(0), default=500, help="enlarge photos to this longer side, px; 0: as they are"
    )
    add("--weights", help="pipeline folder (default: the bundled one)")
    add("--device", default="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
