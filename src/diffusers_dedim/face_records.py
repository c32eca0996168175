"""What became of the faces of protected photos: one record each, measured on the photos that are returned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusers_dedim.faces import AlignedFace, align_face
from diffusers_dedim.guidance import match_probability
from diffusers_dedim.memory import in_parts
from diffusers_dedim.results import FaceResult


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
