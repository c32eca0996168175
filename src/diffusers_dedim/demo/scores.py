"""What recognisers make of a face before and after: the guiding one, an unseen one, against which photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.typing import NDArray

from diffusers_dedim.demo.photos import OpenedPhoto, largest
from diffusers_dedim.evaluation.recogniser import Recogniser, embed_faces, load_recogniser
from diffusers_dedim.extras import import_extra
from diffusers_dedim.faces import Face
from diffusers_dedim.image_modes import PixelArray

GUIDE_NAME = "guide"
_FACENET_FILES = ("20180402-114759-vggface2.pt", "20180408-102900-casia-webface.pt")


@dataclass(frozen=True)
class ScoreScale:
    """How to read a recogniser's cosine.

    Attributes:
        strangers: median cosine of two photos of different people.
        line: cosine that one in a thousand pairs of different people reach; above it, the recogniser would take
            two faces for the same person.
    """

    strangers: float
    line: float


# python -m benchmarks.score_lines: the 1,000 gallery photos of LFW, one a person, all pairs.
# By fingerprint: other weights have other scales, and without a measured one the page draws no line.
SCALES = {
    "8ed376f234861a36d64f7e4aed303de56585b1a960ff646d93838a027a5d1680": ScoreScale(0.073, 0.366),  # bundled
    "451b8db9f59cac8a991252adf32ba5a06898bd6ecf5ec5b3843c0a1d78cb3360": ScoreScale(0.835, 0.927),  # dlib
}


@dataclass(frozen=True)
class Score:
    """Cosines of one face by one recogniser.

    Attributes:
        recogniser: `GUIDE_NAME`, or the name of the unseen one.
        against: "itself" (the face in the photo as it was) or "other" (the face in the second photo).
        before, after: cosine in [-1, 1] of the photo as it was and of the file that is offered.
        scale: how to read them, or None where it was not measured.
    """

    recogniser: str
    against: str
    before: float
    after: float
    scale: ScoreScale | None

    @property
    def still_matches(self) -> bool | None:
        """Whether the score after lies on or above the line; None without a line."""
        return None if self.scale is None else self.after >= self.scale.line


def load_unseen() -> Recogniser | None:
    """A recogniser that has no part in the change: dlib, else facenet-pytorch's if its weights lie in the cache.

    Nothing is downloaded. None where neither is installed; the page then says so.
    """
    try:
        return load_recogniser("dlib")
    except ImportError:
        pass
    for file in _FACENET_FILES:
        path = _torch_home() / "checkpoints" / file
        if path.is_file():
            return load_recogniser(f"facenet={path}")
    return None


def face_scores(
    recognisers: Sequence[Recogniser], before: PixelArray, after: PixelArray, faces: Sequence[Face],
    other: OpenedPhoto | None = None,
) -> list[list[Score]]:  # fmt: skip
    """Score each face with each recogniser.

    Args:
        recognisers: the guiding one first.
        before, after: the photo as it was and as it is offered, uint8 RGB ``[H, W, 3]``.
        faces: the faces, found in ``before``; the changed ones are framed by the same points.
        other: a second photo. Its largest face is compared with that face which the first recogniser finds most
            like it in ``before``; the others get no such score.

    Returns:
        For each face its scores, recogniser by recogniser, "itself" before "other".
    """
    table: list[list[Score]] = [[] for _ in faces]
    partner: int | None = None
    for recogniser in recognisers:
        scale = SCALES.get(recogniser.fingerprint)
        count = len(faces)
        old = embed_faces(recogniser.encoder, [before] * count, faces)
        new = embed_faces(recogniser.encoder, [after] * count, faces)
        for index in range(count):
            scores = _cosine(old[index], old[index]), _cosine(new[index], old[index])
            table[index].append(Score(recogniser.name, "itself", *scores, scale))
        if other is None:
            continue
        second = embed_faces(recogniser.encoder, [other.photo.pixels], [largest(other.faces)])[0]
        if partner is None:
            partner = int((old @ second).argmax())
        scores = _cosine(old[partner], second), _cosine(new[partner], second)
        table[partner].append(Score(recogniser.name, "other", *scores, scale))
    return table


def _cosine(first: NDArray, second: NDArray) -> float:  # type: ignore[type-arg]  # unit vectors [D]
    return float(first @ second)


def _torch_home() -> Path:
    module = import_extra("facenet_pytorch.models.inception_resnet_v1", "the unseen recogniser")
    return Path(module.get_torch_home())
