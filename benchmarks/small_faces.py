"""Does anybody find a face that was covered instead of changed? LFW's people, 16 to 39 px tall, or larger.

    python -m benchmarks.small_faces --probes 100

Each probe is shrunk until its face's box has the size, and the face is covered (`faces.cover_face`). Who searches is
helped: the face is framed by the points it had, though no detector may find it any more. Standard output holds the
JSON object alone: for each size and cover, ``rank1`` (share of faces whose person comes first in the gallery, ties to
the searcher), ``matched`` (share above the line that one in a thousand pairs of strangers in the gallery reach) and
``detected`` (share that the detector still finds). "none" is the shrunken face as it is; "beside" is blurred as if a
larger face stood in front, up to its very middle, where nobody does: the most of itself that a face half behind
somebody may keep. The panel shows faces of the data set: keep it out of git.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks._command import (
    BLACK_BOXES,
    LFW,
    ROOT,
    add_black_boxes,
    at_least,
    make_parser,
    number,
    read_people,
    run_benchmark,
    say,
)
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.evaluation import Gallery, Probe, search_gallery
from diffusers_dedim.evaluation.gallery import same_face
from diffusers_dedim.evaluation.rates import impostor_scores
from diffusers_dedim.faces import Face, FaceDetector
from diffusers_dedim.faces.cover import COVERS, cover_face
from diffusers_dedim.faces.find import FaceDetection
from diffusers_dedim.metrics.retrieval import rank_k_rate
from diffusers_dedim.metrics.verification import threshold_at_fmr

Pixels = NDArray[np.uint8]
WAYS = ("none", *COVERS, "beside")
# A face that stands in front is so much larger, and so many widths beside: it just does not hold the middle.
FRONT_SIZE, FRONT_BESIDE = 1.15, 0.7
FMR = 1e-3
PANEL_FACES, PANEL_SIDE = 12, 120


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object; for the arguments see `run_benchmark`."""
    run_benchmark("benchmarks.small_faces", _parse, run_small_faces, arguments, load_pipeline)


def run_small_faces(_: Any, recognisers: Sequence[Recogniser], options: argparse.Namespace) -> dict[str, Any]:
    """Shrink, cover and search; writes the panel and returns what the JSON object holds."""
    detector = FaceDetector(16, options.device)
    probes, gallery = read_people(options, recognisers, FaceDetector(device=options.device))
    lines = {
        each.name: threshold_at_fmr(impostor_scores(gallery, each.name), max(FMR, 1 / _pairs(gallery)))
        for each in recognisers
    }
    sizes: dict[str, Any] = {}
    rows: list[list[Pixels]] = []
    for size in options.sizes:
        small = [shrink(probe, size) for probe in probes]
        photos = {way: [_cover(probe, way) for probe in small] for way in WAYS}
        sizes[str(size)] = {
            way: _measure(small, covered, gallery, recognisers, lines, detector)
            for way, covered in photos.items()
        }
        say("benchmarks.small_faces", f"{size} px: {sizes[str(size)]}")
        rows += [[_show(photos[way][index], small[index].face) for way in WAYS] for index in (0, 1)]
    write_panel(rows[:PANEL_FACES], options.panel)
    return {
        "probes": len(probes),
        "gallery": len(gallery.persons),
        "sizes": sizes,
        "panel": str(options.panel),
    }


def shrink(probe: Probe, size: float) -> Probe:
    """The probe, so small that its face's box has the size, px.

    Raises:
        ValueError: the face is smaller already.
    """
    scale = size / probe.face.size
    if scale > 1:
        raise ValueError(f"size: expected at most the face's {probe.face.size:.0f} px, got {size}.")
    height, width = probe.photo.shape[:2]
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    photo = np.asarray(Image.fromarray(probe.photo).resize(shape, Image.Resampling.LANCZOS))
    factors = np.array(shape) / (width, height)
    x0, y0, x1, y1 = ((np.array(probe.face.box).reshape(2, 2) + 0.5) * factors - 0.5).ravel().tolist()
    face = Face((x0, y0, x1, y1), (probe.face.landmarks + 0.5) * factors - 0.5, probe.face.confidence)
    return replace(probe, photo=photo, face=face)


def _cover(probe: Probe, way: str) -> Pixels:
    if way == "none":
        return probe.photo
    if way == "beside":
        return cover_face(probe.photo, probe.face, "blur", [in_front(probe.face)])
    return cover_face(probe.photo, probe.face, way)  # type: ignore[arg-type]


def in_front(face: Face) -> Face:
    """A larger face whose edge goes through the middle of this one."""
    corners = np.array(face.box).reshape(2, 2)
    middle = corners.mean(axis=0)
    shift = middle + np.array([FRONT_BESIDE * (corners[1, 0] - corners[0, 0]), 0.0])
    (left, top), (right, bottom) = ((corners - middle) * FRONT_SIZE + shift).tolist()
    return replace(
        face, box=(left, top, right, bottom), landmarks=(face.landmarks - middle) * FRONT_SIZE + shift
    )


def _measure(
    probes: Sequence[Probe],
    photos: Sequence[Pixels],
    gallery: Gallery,
    recognisers: Sequence[Recogniser],
    lines: dict[str, float],
    detector: FaceDetection,
) -> dict[str, Any]:
    persons = [probe.person for probe in probes]
    scores = search_gallery(probes, photos, [probe.face for probe in probes], gallery, recognisers)
    own = np.array(persons)[:, None] == np.array(gallery.persons)[None]
    found = [
        same_face(photo, probe.face, detector) is not None
        for photo, probe in zip(photos, probes, strict=True)
    ]
    return {
        "rank1": {name: number(rank_k_rate(each, persons, gallery.persons)) for name, each in scores.items()},
        "matched": {
            name: number((np.where(own, each, -np.inf).max(axis=1) >= lines[name]).mean())
            for name, each in scores.items()
        },
        "detected": number(np.mean(found)),
    }


def _pairs(gallery: Gallery) -> int:
    return max(1, len(gallery.persons) * (len(gallery.persons) - 1) // 2)


def _show(photo: Pixels, face: Face) -> Pixels:
    """The face with its surroundings, enlarged without smoothing."""
    x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    box = round(x - face.size), round(y - face.size), round(x + face.size), round(y + face.size)
    shown = Image.fromarray(photo).crop(box).resize((PANEL_SIDE, PANEL_SIDE), Image.Resampling.NEAREST)
    return np.asarray(shown)


def write_panel(rows: Sequence[Sequence[Pixels]], path: Path) -> None:
    """Draw a row for each face: as it is, blurred, pixelated, blurred beside another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows])).save(path)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.small_faces", __doc__)
    add = parser.add_argument
    add("--probes", type=int, default=100, help="first N probes of the data (default 100)")
    add("--sizes", type=at_least(8), nargs="+", default=[16, 20, 24, 32, 39], help="of the face's box, px")
    add("--data", type=Path, default=LFW, help="parquet or folder")
    add("--weights", type=Path, help="pipeline folder (default: the weights inside the package)")
    add("--panel", type=Path, default=ROOT / "out" / "small_faces_panel.png", help="before/after picture")
    add("--device", default="cpu")
    add_black_boxes(add, BLACK_BOXES, nargs="+", kept="gallery embeddings")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
