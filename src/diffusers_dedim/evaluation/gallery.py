"""Faces of the experiment's photos and the gallery's embeddings, each worked out once."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import box_iou
from tqdm.auto import tqdm

from diffusers_dedim.encoders.recogniser import Recogniser, embed_faces
from diffusers_dedim.encoders.types import PhotoEncoder
from diffusers_dedim.evaluation.cache import ArrayCache, Arrays
from diffusers_dedim.evaluation.data import Record, hash_records
from diffusers_dedim.faces import Face, FaceDetection, align, detect, turned
from diffusers_dedim.images.modes import PixelArray

SAME_FACE_IOU = 0.3
_CHUNK = 50  # photos decoded at a time: bounds memory whatever the gallery's size


@dataclass(frozen=True)
class Gallery:
    """What an attacker has: embeddings of known people.

    Attributes:
        persons: identity of each gallery image.
        embeddings: recogniser name -> ``[G, D]`` float32 unit vectors; nan where no face was found.
        undetected: gallery images in which no face was found; they are never matched.
    """

    persons: tuple[str, ...]
    embeddings: dict[str, NDArray[np.float32]]
    undetected: int


def central_face(photo: PixelArray, detector: FaceDetection) -> Face | None:
    """The detected face nearest to the middle of the photo, or ``None``.

    LFW centres the person it names; people in the background are not meant.

    Args:
        photo: uint8 RGB ``[H, W, 3]``.
        detector: photo -> faces.

    Returns:
        The face whose box has its middle nearest to the photo's; of two as near the one further left.
        ``None`` if the detector finds none.
    """
    height, width = photo.shape[:2]
    middle = np.array([(width - 1) / 2, (height - 1) / 2])

    def distance(face: Face) -> float:
        x0, y0, x1, y1 = face.box
        return float(np.linalg.norm(np.array([(x0 + x1) / 2, (y0 + y1) / 2]) - middle))

    return min(detector(photo), key=distance, default=None)


def same_face(photo: PixelArray, face: Face, detector: FaceDetection) -> Face | None:
    """The face that is detected where a face was before the photo was protected, or ``None``.

    Somebody else in the photo does not stand in for a face that is not found any more: a match with the wrong
    person's face would make the protection look better than it is.

    Args:
        photo: uint8 RGB ``[H, W, 3]``.
        face: as it was found in the original photo of the same size.
        detector: photo -> faces.

    Returns:
        The face whose box overlaps most with the old one, by intersection over union, if that is `SAME_FACE_IOU`
        or more.
    """
    found = detector(photo)
    if not found:
        return None
    boxes = torch.tensor([each.box for each in found], dtype=torch.float64)
    overlaps = box_iou(boxes, torch.tensor([face.box], dtype=torch.float64))[:, 0]
    best = int(overlaps.argmax())
    return found[best] if overlaps[best] >= SAME_FACE_IOU else None


def find_central_faces(
    records: Sequence[Record], detector: FaceDetection, cache: ArrayCache
) -> list[Face | None]:
    """`central_face` of each record's photo, kept in the cache.

    Args:
        records: photos in any order.
        detector: photo -> faces.
        cache: where the result is kept, by photos, detector and face code.

    Raises:
        UnreadablePhotoError: a photo cannot be decoded; names the record.
    """

    def make() -> Arrays:
        rows = np.full((len(records), 15), np.nan)
        for row, record in zip(rows, tqdm(records, desc="faces", leave=False, mininterval=1), strict=True):
            face = central_face(record.read_photo(), detector)
            if face is not None:
                row[:] = [*face.box, *face.landmarks.ravel(), face.confidence]
        return {"faces": rows}

    arrays = cache.get(("faces", hash_records(records), face_code(detector)), make)
    return [_face_from_row(row) for row in arrays["faces"].astype(np.float64)]


def embed_gallery(
    records: Sequence[Record], recognisers: Sequence[Recogniser], detector: FaceDetection, cache: ArrayCache
) -> Gallery:
    """Detect and embed every gallery image with every recogniser, kept in the cache.

    Args:
        records: the gallery.
        recognisers: names must differ.
        detector: photo -> faces.
        cache: where faces and embeddings are kept, by photos, face code and recogniser.

    Raises:
        UnreadablePhotoError: a photo cannot be decoded; names the record.
        ValueError: two recognisers have one name.
    """
    names = [recogniser.name for recogniser in recognisers]
    if len(set(names)) != len(names):
        raise ValueError(f"recognisers: expected different names, got {names}.")
    faces = find_central_faces(records, detector, cache)
    known = (hash_records(records), _hash_faces(faces))
    embeddings = {}
    for recogniser in recognisers:
        key = ("embeddings", *known, recogniser.fingerprint, encoder_code(recogniser))
        arrays = cache.get(key, partial(_embed_records, records, faces, recogniser))
        embeddings[recogniser.name] = arrays["embeddings"].astype(np.float32)
    return Gallery(
        tuple(record.person for record in records), embeddings, sum(face is None for face in faces)
    )


def encoder_code(recogniser: Recogniser) -> str:
    """The code of encoder and alignment: how faces are framed and scaled is not in the weights."""
    aligned_by = "" if isinstance(recogniser.encoder, PhotoEncoder) else code_of(align)
    try:
        return code_of(sys.modules[type(recogniser.encoder).__module__]) + aligned_by
    except (OSError, TypeError, KeyError):  # written at a prompt or in a notebook
        return aligned_by


def code_of(module: ModuleType) -> str:
    """Source without comments and layout, for cache keys: so that rewording them keeps the cache."""
    return ast.dump(ast.parse(inspect.getsource(module)))


def face_code(detector: FaceDetection) -> str:
    """Name the code and settings that find faces, so that a change of them empties the cache."""
    digest = hashlib.sha256(version("facenet-pytorch").encode())
    for module in (detect, turned):
        digest.update(code_of(module).encode())
    settings = {name: value for name, value in sorted(vars(detector).items()) if not name.startswith("_")}
    kind = inspect.getsource(detector) if inspect.isroutine(detector) else type(detector).__qualname__
    digest.update(f"{kind} {settings}".encode())
    return digest.hexdigest()


def _embed_records(records: Sequence[Record], faces: Sequence[Face | None], recogniser: Recogniser) -> Arrays:
    found = [(index, face) for index, face in enumerate(faces) if face is not None]
    if not found:
        raise ValueError("gallery: no face was found in any of its photos.")
    rows = []
    for start in tqdm(range(0, len(found), _CHUNK), desc=f"gallery, {recogniser.name}", leave=False):
        piece = found[start : start + _CHUNK]
        photos = [records[index].read_photo() for index, _ in piece]
        rows.append(embed_faces(recogniser.encoder, photos, [face for _, face in piece]))
    embedded = np.concatenate(rows)
    embeddings = np.full((len(records), embedded.shape[1]), np.nan, dtype=np.float32)
    embeddings[[index for index, _ in found]] = embedded
    return {"embeddings": embeddings}


def _hash_faces(faces: Sequence[Face | None]) -> str:
    return hashlib.sha256(repr([f and (f.box, f.landmarks.tolist()) for f in faces]).encode()).hexdigest()


def _face_from_row(row: NDArray[np.float64]) -> Face | None:
    if np.isnan(row).any():
        return None
    box = (float(row[0]), float(row[1]), float(row[2]), float(row[3]))
    return Face(box, row[4:14].reshape(5, 2), float(row[14]))
