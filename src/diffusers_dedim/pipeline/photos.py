"""What goes into a stream of photos, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusers_dedim.faces import AlignedFace, Face
from diffusers_dedim.pipeline.inputs import NOTHING_BESIDE, BesidePixels, from_pixels, take_photos
from diffusers_dedim.pipeline.output import FaceResult
from diffusers_dedim.pipeline.rescue import FoundFaces


@dataclass(frozen=True, eq=False)
class StreamPhoto:
    """A photo that goes into the stream.

    Attributes:
        owner: whatever tells the caller which photo it is.
        pixels: uint8 RGB ``[H, W, 3]``, upright.
        generator: as for the pipeline; None draws from torch's global one.
        faces: found already, photo px, or cut out already; None where they are still to be found. `FoundFaces` where
            it is settled already what is to be done with each.
        grey: it will be written as greyscale: the result is, so that what is measured is what is written.
        beside: what the photo has beside its pixels, for `StreamResult.image`.
        packed: pixels -> as they are read back from the finest file that they may be packed into; a face that has
            little room below the threshold is judged by those. None where packing loses nothing.
    """

    owner: Any
    pixels: NDArray[np.uint8]
    generator: torch.Generator | None = None
    faces: Sequence[Face] | Sequence[AlignedFace] | FoundFaces | None = None
    grey: bool = False
    beside: BesidePixels = NOTHING_BESIDE
    packed: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None


def stream_photo(item: Any, index: int, generator: torch.Generator | None) -> Any:
    """A photo as a `StreamPhoto` whose owner is its number; what is one already, or no photo, as it is.

    Args:
        item: PIL image, array, float tensor, `StreamPhoto`, or anything else.
        index: number of the photo in its stream.
        generator: for a photo that brings none.

    Raises:
        ValueError: an array or tensor has another shape, type or range.
    """
    if not isinstance(item, (Image.Image, np.ndarray, Tensor)):
        return item
    (pixels,), (beside,) = take_photos([item])
    return StreamPhoto(index, pixels, generator, beside=beside)


@dataclass(frozen=True, eq=False)
class StreamResult:
    """What became of a photo.

    Attributes:
        photo: as it went in.
        pixels: protected, uint8 RGB ``[H, W, 3]``; the original where there is an error.
        faces: a record of each face that was changed or covered, or was to be, in the order in which they were found;
            ``image_index`` is 0.
        small_faces: faces under 40 px, left as they are (``small_faces="skip"``): **unprotected**.
        unchosen: faces that ``select_faces`` refused, left as they are: **unprotected**.
        error: why the photo is not protected, or None.
        aligned: each of ``faces`` as it was cut from the original, to measure it again once the photo is packed.
    """

    photo: StreamPhoto
    pixels: NDArray[np.uint8]
    faces: tuple[FaceResult, ...] = ()
    small_faces: tuple[Face, ...] = ()
    unchosen: tuple[Face, ...] = ()
    error: Exception | None = None
    aligned: tuple[AlignedFace, ...] = ()

    @property
    def image(self) -> Image.Image:
        """The pixels as a PIL image: RGB, or RGBA where the photo came with transparency."""
        image: Image.Image = from_pixels(self.pixels, "pil", self.photo.beside)
        return image
