"""Faces that are partly covered, cut off or turned away: what is changed on the cover, and how the rest comes out.

    python -m benchmarks.covers --photos 12 --panel out/covers.png --json out/covers.json
    python -m benchmarks.covers --crops ../shared/data/faces      # to choose limits on

Whole photos get a cover drawn over their face, at the photo's size: dark glasses, a surgical mask, a hand, a bar, a
microphone, hair, a board over half of the face; or they are cut below the nose, or the head is turned away over one
rough shape for all. Nothing here is drawn as the covers that the network learns from.

For each kind: ``faces`` (found), ``changed`` (the rest was left with a reason: too little visible, or points that
contradict one another, and is listed under ``left``), ``cover_changed`` (share of the cover's pixels that differ by
more than 2 levels; wanted: 0), ``cover_largest`` (the largest difference there), ``protected`` (of the changed ones,
how many fell below the threshold) and ``similarity`` (their mean cosine with the original, by the pipeline's own
recogniser). ``plain`` is the same photo without a cover; its ``mask_left`` is the share of the mask that the
visibility network leaves, per face. ``--no-visibility`` measures the pipeline without that network.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks._command import LFW, ROOT, at_least, make_parser, number, run_with_pipeline, say
from diffusers_dedim.evaluation import read_protocol
from diffusers_dedim.evaluation.gallery import central_face
from diffusers_dedim.faces import Face, align_face, estimate_similarity, visible_gate, visible_share
from diffusers_dedim.faces.align import ARCFACE_TEMPLATE, invert
from diffusers_dedim.training.data import FaceCrops
from diffusers_dedim.training.pose import turn_far

Pixels = NDArray[np.uint8]
_LEVELS = 2  # a difference up to this is none
_FINE = 2  # drawn so many times as large
_TILE = 180  # px of the panel


@dataclass(frozen=True, eq=False)
class Case:
    """A photo under a cover.

    Attributes:
        photo: uint8 RGB.
        cover: bool ``[H, W]``, which pixels show the cover.
    """

    photo: Pixels
    cover: NDArray[np.bool_]


Draw = Callable[
    [ImageDraw.ImageDraw, Callable[[Any], list[tuple[float, float]]], float, np.random.Generator], None
]


def _glasses(draw: Any, place: Any, scale: float, rng: np.random.Generator) -> None:
    for x in (38, 73):
        draw.rounded_rectangle(place([(x - 15, 43), (x + 15, 64)]), radius=6 * scale, fill=(18, 16, 20))
    draw.line(place([(50, 50), (62, 50)]), fill=(18, 16, 20), width=round(3 * scale))
    for ends in ([(24, 48), (8, 46)], [(87, 48), (104, 46)]):
        draw.line(place(ends), fill=(18, 16, 20), width=round(3 * scale))


def _mask(draw: Any, place: Any, scale: float, rng: np.random.Generator) -> None:
    outline = [
        (18, 72),
        (40, 66),
        (56, 62),
        (72, 66),
        (94, 72),
        (90, 98),
        (76, 116),
        (56, 122),
        (36, 116),
        (22, 98),
    ]
    draw.polygon(place(outline), fill=(168, 205, 226))
    for row in (78, 88, 98, 108):
        draw.line(place([(24, row), (56, row + 3), (88, row)]), fill=(146, 186, 210), width=round(scale))


def _hand(draw: Any, place: Any, scale: float, rng: np.random.Generator) -> None:
    skin = (206, 158, 132)
    for finger in range(4):
        x, top = 30 + 11 * finger, 70 + 5 * abs(finger - 1)
        draw.line(place([(x, top), (x + 14, 150)]), fill=(176, 126, 102), width=round(11.5 * scale))
        draw.line(place([(x, top), (x + 14, 150)]), fill=skin, width=round(9.5 * scale))
        draw.ellipse(place([(x - 5, top - 5), (x + 5, top + 5)]), fill=skin)


def _bar(draw: Any, place: Any, scale: float, rng: np.random.Generator) -> None:
    draw.polygon(place([(12, 42), (100, 42), (100, 62), (12, 62)]), fill=(0, 0, 0))


def _microphone(draw: Any, place: Any, scale: float, rng: np.random.Generator) -> None:
    draw.line(place([(62, 96), (92, 180)]), fill=(30, 30, 32), width=round(9 * scale))
    draw.ellipse(place([(50, 82), (76, 108)]), fill=(70, 70, 74))
    for step in range(53, 76, 4):
        draw.line(place([(step, 84), (step, 106)]), fill=(40, 40, 44), width=round(scale))


def _hair(draw: Any, place: Any, scale: float, rng: np.random.Generator) -> None:
    for _ in range(45):
        start, bend, end = (rng.normal(middle, (9, 5)) for middle in ((30, -6), (24, 40), (38, 84)))
        way = [(1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end for t in np.linspace(0, 1, 9)]
        shade = int(rng.integers(0, 30))
        draw.line(place(way), fill=(38 + shade, 26 + shade, 18 + shade), width=round(2.5 * scale))


def _board(draw: Any, place: Any, scale: float, rng: np.random.Generator) -> None:
    draw.polygon(place([(58, -90), (260, -90), (260, 220), (50, 220)]), fill=(44, 40, 38))


KINDS: dict[str, Draw] = {
    "glasses": _glasses,
    "mask": _mask,
    "hand": _hand,
    "bar": _bar,
    "microphone": _microphone,
    "hair": _hair,
    "half": _board,
}
OTHERS = ("edge", "profile")


def make_case(kind: str, photo: Pixels, face: Face, seed: int) -> Case:
    """Cover, cut or turn a photo.

    Args:
        kind: of `KINDS` or `OTHERS`, or "plain".
        photo: uint8 RGB.
        face: in it.
        seed: of what is drawn.
    """
    nothing = np.zeros(photo.shape[:2], dtype=bool)
    if kind == "plain":
        return Case(photo, nothing)
    if kind == "edge":
        below = int(face.landmarks[2, 1] + 0.1 * face.size)
        return Case(photo[:below].copy(), nothing[:below])
    if kind == "profile":
        return _turn(photo, face, seed)
    return _cover(KINDS[kind], photo, face, seed)


def _cover(draw: Draw, photo: Pixels, face: Face, seed: int) -> Case:
    to_photo = invert(estimate_similarity(face.landmarks, ARCFACE_TEMPLATE))
    layer = Image.new("RGBA", (photo.shape[1] * _FINE, photo.shape[0] * _FINE))

    def place(points: Any) -> list[tuple[float, float]]:
        mapped = (np.asarray(points, dtype=float) @ to_photo[:, :2].T + to_photo[:, 2] + 0.5) * _FINE
        return [(float(x), float(y)) for x, y in mapped]

    scale = float(np.hypot(to_photo[0, 0], to_photo[1, 0])) * _FINE
    draw(ImageDraw.Draw(layer), place, scale, np.random.default_rng(seed))
    drawn = np.asarray(layer.reduce(_FINE), dtype=np.float64)
    alpha = drawn[..., 3:] / 255
    covered = photo * (1 - alpha) + drawn[..., :3] * alpha
    return Case(covered.round().astype(np.uint8), alpha[..., 0] > 0.5)


def _turn(photo: Pixels, face: Face, seed: int) -> Case:
    """The crop with its head turned far to a side, enlarged; its background is what counts as the cover."""
    crop = (align_face(photo, face).crop[None] + 1) * 127.5
    inside = torch.ones(1, 1, 112, 112)
    layers = torch.cat([crop, inside, inside], 1)
    grey = torch.full((1, 3, 112, 112), 120.0) + torch.linspace(-30, 30, 112)
    # of several draws the one whose background is replaced: it shows where the head ends
    for draw in range(seed, seed + 20):
        turned = turn_far(layers, grey, torch.Generator().manual_seed(draw))[0]
        if bool((turned[3] == 0).any()):
            break
    pixels = turned[:3].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    large = np.asarray(Image.fromarray(pixels).resize((336, 336), Image.Resampling.BICUBIC))
    cover = np.asarray(Image.fromarray((turned[3] == 0).numpy()).resize((336, 336)))
    return Case(large, cover)


def main(arguments: Sequence[str] | None = None, load_pipeline: Callable[[], Any] | None = None) -> None:
    """Run the benchmark and print its JSON object; for the arguments see `run_with_pipeline`."""
    run_with_pipeline("benchmarks.covers", _parse, measure_covers, arguments, load_pipeline)


def measure_covers(pipe: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Make the cases, protect them, measure and show; returns what the JSON object holds."""
    if options.no_visibility:
        pipe.visibility = None
    photos = []
    for plain in _crops(options) if options.crops else _gallery(options):
        photo = _enlarged(plain, options.side)
        face = central_face(photo, pipe.face_detector)
        if face is not None:
            photos.append((photo, face))
        if len(photos) == options.photos:
            break
    kinds = options.kinds or ["plain", *KINDS, *OTHERS]
    results, tiles = {}, []
    for kind in kinds:
        cases = [make_case(kind, photo, face, seed) for seed, (photo, face) in enumerate(photos)]
        results[kind], row = _measure(pipe, kind, cases, options)
        tiles.append(row)
        say("covers", f"{kind}: {results[kind]}")
    if options.panel:
        options.panel.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(tiles)).save(options.panel)
    return {
        "photos": len(photos),
        "levels": _LEVELS,
        "kinds": results,
        "visibility": pipe.visibility is not None,
        "preset": options.preset,
        "data": str(options.crops or options.data),
    }


