"""Aligned crops of people who are at hand, protected once and kept: what an attacker learns from."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from diffusers_dedim.atomic import write_atomic
from diffusers_dedim.encoders.recogniser import Recogniser
from diffusers_dedim.evaluation.cache import ArrayCache
from diffusers_dedim.evaluation.measure import method_code
from diffusers_dedim.evaluation.methods import make_method, takes_targets
from diffusers_dedim.evaluation.pieces import join_arrays, protect_chunk, restore_photos, split_probes
from diffusers_dedim.evaluation.probes import Probe
from diffusers_dedim.extras import import_extra
from diffusers_dedim.faces import whole_crop
from diffusers_dedim.images.modes import PixelArray
from diffusers_dedim.training.data import FaceCrops
from diffusers_dedim.training.pairs import PAIR_PARTS


@dataclass(frozen=True, eq=False)
class Protected:
    """What the pipeline made of photos.

    Attributes:
        photos: one for each given, uint8 RGB.
        reached: per face, whether it reached the threshold; with aligned crops one a photo.
        seconds: time spent protecting, when it was done.
    """

    photos: tuple[PixelArray, ...]
    reached: NDArray[np.bool_]
    seconds: float


def crop_probes(crops: FaceCrops, rows: Sequence[int]) -> list[Probe]:
    """Take aligned crops for photos of as many people, so that everything made for probes serves them."""
    probes = []
    for row in rows:
        pixels: PixelArray = crops[int(row)]["image"].permute(1, 2, 0).contiguous().numpy()
        probes.append(Probe(str(row), pixels, whole_crop(pixels).face))
    return probes


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
    make: Callable[..., Any] | None = None,
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
        make: instead of `make_method`, called alike; what it makes must follow from ``method`` and ``seed``.
    """

    def begin(first: int) -> Any:
        return (make or make_method)(method, pipe, seed=seed, first=first, targets=targets)

    identity = _identity(pipe, targets, method, seed, aligned)
    photos, pieces = list[PixelArray](), []
    with whole_crops(pipe) if aligned else contextlib.nullcontext():
        for chunk in tqdm(list(split_probes(probes, batch_size)), desc=method):
            pieces.append(protect_chunk(begin, chunk, identity, cache))
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


def make_pairs(pipe: Any, data: str, folder: Path, *, count: int, method: str, seed: int = 0) -> Path:
    """Protect faces of strangers, to train on: two files of crops, row by row the same faces.

    What was protected before a kill is kept below the folder, and not protected again.

    Args:
        pipe: a `DeDiMPipeline`.
        data: aligned crops with a part "train" (`FaceCrops`), of nobody who is measured on.
        folder: for ``protected.parquet`` and ``original.parquet``, one column ``image`` each.
        count: faces, drawn by the seed; all of them where there are fewer.
        method: a name for `make_method` that needs no targets, such as "dedim:fast".
        seed: of the draw and of the method.

    Returns:
        The folder.

    Raises:
        ValueError: the method needs targets, or the data holds nothing of use.
    """
    if takes_targets(method):
        raise ValueError(
            f"method: {method!r} needs target people; expected one that needs none, such as 'dedim:fast'."
        )
    crops = FaceCrops(data, "train")
    order = np.random.default_rng(seed).permutation(len(crops))[:count]
    people = crop_probes(crops, order.tolist())
    cache = ArrayCache(folder / "pieces")
    done = protect_once(pipe, people, cache, method=method, seed=seed, batch_size=8, aligned=True)
    for part, photos in zip(PAIR_PARTS, (done.photos, [person.photo for person in people]), strict=True):
        _write_crops(folder / f"{part}.parquet", photos)
    return folder


def _write_crops(path: Path, photos: Sequence[PixelArray]) -> None:
    """A parquet file of images that `FaceCrops` reads, written aside and renamed."""
    arrow = import_extra("pyarrow", "a folder of pairs", 'pip install "diffusers-dedim[train]"')
    parquet = import_extra("pyarrow.parquet", "a folder of pairs", 'pip install "diffusers-dedim[train]"')
    rows = []
    for photo in photos:
        file = io.BytesIO()
        Image.fromarray(photo).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    content = io.BytesIO()
    parquet.write_table(arrow.table({"image": rows}), content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, content.getvalue())
