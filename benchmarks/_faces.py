"""Aligned crops for photos, protected once and kept; and people who are nobody in a gallery."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from diffusers_dedim.encoders import Recogniser, embed_faces
from diffusers_dedim.evaluation import ArrayCache, Gallery, Probe
from diffusers_dedim.evaluation.measure import method_code
from diffusers_dedim.evaluation.methods import make_method
from diffusers_dedim.evaluation.pieces import join_arrays, protect_chunk, restore_photos, split_probes
from diffusers_dedim.evaluation.rates import impostor_scores
from diffusers_dedim.faces import whole_crop
from diffusers_dedim.metrics.quality import mean_ssim, psnr
from diffusers_dedim.metrics.verification import threshold_at_fmr
from diffusers_dedim.training.data import FaceCrops, to_model_range

Pixels = NDArray[np.uint8]
SAME_PERSON_FMR = 1e-5


@dataclass(frozen=True, eq=False)
class Protected:
    """What the pipeline made of photos.

    Attributes:
        photos: one for each given, uint8 RGB.
        reached: per face, whether it reached the threshold; with aligned crops one a photo.
        seconds: time spent protecting, when it was done.
    """

    photos: tuple[Pixels, ...]
    reached: NDArray[np.bool_]
    seconds: float


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


def crop_probes(crops: FaceCrops, rows: Sequence[int]) -> list[Probe]:
    """Take aligned crops for photos of as many people, so that everything made for probes serves them."""
    probes = []
    for row in rows:
        pixels: Pixels = crops[int(row)]["image"].permute(1, 2, 0).contiguous().numpy()
        probes.append(Probe(str(row), pixels, whole_crop(pixels).face))
    return probes


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


def protect_once(
    pipe: Any,
    probes: Sequence[Probe],
    cache: ArrayCache,
    *,
    method: str,
    seed: int,
    batch_size: int,
    aligned: bool = False,
    targets: Tensor | None = None,
) -> Protected:
    """Protect photos, or take what an earlier run of the same code, weights, seed and photos left in the cache.

    Each call's photos are kept on their own (`protect_chunk`): a run that is killed goes on where it was.

    Args:
        pipe: a `DeDiMPipeline`.
        probes: whose photos to protect.
        cache: where the result is kept.
        method: a name for `make_method`, such as "dedim:fast".
        seed: of the method.
        batch_size: photos a call.
        aligned: the photos are aligned crops; nothing is detected, as with the pipeline's ``aligned=True``.
        targets: for TIP-IM, see `make_method`.
    """

    def make(first: int) -> Any:
        return make_method(method, pipe, seed=seed, first=first, targets=targets)

    identity = _identity(pipe, targets, method, seed, aligned)
    photos, pieces = list[Pixels](), []
    with whole_crops(pipe) if aligned else contextlib.nullcontext():
        for chunk in tqdm(list(split_probes(probes, batch_size)), desc=method):
            pieces.append(protect_chunk(make, chunk, identity, cache))
            photos += restore_photos(chunk, pieces[-1])
    reached = join_arrays(pieces, "effort")[:, -1] == 1  # its columns: rounds, calls, reached the threshold
    return Protected(tuple(photos), reached, float(join_arrays(pieces, "seconds").sum()))


def _identity(pipe: Any, targets: Tensor | None, *settings: object) -> str:
    """Everything that decides what a method makes of a photo, as part of the cache's key."""
    parts = (pipe.unet, pipe.face_encoder, pipe.landmarker)
    weights = [Recogniser.of("part", part).fingerprint for part in parts]
    others = "" if targets is None else hashlib.sha256(targets.numpy().tobytes()).hexdigest()
    device = torch.device(getattr(pipe, "device", "cpu")).type
    scheduler = str(getattr(pipe, "scheduler", ""))
    return str([*settings, *weights, others, device, scheduler, torch.__version__, method_code()])


@contextlib.contextmanager
def whole_crops(pipe: Any) -> Iterator[None]:
    """Let every method that asks the pipeline's detector take a crop for the face that it is."""
    detector, pipe.face_detector = pipe.face_detector, lambda photo: [whole_crop(photo).face]
    try:
        yield
    finally:
        pipe.face_detector = detector
