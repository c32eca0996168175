"""Who is looked up may have protected the photo he is found by, too: galleries whose mates are protected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusers_dedim.encoders.recogniser import Recogniser, embed_faces
from diffusers_dedim.evaluation.cache import ArrayCache, Arrays
from diffusers_dedim.evaluation.data import RetrievalProtocol
from diffusers_dedim.evaluation.gallery import Gallery, find_central_faces, same_face
from diffusers_dedim.evaluation.pieces import Chunk
from diffusers_dedim.evaluation.probes import Probe
from diffusers_dedim.faces import MIN_FACE_SIZE, FaceDetection
from diffusers_dedim.images.modes import PixelArray

UNPROTECTED, PROTECTED = "unprotected", "protected"

GALLERIES: dict[str, tuple[str, ...]] = {
    UNPROTECTED: (UNPROTECTED,),
    PROTECTED: (PROTECTED,),
    "both": (UNPROTECTED, PROTECTED),
}
"""What ``--gallery`` takes, and the kinds of gallery that it means."""

MATES_FIRST = 500_000
"""Place of the first mate: places make seeds, and a mate must not be diffused with the noise of a probe."""


@dataclass(frozen=True, eq=False)
class SearchedGallery:
    """All gallery images that are searched, and which of them stand in which kind of gallery.

    Attributes:
        gallery: the unprotected gallery, and behind it the protected mates.
        columns: kind -> indices into it, in the order of the gallery.
    """

    gallery: Gallery
    columns: Mapping[str, NDArray[np.int64]]

    def take(self, kind: str) -> Gallery:
        """The gallery of one kind alone."""
        columns = self.columns[kind]
        embeddings = {name: rows[columns] for name, rows in self.gallery.embeddings.items()}
        persons = tuple(self.gallery.persons[column] for column in columns.tolist())
        return Gallery(persons, embeddings, self.gallery.undetected)


def find_mates(protocol: RetrievalProtocol, detector: FaceDetection, cache: ArrayCache) -> dict[int, Probe]:
    """The gallery images of the probes' people, as photos that can be protected.

    Those without a face, and those whose face no method changes because it is under 40 px, are left as they are.

    Args:
        protocol: probes and gallery.
        detector: photo -> faces.
        cache: has the gallery's faces, if `embed_gallery` was asked before.

    Returns:
        Row in the gallery -> photo, in the order of the probes, so that more probes later change nothing for these.

    Raises:
        UnreadablePhotoError: a photo cannot be decoded; names the record.
    """
    faces = find_central_faces(protocol.gallery, detector, cache)
    rows: dict[str, list[int]] = {}
    for row, record in enumerate(protocol.gallery):
        rows.setdefault(record.person, []).append(row)
    people = dict.fromkeys(record.person for record in protocol.probes)
    mates = {}
    for row in (row for person in people for row in rows[person]):
        record, face = protocol.gallery[row], faces[row]
        if face is not None and face.size >= MIN_FACE_SIZE:
            mates[row] = Probe(record.person, record.read_photo(), face, record.name)
    return mates


def embed_mates(
    chunk: Chunk,
    photos: Callable[[], list[PixelArray]],
    recognisers: Sequence[Recogniser],
    detector: FaceDetection,
) -> Arrays:
    """Embed protected mates as the gallery's photos are: the face is detected anew, or taken where it was.

    Args:
        chunk: the originals.
        photos: gives the same photos, protected.
        recognisers: who searches.
        detector: the attacker's, photo -> faces.

    Returns:
        ``embeddings_0``, ... float32 ``[M, D]``, one a recogniser.
    """
    protected = photos()
    found = [
        same_face(photo, mate.face, detector) for mate, photo in zip(chunk.probes, protected, strict=True)
    ]
    faces = [face or mate.face for mate, face in zip(chunk.probes, found, strict=True)]
    return {
        f"embeddings_{index}": embed_faces(recogniser.encoder, protected, faces)
        for index, recogniser in enumerate(recognisers)
    }


def add_mates(gallery: Gallery, rows: Sequence[int], pieces: Sequence[Arrays]) -> SearchedGallery:
    """Put protected mates behind a gallery.

    Args:
        gallery: unprotected.
        rows: of the images that they were made from.
        pieces: from `embed_mates`, in the order of the rows, by the gallery's recognisers in their order.

    Returns:
        Both kinds of gallery: in the protected one these take the place of the images that they were made from.
    """
    count = len(gallery.persons)
    embeddings = {
        name: np.concatenate([plain, *(piece[f"embeddings_{index}"].astype(np.float32) for piece in pieces)])
        for index, (name, plain) in enumerate(gallery.embeddings.items())
    }
    persons = (*gallery.persons, *(gallery.persons[row] for row in rows))
    kept = np.setdiff1d(np.arange(count), rows)
    columns = {UNPROTECTED: np.arange(count), PROTECTED: np.concatenate([kept, count + np.arange(len(rows))])}
    return SearchedGallery(Gallery(persons, embeddings, gallery.undetected), columns)
