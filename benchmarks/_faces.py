"""How protected crops differ from what they were; and people who are nobody in a gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusers_dedim.encoders import Recogniser, embed_faces
from diffusers_dedim.evaluation import Gallery, Probe
from diffusers_dedim.evaluation.crops import crop_probes
from diffusers_dedim.evaluation.rates import impostor_scores
from diffusers_dedim.metrics.quality import mean_ssim, psnr
from diffusers_dedim.metrics.verification import threshold_at_fmr
from diffusers_dedim.training.data import FaceCrops, to_model_range

Pixels = NDArray[np.uint8]
SAME_PERSON_FMR = 1e-5


@dataclass(frozen=True, eq=False)
class Change:
    """How aligned crops ``[112, 112, 3]`` differ from what they were.

    Attributes:
        originals: recogniser name -> embeddings ``[N, D]`` of the crops as they were.
        similarity: recogniser name -> ``[N]`` cosine of each crop with the original.
        psnr: ``[N]`` dB; inf where nothing changed.
        ssim: ``[N]`` mean SSIM.
    """

    originals: dict[str, NDArray[np.float32]]
    similarity: dict[str, NDArray[np.float64]]
    psnr: NDArray[np.float64]
    ssim: NDArray[np.float64]


def to_crops(photos: Sequence[Pixels]) -> Tensor:
    """uint8 crops ``[112, 112, 3]`` -> ``[N, 3, 112, 112]`` in [-1, 1]."""
    return to_model_range(torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2))


def measure_change(
    probes: Sequence[Probe], photos: Sequence[Pixels], recognisers: Sequence[Recogniser]
) -> Change:
    """Compare protected aligned crops with the probes that they were (`crop_probes`)."""
    before, faces = [probe.photo for probe in probes], [probe.face for probe in probes]
    originals = {each.name: embed_faces(each.encoder, before, faces) for each in recognisers}
    similarity = {
        each.name: (originals[each.name] * embed_faces(each.encoder, photos, faces)).sum(1).astype(np.float64)
        for each in recognisers
    }
    pair = (to_crops(before), to_crops(photos))
    return Change(originals, similarity, psnr(*pair).numpy(), mean_ssim(*pair).numpy())


def spread(length: int, count: int) -> NDArray[np.int64]:
    """``count`` places (at most ``length``) evenly spaced over ``length``.

    Example:
        >>> spread(10, 5).tolist()
        [0, 2, 4, 6, 8]
    """
    count = min(count, length)
    return np.arange(count) * length // count


def resembles_gallery(people: Sequence[Probe], judge: Recogniser, gallery: Gallery) -> NDArray[np.bool_]:
    """Whether each face may be somebody in the gallery, by one recogniser, ``[N]``.

    It may if it is as much like a gallery image as one in 100,000 pairs of different gallery people are to each
    other (the most alike pair of a gallery with fewer pairs).
    """
    impostors = impostor_scores(gallery, judge.name)
    limit = threshold_at_fmr(impostors, max(SAME_PERSON_FMR, 1 / len(impostors)))
    ours = embed_faces(judge.encoder, [person.photo for person in people], [person.face for person in people])
    similar: NDArray[np.bool_] = np.nanmax(ours @ gallery.embeddings[judge.name].T, axis=1) >= limit
    return similar


def choose_strangers(
    source: str, count: int, judges: Sequence[Recogniser], gallery: Gallery, seed: int
) -> tuple[list[Probe], int]:
    """Draw ``count`` training faces; give those of nobody in the gallery, and how many resembled somebody there.

    The data names nobody, so the recognisers judge; one of them is enough to leave a face out.
    """
    crops = FaceCrops(source, "train")
    order = np.random.default_rng(seed).permutation(len(crops))[:count]
    people = crop_probes(crops, order.tolist())
    known = np.any([resembles_gallery(people, judge, gallery) for judge in judges], axis=0)
    strangers = [person for person, is_known in zip(people, known, strict=True) if not is_known]
    return strangers, int(known.sum())
