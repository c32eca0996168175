"""What every encoder shares: the check of its crops, and the second way in for those that need the photo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:  # encoders stand alone: the face is only a name here, not an import at run time
    from diffusers_dedim.faces.types import Face


@runtime_checkable
class PhotoEncoder(Protocol):
    """An encoder that frames the face in the photo by itself.

    Encoders without this method see the 112x112 crop: ``align_face`` and then the call, which
    `diffusers_dedim.evaluation.recogniser.embed_faces` does for both kinds.
    """

    def embed_photo(self, photo: NDArray[np.uint8], face: Face) -> Tensor:
        """Embed one face of a photo.

        Args:
            photo: ``[H, W, 3]`` RGB, 0..255.
            face: the face to embed, in photo pixels.

        Returns:
            Unit vector ``[D]`` float32.
        """
        ...


def check_crops(crops: Tensor) -> None:
    """Refuse anything but crops ``[N, 3, 112, 112]``.

    Raises:
        ValueError: the crops have another shape.

    Example:
        >>> import torch
        >>> check_crops(torch.zeros(2, 3, 112, 112))
    """
    if crops.ndim != 4 or crops.shape[1:] != (3, 112, 112):
        raise ValueError(
            f"crops: expected shape [N, 3, 112, 112], got {list(crops.shape)}; "
            "align faces with diffusers_dedim.faces.align_face first."
        )
