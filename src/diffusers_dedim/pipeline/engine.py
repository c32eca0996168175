"""One engine under `DeDiMPipeline`: faces of the next photos take the places of those that are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from diffusers_dedim.diffusion.sampling import SampleResult
from diffusers_dedim.faces import (
    AlignedFace,
    Face,
    FaceChoice,
    FaceDetection,
    align_face,
    choose_faces,
    inside_photo,
    paste_back,
)
from diffusers_dedim.images.modes import as_written, is_neutral
from diffusers_dedim.pipeline.components import check_embeddings
from diffusers_dedim.pipeline.device import in_parts
from diffusers_dedim.pipeline.inputs import (
    NOTHING_BESIDE,
    BesidePixels,
    child_generator,
    from_pixels,
    take_photos,
)
from diffusers_dedim.pipeline.output import FaceResult, measure_faces
from diffusers_dedim.pipeline.presets import DeDiMPreset
from diffusers_dedim.pipeline.queue import FaceQueue, QueuedFace, SampledFace
from diffusers_dedim.prefetch import map_ahead

_PHOTOS_AHEAD = 4  # searched for faces while others are sampled; each is held in memory


@dataclass(frozen=True, eq=False)
class Networks:
    """What the engine works with; it does not know the pipeline.

    Attributes:
        detector: photo -> its faces.
        landmarker: crops ``[N, 3, 112, 112]`` in [-1, 1] -> 51 landmarks ``[N, 51, 2]``, crop px.
        face_encoder: such crops -> unit embeddings.
        sample: `sample_dedim` with all that does not depend on the faces put in.
        device: where the networks compute.
    """

    detector: FaceDetection
    landmarker: Callable[[Tensor], Tensor]
    face_encoder: nn.Module
    sample: Callable[..., SampleResult]
    device: torch.device


@dataclass(frozen=True, eq=False)
class StreamPhoto:
    """A photo that goes into the stream.

    Attributes:
        owner: whatever tells the caller which photo it is.
        pixels: uint8 RGB ``[H, W, 3]``, upright.
        generator: as for the pipeline; None draws from torch's global one.
        faces: found already, photo px, or cut out already; None where they are still to be found.
        grey: it will be written as greyscale: the result is, so that what is measured is what is written.
        beside: what the photo has beside its pixels, for `StreamResult.image`.
    """

    owner: Any
    pixels: NDArray[np.uint8]
    generator: torch.Generator | None = None
    faces: Sequence[Face] | Sequence[AlignedFace] | None = None
    grey: bool = False
    beside: BesidePixels = NOTHING_BESIDE


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
        faces: a record of each protected face, in the order in which they were found; ``image_index`` is 0.
        small_faces: faces under 40 px, left as they are: **unprotected**.
        error: why the photo is not protected, or None.
        aligned: each of ``faces`` as it was cut from the original, to measure it again once the photo is packed.
    """

    photo: StreamPhoto
    pixels: NDArray[np.uint8]
    faces: tuple[FaceResult, ...] = ()
    small_faces: tuple[Face, ...] = ()
    error: Exception | None = None
    aligned: tuple[AlignedFace, ...] = ()

    @property
    def image(self) -> Image.Image:
        """The pixels as a PIL image: RGB, or RGBA where the photo came with transparency."""
        image: Image.Image = from_pixels(self.pixels, "pil", self.photo.beside)
        return image


@dataclass(eq=False)
class _OpenPhoto:
    """A photo some of whose faces are still being sampled."""

    photo: StreamPhoto
    faces: list[AlignedFace]
    small_faces: list[Face]
    x_org: Tensor  # [N, 3, 112, 112]
    landmarks: Tensor  # [N, 51, 2]
    mask: Tensor  # [N, 1, 112, 112]
    sampled: dict[int, SampledFace] = field(default_factory=dict)


