"""What every encoder shares: the check of its crops, and the second way in for those that need the photo."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from diffusers_dedim.faces.types import Face


@runtime_checkable
class PhotoEncoder(Protocol):
    """An encoder that frames the face in the photo by itself.

    Encoders without this method see the 112x112 crop: ``align_face`` and then the call, which
    `diffusers_dedim.encoders.recogniser.embed_faces` does for both kinds.
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