def _gallery(options: argparse.Namespace) -> Iterator[Pixels]:
    return (record.read_photo() for record in read_protocol(options.data).gallery)


def _crops(options: argparse.Namespace) -> Iterator[Pixels]:
    """Faces of a validation split, from all over it."""
    crops = FaceCrops(options.crops, "val")
    for index in torch.randperm(len(crops), generator=torch.Generator().manual_seed(0)).tolist():
        yield crops[index]["image"].permute(1, 2, 0).numpy()


def _measure(
    pipe: Any, kind: str, cases: Sequence[Case], options: argparse.Namespace
) -> tuple[dict[str, Any], Pixels]:
    """The row of a kind, and its tiles: covered photos, and below them what became of them."""
    changed, largest, similarities, protected, left, found, tiles = [], [], [], 0, [], 0, []
    mask_left: list[float] = []
    for number_, case in enumerate(cases):
        faces, pixels = _protect(pipe, case.photo, options, number_)
        found += bool(faces)
        difference = np.abs(pixels.astype(int) - case.photo).max(axis=2)[case.cover]
        done = [face for face in faces if face.treatment == "changed"]
        left += [face.reason for face in faces if face.treatment != "changed"]
        if done:
            changed.append(float((difference > _LEVELS).mean()) if difference.size else 0.0)
            largest.append(int(difference.max()) if difference.size else 0)
            similarities += [face.similarity for face in done]
            protected += all(face.reached_threshold for face in done)
        if kind == "plain":
            mask_left += _mask_left(pipe, case.photo)
        tiles.append(np.concatenate([_tile(case.photo, options), _tile(pixels, options)]))
    row: dict[str, Any] = {
        "faces": found,
        "changed": len(changed),
        "left": {reason: left.count(reason) for reason in sorted(set(left))},
        "cover_changed": number(float(np.mean(changed)), 5) if changed else None,
        "cover_largest": max(largest, default=None),
        "protected": protected,
        "similarity": number(float(np.mean(similarities))) if similarities else None,
    }
    if mask_left:
        row["mask_left"] = {
            "mean": number(float(np.mean(mask_left))),
            "lowest": number(min(mask_left)),
            "whole": number(float(np.mean([share > 0.9999 for share in mask_left]))),
        }
    return row, np.concatenate(tiles, axis=1)


