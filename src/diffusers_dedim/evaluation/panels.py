"""The panel of a run: probes, or photos that may be shown, after every method, with their ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffusers_dedim.encoders.recogniser import Recogniser, embed_faces
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.evaluation.data import Record
from diffusers_dedim.evaluation.gallery import Gallery, central_face, same_face
from diffusers_dedim.evaluation.measure import Evaluator
from diffusers_dedim.evaluation.probes import Probe, search_gallery
from diffusers_dedim.evaluation.results import MethodEntry
from diffusers_dedim.faces import MIN_FACE_SIZE, FaceDetection, align_face
from diffusers_dedim.metrics.retrieval import genuine_ranks

_ZOOM = 2
_LABEL_HEIGHT = 18
_GAP = 12
_NAME_WIDTH = 130

PANEL_FACES = 6


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture in the manner of the paper's Fig. 4.

    Attributes:
        image: one row a method, one column a face.
        recogniser: whose ranks stand below.
        of_probes: whether faces of the data set are on it, which must not be shared.
    """

    image: Image.Image
    recogniser: str
    of_probes: bool


def draw_panel(evaluator: Evaluator, measured: Sequence[MethodEntry], shown: Sequence[Probe] = ()) -> Panel:
    """Protect and search for the panel's faces; ranks are the first black box's, or the white box's without one.

    The rank of a probe is that of its person's gallery photo. A shown photo has none: its own *unprotected* self is
    put among the gallery, which is the easiest case for who searches.

    Args:
        evaluator: its first probes are drawn unless photos are shown.
        measured: what the methods did to all probes, noted below their names.
        shown: from `read_shown`.
    """
    bench = evaluator.bench
    recogniser = bench.recognisers[min(1, len(bench.recognisers) - 1)]
    drawn = replace(evaluator, probes=shown) if shown else evaluator
    probes = list(drawn.probes[: len(shown) or PANEL_FACES])
    gallery = _with_originals(bench.gallery, probes, recogniser) if shown else bench.gallery
    rows, ranks = {}, {}
    for method in evaluator.settings.methods:
        photos = drawn.photos(method, len(probes))
        pairs = list(zip(probes, photos, strict=True))
        rows[method] = torch.stack([align_face(photo, probe.face).crop for probe, photo in pairs])
        faces = [same_face(photo, probe.face, bench.detector) or probe.face for probe, photo in pairs]
        ranks[method] = _ranks(probes, photos, faces, gallery, recogniser)
    notes = {entry.method: _note(entry) for entry in measured}
    return Panel(make_rank_panel(rows, ranks, notes), recogniser.name, not shown)


def read_shown(records: Sequence[Record], detector: FaceDetection) -> list[Probe]:
    """Photos that may be shown, as probes; told at once where one cannot serve.

    Args:
        records: the photos.
        detector: photo -> faces; the central one is meant.

    Raises:
        UnreadablePhotoError: a photo cannot be decoded.
        DeDiMError: its central face is missing or too small to be protected.
    """
    shown = []
    for index, record in enumerate(records):
        photo = record.read_photo()
        face = central_face(photo, detector)
        if face is None or face.size < MIN_FACE_SIZE:
            raise DeDiMError(
                f"panel: expected a face of {MIN_FACE_SIZE} px or more in the middle of {record.name}, "
                f"got {'none' if face is None else f'{face.size:.0f} px'}; give another photo."
            )
        shown.append(
            Probe(f"shown {index}", photo, face, record.name)
        )  # nobody of the gallery has such a name
    return shown