class PhotoStream:
    """Photos in, protected photos out, with ``slots`` faces in the networks all the time.

    Photos are taken when there is room for them and come back as soon as all their faces are done, so their order may
    change and memory does not grow with their number. Faces are found in a thread of its own. A face's result does not
    depend on those beside it, up to the rounding of other batch sizes.

    Args:
        networks: see `Networks`; the detector is called in another thread.
        settings: of Algorithm 2.
        small_faces: a face under 40 px is an "error", or "skip": left as it is, and named in the result.
        select_faces: says of each face whether it is to be protected; None for all of them.
        slots: faces that are sampled together; halved whenever memory does not suffice.
        isolate: what a photo provokes is in its result and the stream goes on; False raises it.
        on_face: called whenever a face is done.

    Raises:
        ValueError: ``slots`` is below 1.

    Example:
        >>> stream = PhotoStream(networks, PRESETS["fast"], slots=64)  # doctest: +SKIP
        >>> for result in stream.protect(photos):  # doctest: +SKIP
        ...     print(result.photo.owner, result.error or result.faces)
    """

    networks: Networks
    settings: DeDiMPreset
    select_faces: FaceChoice | None
    isolate: bool
    on_face: Callable[[], object] | None

    def __init__(
        self,
        networks: Networks,
        settings: DeDiMPreset,
        *,
        small_faces: Literal["error", "skip"] = "error",
        select_faces: FaceChoice | None = None,
        slots: int = 16,
        isolate: bool = True,
        on_face: Callable[[], object] | None = None,
    ) -> None:
        self.networks, self.settings = networks, settings
        self.small_faces, self.select_faces = small_faces, select_faces
        self.isolate, self.on_face = isolate, on_face
        self._queue = FaceQueue(networks.sample, max_rounds=settings.max_rounds, slots=slots, isolate=isolate)

    def protect(self, photos: Iterable[Any]) -> Iterator[Any]:
        """Yield a `StreamResult` for each `StreamPhoto`, as soon as it is done.

        Args:
            photos: may be endless. What is no `StreamPhoto` is handed through, at its turn.
        """
        # one thread: the detector is not made for several
        for item, found in map_ahead(self._find, photos, threads=1, ahead=_PHOTOS_AHEAD):
            if not isinstance(item, StreamPhoto):
                yield item
                continue
            error = found if isinstance(found, Exception) else self._enqueue(item, *found)
            if error is not None:
                if not self.isolate:
                    raise error
                yield StreamResult(item, item.pixels, error=error)
            while self._queue.full:
                yield from self._run_round()
        while len(self._queue):
            yield from self._run_round()

    def _find(self, item: Any) -> tuple[Any, Any]:
        """The photo, and its faces that are cut out and those too small; or why that cannot be."""
        if not isinstance(item, StreamPhoto):
            return item, None
        try:
            found: list[Any] = list(self.networks.detector(item.pixels) if item.faces is None else item.faces)
            if found and isinstance(found[0], AlignedFace):
                return item, (found, [])
            large, small = choose_faces(found, 0, self.small_faces, self.select_faces)
            return item, ([align_face(item.pixels, face) for face in large], small)
        except Exception as error:  # no face, or whatever this photo provokes
            return item, error

    @torch.no_grad()
    def _enqueue(self, photo: StreamPhoto, faces: list[AlignedFace], small: list[Face]) -> Exception | None:
        """Add the photo's faces to the queue, or say why that cannot be."""
        slots = self._queue.slots
        try:
            x_org = torch.stack([aligned.crop for aligned in faces]).to(self.networks.device)
            # a crowd has more faces than there are places
            check_embeddings(in_parts(self.networks.face_encoder, x_org, slots), len(faces))
            landmarks = in_parts(self.networks.landmarker, x_org, slots)
            mask = self.settings.make_mask(landmarks)
            mask = mask * torch.stack([inside_photo(face, photo.pixels.shape) for face in faces]).to(mask)
            opened = _OpenPhoto(photo, faces, small, x_org, landmarks, mask)
            generators = [child_generator(photo.generator) for _ in faces]
        except Exception as error:
            return error.with_traceback(None) if self.isolate else error
        for row, generator in enumerate(generators):
            self._queue.add(QueuedFace((opened, row), x_org[row], mask[row], generator))
        return None

    def _run_round(self) -> Iterator[StreamResult]:
        """Run a round; the photos whose last face is done with it."""
        for item in self._queue.run_round():
            if self.on_face is not None:
                self.on_face()
            opened, row = item.face.owner
            opened.sampled[row] = item
            if len(opened.sampled) == len(opened.faces):
                yield self._close(opened)

    def _close(self, opened: _OpenPhoto) -> StreamResult:
        """The photo's result; an error of one face is the photo's."""
        sampled = [opened.sampled[row] for row in range(len(opened.faces))]
        error = next((item.error for item in sampled if item.error is not None), None)
        if error is None:
            try:
                return self._paste_and_measure(opened, sampled)
            except Exception as raised:
                if not self.isolate:
                    raise
                error = raised.with_traceback(None)
        return StreamResult(opened.photo, opened.photo.pixels, error=error)

    def _paste_and_measure(self, opened: _OpenPhoto, sampled: list[SampledFace]) -> StreamResult:
        pixels = opened.photo.pixels
        for aligned, item, mask in zip(opened.faces, sampled, opened.mask.cpu(), strict=True):
            # the crop is blended with the mask already (line 9): only its support, or the feather counts twice
            pixels = paste_back(pixels, aligned, item.crop.cpu(), (mask > 0).float())
        grey = opened.photo.grey or is_neutral(opened.photo.pixels)
        pixels = as_written(pixels, grey=grey)  # colours that are lost may be what hid the face
        # after all faces are pasted, for one may lie over another
        records = measure_faces(
            [pixels],
            [(0, aligned) for aligned in opened.faces],
            opened.x_org,
            opened.landmarks,
            self.networks.face_encoder,
            threshold=self.settings.threshold,
            batch_size=self._queue.slots,
            rounds=[item.rounds for item in sampled],
            unet_calls=[item.unet_calls for item in sampled],
        )
        return StreamResult(
            opened.photo, pixels, tuple(records), tuple(opened.small_faces), aligned=tuple(opened.faces)
        )
