"""The panel of a run: probes, or photos that may be shown, after every method, with their ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.evaluation.evaluate import Evaluator
from diffusers_dedim.evaluation.gallery import Detector, Gallery, central_face, same_face
from diffusers_dedim.evaluation.panel import make_rank_panel
from diffusers_dedim.evaluation.probes import Probe, search_gallery
from diffusers_dedim.evaluation.protocol import Record
from diffusers_dedim.evaluation.recogniser import Recogniser, embed_faces
from diffusers_dedim.evaluation.retrieval import genuine_ranks
from diffusers_dedim.evaluation.schema import MethodEntry
from diffusers_dedim.faces import MIN_FACE_SIZE, align_face

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


def read_shown(records: Sequence[Record], detector: Detector) -> list[Probe]:
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


def _note(entry: MethodEntry) -> str:
    """What finds the row's points in the trade-off figures."""
    ssim = "" if entry.ssim.value is None else f"mean SSIM {entry.ssim.value:.3f}\n"
    return ssim + (f"{entry.unet_calls:.0f} UNet calls" if entry.unet_calls else "")


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