def make_panel(
    before: Tensor, after: Tensor, labels: Sequence[str], *, columns: int = 2, difference_gain: float = 8.0
) -> Image.Image:
    """Draw before, after and difference of each face side by side, twice enlarged.

    Args:
        before: ``[N, 3, H, W]`` RGB in [-1, 1].
        after: the same shape and range.
        labels: one line of text under each face.
        columns: faces in a row of the picture.
        difference_gain: grey levels shown, around middle grey, for each grey level of change.

    Raises:
        ValueError: there are no faces, or shapes and labels disagree.
    """
    if len(before) == 0 or before.shape != after.shape or len(labels) != len(before):
        raise ValueError(
            f"before, after, labels: expected N > 0 faces of one shape and N labels, "
            f"got {list(before.shape)}, {list(after.shape)} and {len(labels)}."
        )
    height, width = (_ZOOM * side for side in before.shape[2:])
    cell_width, cell_height = 3 * width + _GAP, height + _LABEL_HEIGHT
    rows = -(-len(before) // columns)
    panel = Image.new("RGB", (columns * cell_width - _GAP, rows * cell_height), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default(12)
    for index, label in enumerate(labels):
        x, y = index % columns * cell_width, index // columns * cell_height
        original, changed = _to_levels(before[index]), _to_levels(after[index])
        difference = 127.5 + difference_gain * (changed - original)
        for place, levels in enumerate((original, changed, difference)):
            panel.paste(_enlarge(levels), (x + place * width, y))
        draw.text((x + 2, y + height + 2), label, fill="black", font=font)
    return panel


def make_rank_panel(
    rows: Mapping[str, Tensor], ranks: Mapping[str, Sequence[int]], notes: Mapping[str, str] | None = None
) -> Image.Image:
    """Draw the paper's Fig. 4: one row a method, one column a face, its rank in the search under each image.

    Args:
        rows: method -> ``[N, 3, H, W]`` RGB in [-1, 1], the same faces in every row.
        ranks: method -> ``[N]``, 1 = found first.
        notes: method -> lines of text below its name.

    Raises:
        ValueError: there are no faces, or the rows and ranks disagree.
    """
    shapes = {tuple(crops.shape) for crops in rows.values()}
    counts = {name: len(numbers) for name, numbers in ranks.items()}
    if len(shapes) != 1 or 0 in (shape := shapes.pop()) or counts != dict.fromkeys(rows, shape[0]):
        raise ValueError(
            "rows, ranks: expected the same N > 0 faces and N ranks for every method, got "
            f"{ {name: list(crops.shape) for name, crops in rows.items()} } and {counts}."
        )
    height, width = (_ZOOM * side for side in shape[2:])
    cell = height + _LABEL_HEIGHT + _GAP
    font = ImageFont.load_default(14)
    names = {method: f"{method}\n{(notes or {}).get(method, '')}" for method in rows}
    lines = "\n".join(names.values()).splitlines()
    left = max(_NAME_WIDTH, *(round(font.getlength(line)) + _GAP for line in lines))
    panel = Image.new("RGB", (left + shape[0] * (width + _GAP) - _GAP, len(rows) * cell), "white")
    draw = ImageDraw.Draw(panel)
    for row, (method, crops) in enumerate(rows.items()):
        draw.text((2, row * cell + height // 2), names[method], "black", font)
        for column, (crop, rank) in enumerate(zip(crops, ranks[method], strict=True)):
            x = left + column * (width + _GAP)
            panel.paste(_enlarge(_to_levels(crop)), (x, row * cell))
            draw.text((x + width / 2, row * cell + height + 1), str(rank), "black", font, anchor="ma")
    return panel


def _ranks(
    probes: Sequence[Probe],
    photos: Sequence[Any],
    faces: Sequence[Any],
    gallery: Gallery,
    recogniser: Recogniser,
) -> list[int]:
    scores = search_gallery(probes, photos, faces, gallery, [recogniser])[recogniser.name]
    ranks: list[int] = genuine_ranks(scores, [probe.person for probe in probes], gallery.persons).tolist()
    return ranks


def _with_originals(gallery: Gallery, probes: Sequence[Probe], recogniser: Recogniser) -> Gallery:
    """The gallery with the unprotected photos themselves in it, for one recogniser."""
    originals = embed_faces(recogniser.encoder, [p.photo for p in probes], [p.face for p in probes])
    everybody = np.concatenate([gallery.embeddings[recogniser.name], originals])
    persons = (*gallery.persons, *(probe.person for probe in probes))
    return Gallery(persons, {recogniser.name: everybody}, gallery.undetected)


def _note(entry: MethodEntry) -> str:
    """What finds the row's points in the trade-off figures."""
    ssim = "" if entry.ssim.value is None else f"mean SSIM {entry.ssim.value:.3f}\n"
    return ssim + (f"{entry.unet_calls:.0f} UNet calls" if entry.unet_calls else "")


def _to_levels(crop: Tensor) -> NDArray[np.float64]:
    levels: NDArray[np.float64] = ((crop.detach().cpu().double() + 1) * 127.5).permute(1, 2, 0).numpy()
    return levels


def _enlarge(levels: NDArray[np.float64]) -> Image.Image:
    image = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    return image.resize((_ZOOM * image.width, _ZOOM * image.height), Image.Resampling.LANCZOS)