def _protect(pipe: Any, photo: Pixels, options: argparse.Namespace, seed: int) -> tuple[list[Any], Pixels]:
    """The records of a photo's faces, and its pixels afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        generator = torch.Generator().manual_seed(seed)
        # others who are covered too much stay as they are: a blur of theirs may reach over the cover
        (result,) = pipe.stream(
            [photo], preset=options.preset, generator=generator, small_faces="skip", fallback="leave-out"
        )
    return list(result.faces), result.pixels


@torch.no_grad()
def _mask_left(pipe: Any, photo: Pixels) -> list[float]:
    """Share of each face's mask that is visible."""
    if pipe.visibility is None:
        return []
    crops = torch.stack([align_face(photo, face).crop for face in pipe.face_detector(photo)]).to(pipe.device)
    points = pipe.landmarker(crops)
    from diffusers_dedim.pipeline.presets import PRESETS

    mask = PRESETS["fast"].make_mask(points)
    shares: list[float] = visible_share(mask, visible_gate(pipe.visibility(crops), points).to(mask)).tolist()
    return shares


def _tile(photo: Pixels, options: argparse.Namespace) -> Pixels:
    if not options.panel:
        return np.zeros((1, 1, 3), dtype=np.uint8)
    side = min(photo.shape[:2])
    top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
    square = Image.fromarray(photo[top : top + side, left : left + side])
    return np.asarray(square.resize((_TILE, _TILE), Image.Resampling.LANCZOS))


def _enlarged(photo: Pixels, side: int) -> Pixels:
    scale = side / max(photo.shape[:2])
    size = (round(photo.shape[1] * scale), round(photo.shape[0] * scale))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = make_parser("benchmarks.covers", str(__doc__))
    add = parser.add_argument
    add("--data", default=LFW, help="photos with roles, as for benchmarks.main_job; the gallery's are taken")
    add("--crops", help="aligned faces in their place: a folder or data set with a validation split")
    add("--photos", type=at_least(1), default=12)
    add("--side", type=at_least(100), default=400, help="longer side that photos are brought to, px")
    add("--kinds", nargs="+", choices=["plain", *KINDS, *OTHERS], help="default: all")
    add("--preset", default="fast")
    add("--no-visibility", action="store_true", help="take all for visible")
    add(
        "--panel",
        type=Path,
        default=ROOT / "out" / "covers.png",
        help="picture of all cases, before and after",
    )
    add("--weights", help="pipeline folder (default: the bundled one)")
    add("--device", default="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
