"""Choose the faces of one person, or of everybody else, by the recogniser that guides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusers_dedim.errors import NoFaceError
from diffusers_dedim.faces import AlignedFace, FaceDetection, align_face, detect_faces
from diffusers_dedim.pipeline.inputs import PhotoInput, take_photos

# Cosines of the bundled guides, or on their scale (python -m benchmarks.score_lines): above the first a face may be the
# person, above the second it is.
MAY_BE, IS = 0.2, 0.5


def reference_face(photo: NDArray[np.uint8], detector: FaceDetection = detect_faces) -> AlignedFace:
    """The only face of a photo of a person, cut out.

    Args:
        photo: uint8 RGB ``[H, W, 3]``, upright.
        detector: photo -> faces.

    Raises:
        NoFaceError: it shows no face.
        ValueError: it shows several, of which nobody says whose is meant.

    Example:
        >>> reference_face(np.zeros((64, 64, 3), np.uint8))
        Traceback (most recent call last):
        diffusers_dedim.errors.NoFaceError: no face was found in it; give a photo that shows the person's face
    """
    faces = detector(photo)
    if not faces:
        raise NoFaceError("no face was found in it; give a photo that shows the person's face")
    if len(faces) > 1:
        raise ValueError(f"it shows {len(faces)} faces; crop it so that it shows the person alone")
    return align_face(photo, faces[0])


class PersonChoice:
    """For ``select_faces``: protect one person's faces alone, or everybody else's.

    A face is compared with each photo of the person. In doubt it is protected: with ``spared=False`` wherever any
    recogniser finds that it may be the person, with ``spared=True`` unless all of them find that it is. The embeddings
    stay in memory.

    Args:
        references: a face of each photo of the person, or of several people.
        face_encoder: the pipeline's.
        spared: False protects the person and nobody else; True everybody but the person.
        may_be: cosine from which a face may be the person.
        surely: cosine from which it is. Both are the bundled recogniser's by default; one on another scale needs its
            own: ``python -m benchmarks.score_lines`` measures what strangers reach.

    Raises:
        ValueError: there are no references, a line is not in (-1, 1), or the recogniser finds an upside-down face as
            like as the same one, so that the lines cannot be on its scale.

    Example:
        >>> choice = PersonChoice.of(pipe, [Image.open("me.jpg")])  # doctest: +SKIP
        >>> out = pipe(photo, select_faces=choice)  # doctest: +SKIP
    """

    def __init__(
        self,
        references: Sequence[AlignedFace],
        face_encoder: nn.Module,
        *,
        spared: bool = False,
        may_be: float = MAY_BE,
        surely: float = IS,
    ) -> None:
        if not references:
            raise ValueError("references: expected a face of the person, got none.")
        for name, line in (("may_be", may_be), ("surely", surely)):
            if not -1 < line < 1:
                raise ValueError(f"{name}: expected a cosine in (-1, 1), got {line}.")
        self.spared: bool = spared
        self.may_be: float = may_be
        self.surely: float = surely
        crops = torch.stack([aligned.crop for aligned in references])
        device = next((value.device for value in face_encoder.parameters()), crops.device)
        with torch.no_grad():
            self._references = face_encoder(crops.to(device))  # [R, D] or [R, K, D]
            others = face_encoder(crops.flip(2).to(device))
        if bool((self._cosines(others) >= surely).any()):
            raise ValueError(
                f"surely: this recogniser finds an upside-down face as like the person as {surely:g}; measure its "
                "lines with python -m benchmarks.score_lines, and give may_be and surely."
            )

    @classmethod
    def of(cls, pipe: Any, photos: Sequence[PhotoInput], **options: Any) -> PersonChoice:
        """From photos of the person that show one face each, by the pipeline's detector and recogniser.

        Args:
            pipe: a `DeDiMPipeline`.
            photos: as for the pipeline.
            **options: as for the class.

        Raises:
            NoFaceError: a photo shows no face. ValueError: it shows several, or as the class.
        """
        pixels, _ = take_photos(list(photos))
        return cls(
            [reference_face(each, pipe.face_detector) for each in pixels], pipe.face_encoder, **options
        )

    def choose(self, embeddings: Tensor) -> list[bool]:
        """Which faces with these embeddings ``[N, D]``, or ``[N, K, D]`` of K recognisers, are to be protected."""
        cosines = self._cosines(embeddings)  # [N, R, K]
        if self.spared:
            return (~(cosines >= self.surely).all(2).any(1)).tolist()
        return (~(cosines < self.may_be)).any(2).any(1).tolist()  # nan: in doubt

    def _cosines(self, embeddings: Tensor) -> Tensor:
        """Of faces with each reference, by each recogniser, [N, R, K]."""
        faces, people = (
            each if each.ndim == 3 else each[:, None]
            for each in (embeddings, self._references.to(embeddings))
        )
        return torch.einsum("nkd,rkd->nrk", faces.float(), people.float())
