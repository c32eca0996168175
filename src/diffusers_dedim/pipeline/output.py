"""What the pipeline returns."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusers_dedim.diffusion.matching import match_probability
from diffusers_dedim.faces import AlignedFace, align_face
from diffusers_dedim.faces.find import TOO_SMALL
from diffusers_dedim.pipeline.device import in_parts
from diffusers_dedim.pipeline.doubts import HIDDEN

Treatment = Literal["changed", "blurred", "pixelated", "left"]
"""What was done to a face. Only what is "changed" aims at the threshold; a face that is "left" is as it was."""


@dataclass(frozen=True, eq=False)  # eq=False: comparing arrays has no single truth value
class FaceResult:
    """What happened to one face.

    Attributes:
        image_index: index of its photo in the call.
        box: x0, y0, x1, y1 in photo px.
        landmarks: ``[51, 2]`` float64, photo px.
        similarity_before: cosine of the face with itself by the pipeline's recogniser, 1 up to rounding.
        similarity: cosine in [-1, 1] of the returned photo's face (8 bit, same alignment) with the original, by the
            recogniser that guided; another one sees another number.
        probability: the same as the match probability of Eq. 4 in [0, 1], (cosine + 1) / 2.
        rounds: rounds that were run in all attempts; 0 where the face was not to be changed.
        unet_calls: images the denoiser was called on; with ``error_correction`` two a step where noise is new.
        reached_threshold: whether the face ended below the threshold. A covered face may not: a cover aims at no score.
        treatment: see `Treatment`.
        reason: why the face was not simply changed, in a few words; empty where it was.
        attempts: what was tried, in order (`rescue.ATTEMPTS`); more than one where the first did not suffice.
    """

    image_index: int
    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float64]
    similarity_before: float
    similarity: float
    probability: float
    rounds: int
    unet_calls: int
    reached_threshold: bool
    treatment: Treatment = "changed"
    reason: str = ""
    attempts: tuple[str, ...] = ()

    @property
    def is_protected(self) -> bool:
        """Whether the face ended below the threshold, or is covered; False: it is NOT protected as asked."""
        if self.treatment == "changed":
            return self.reached_threshold
        return self.treatment != "left"


@dataclass
class DeDiMOutput(BaseOutput):  # type: ignore[misc]  # diffusers ships no types
    """Protected photos and the record of each face.

    Attributes:
        images: one per photo: PIL RGB images, float32 arrays ``[H, W, 3]`` or tensors ``[3, H, W]`` in [0, 1].
        faces: every face of every photo that was changed or covered, or was to be, photo by photo, from left to right.

    Example:
        >>> out = pipe(photo)  # doctest: +SKIP
        >>> all(face.is_protected for face in out.faces)  # doctest: +SKIP
        True
    """

    images: list[Any]
    faces: list[FaceResult]


def warn_unreached(faces: Sequence[FaceResult], threshold: float, stacklevel: int) -> None:
    """Say aloud which faces are not protected as asked; ``stacklevel`` counts from here, as in `warnings.warn`."""
    hidden = [face for face in faces if face.treatment in ("blurred", "pixelated") and _is_hidden(face)]
    if hidden:
        reasons = ", ".join(sorted({face.reason for face in hidden}))
        warnings.warn(
            f"{len(hidden)} of {len(faces)} faces cannot be changed ({reasons}) and are {hidden[0].treatment}.",
            stacklevel=stacklevel,
        )
    left = [face for face in faces if face.treatment == "left"]
    if left:
        reasons = ", ".join(sorted({face.reason for face in left}))
        warnings.warn(
            f"{len(left)} of {len(faces)} faces cannot be changed ({reasons}) and were left UNPROTECTED "
            "(fallback='leave-out'); fallback='blur' makes them unrecognisable.",
            stacklevel=stacklevel,
        )
    missed = [face for face in faces if face.treatment == "changed" and not face.reached_threshold]
    if missed:
        worst = max(face.probability for face in missed)
        warnings.warn(
            f"{len(missed)} of {len(faces)} faces stayed above the threshold {threshold:g} (highest match "
            f"probability {worst:.3f}): they are NOT protected as asked. Raise max_rounds or "
            "guidance_scale, try another generator, or give fallback='blur'; faces[i].is_protected says which.",
            stacklevel=stacklevel,
        )


def _is_hidden(face: FaceResult) -> bool:
    """Whether a face has too little to change, and not for its size, of which there is a word before the work."""
    return face.reason == HIDDEN or not (face.attempts or face.reason == TOO_SMALL)


@torch.no_grad()
def measure_faces(
    photos: Sequence[NDArray[np.uint8]],
    batch: Sequence[tuple[int, AlignedFace]],
    x_org: Tensor,
    landmarks: Tensor,
    face_encoder: nn.Module,
    *,
    rounds: Sequence[int],
    unet_calls: Sequence[int],
    threshold: float,
    batch_size: int | None = None,
) -> list[FaceResult]:
    """Compare each face of the protected photos with its original, aligned by the original points.

    Args:
        photos: protected photos, uint8 ``[H, W, 3]``: 8 bits and paste-back are part of what is measured.
        batch: photo index and original face, N of them.
        x_org: the original crops ``[N, 3, 112, 112]`` in [-1, 1].
        landmarks: ``[N, 51, 2]``, crop px.
        face_encoder: maps crops to unit embeddings.
        rounds: of each face.
        unet_calls: of each face.
        threshold: match probability (Eq. 4) below which a face counts as done.
        batch_size: crops that the recogniser gets at once, fewer where memory does not suffice; None for all.

    Returns:
        One `FaceResult` per face, in the order of the batch.
    """
    x_new = torch.stack([align_face(photos[index], aligned.face).crop for index, aligned in batch])
    reference, embedding = (
        in_parts(face_encoder, crops, batch_size or len(crops)) for crops in (x_org, x_new.to(x_org.device))
    )
    probability = match_probability(embedding, reference).tolist()
    before = match_probability(reference, reference).tolist()
    points = landmarks.cpu().double().numpy()  # in this order: Apple's MPS has no float64
    return [
        FaceResult(
            image_index=index,
            box=aligned.face.box,
            landmarks=_to_photo(points[row], aligned.to_crop),
            similarity_before=2 * before[row] - 1,
            similarity=2 * probability[row] - 1,
            probability=probability[row],
            rounds=rounds[row],
            unet_calls=unet_calls[row],
            reached_threshold=probability[row] < threshold,
        )
        for row, (index, aligned) in enumerate(batch)
    ]


def _to_photo(points: NDArray[np.float64], to_crop: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map crop px ``[51, 2]`` to photo px."""
    return np.asarray((points - to_crop[:, 2]) @ np.linalg.inv(to_crop[:, :2]).T)
