"""Protect a stream of photos: faces of the next photos take the places of those that are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from numpy.typing import NDArray
from torch import Tensor

from diffusers_dedim.diffusion.callbacks import chain_callbacks
from diffusers_dedim.diffusion.sampling import SampleResult
from diffusers_dedim.faces import AlignedFace, Face, find_faces, inside_photo, paste_back
from diffusers_dedim.images.modes import as_written
from diffusers_dedim.pipeline.components import check_embeddings
from diffusers_dedim.pipeline.device import in_parts, is_out_of_memory
from diffusers_dedim.pipeline.inputs import child_generator
from diffusers_dedim.pipeline.output import FaceResult, measure_faces
from diffusers_dedim.pipeline.pipeline_dedim import DeDiMPipeline
from diffusers_dedim.pipeline.presets import DeDiMPreset
from diffusers_dedim.prefetch import map_ahead


@dataclass(frozen=True, eq=False)
class QueuedFace:
    """A face that waits to be sampled.

    Attributes:
        owner: whatever tells the caller whose face it is.
        x_org: aligned crop ``[3, H, W]`` in [-1, 1].
        mask: ``[1, H, W]`` in [0, 1]; 1 = sampled, 0 = original.
        generator: of this face alone, so that its result does not depend on who is sampled beside it.
    """

    owner: Any
    x_org: Tensor
    mask: Tensor
    generator: torch.Generator


@dataclass(frozen=True, eq=False)
class SampledFace:
    """A face that has left the queue.

    Attributes:
        face: as it was added.
        crop: ``[3, H, W]``, x_0 of the last accepted round.
        probability_history: match probability (Eq. 4) before and after each of its rounds; it never rises.
        unet_calls: images the denoiser was called on for it.
        reached_threshold: whether its probability fell below the threshold.
        error: what the sampler raised for this face alone; its crop must not be used then.
    """

    face: QueuedFace
    crop: Tensor
    probability_history: tuple[float, ...] = (1.0,)
    unet_calls: int = 0
    reached_threshold: bool = False
    error: Exception | None = None

    @property
    def rounds(self) -> int:
        """How many rounds were run."""
        return len(self.probability_history) - 1


class FaceQueue:
    """Run Algorithm 2 on a stream of faces, round by round, always on as many of them as there are places.

    `sample_dedim` alone ends a batch with the face that takes longest. Here a face that is done leaves after its
    round and the next one begins in the following round, with its own round 1. Every face has its own generator
    and its own count of rounds, so it gets the result it would have got in any other company (convolutions of
    another batch size may add in another order: rounding only). The reference embedding of line 1 is computed anew
    each round, one call of the recogniser.

    A call that fails for want of memory is made again with half the faces, from the generators' earlier states, and
    ``slots`` stays at the half that fitted: the faces that had begun go on in pieces of that size. A call that fails
    otherwise is halved down to the faces that are to blame.

    Args:
        sample: `sample_dedim` with everything bound but faces, masks, generators and rounds.
        max_rounds: L, the most rounds a face gets.
        slots: how many faces are sampled together, at least 1.

    Raises:
        ValueError: ``slots`` or ``max_rounds`` is below 1.

    Example:
        >>> queue = FaceQueue(sample, max_rounds=12, slots=64)  # doctest: +SKIP
        >>> queue.add(QueuedFace("me", x_org, mask, torch.Generator().manual_seed(0)))  # doctest: +SKIP
        >>> while len(queue):  # doctest: +SKIP
        ...     for sampled in queue.run_round():
        ...         print(sampled.face.owner, sampled.rounds)
    """

    def __init__(self, sample: Callable[..., SampleResult], *, max_rounds: int, slots: int) -> None:
        for name, value in (("max_rounds", max_rounds), ("slots", slots)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}.")
        self._sample, self.max_rounds, self.slots = sample, max_rounds, slots
        self._waiting: deque[SampledFace] = deque()
        self._active: list[SampledFace] = []

    def __len__(self) -> int:
        """Faces that wait or are being sampled."""
        return len(self._waiting) + len(self._active)

    @property
    def full(self) -> bool:
        """Whether every place can be taken, so that a round is worth running now."""
        return len(self) >= self.slots

    def add(self, face: QueuedFace) -> None:
        """Put a face at the end of the queue."""
        self._waiting.append(SampledFace(face, face.x_org))

    def run_round(self) -> list[SampledFace]:
        """Fill the free places, run one round, and return the faces that are done with it, if any."""
        while self._waiting and len(self._active) < self.slots:
            self._active.append(self._waiting.popleft())
        after = self._advance(self._active)
        self._active = [face for face in after if not self._done(face)]
        return [face for face in after if self._done(face)]

    def _done(self, face: SampledFace) -> bool:
        return face.reached_threshold or face.error is not None or face.rounds >= self.max_rounds

    def _advance(self, faces: list[SampledFace]) -> list[SampledFace]:
        """One round for all, in pieces of ``slots``, which may shrink from one piece to the next."""
        after: list[SampledFace] = []
        while len(after) < len(faces):
            after += self._advance_together(faces[len(after) : len(after) + self.slots])
        return after

    def _advance_together(self, faces: list[SampledFace]) -> list[SampledFace]:
        """One round for all; none, and fewer ``slots``, where memory runs out; in halves where it fails otherwise."""
        states = [item.face.generator.get_state() for item in faces]
        try:
            return self._sample_round(faces)
        except Exception as error:  # whatever a face provokes, the others go on
            if len(faces) == 1:
                # the traceback would keep the round's tensors alive
                return [replace(faces[0], error=error.with_traceback(None))]
            out_of_memory = is_out_of_memory(error)
        # out here the traceback, and with it what the failed call had made, is gone
        for item, state in zip(faces, states, strict=True):
            item.face.generator.set_state(state)  # the failed round has drawn from it
        half = (len(faces) + 1) // 2
        if out_of_memory:
            self.slots = half
            clear_device_cache()
            return []
        return self._advance(faces[:half]) + self._advance(faces[half:])

    def _sample_round(self, faces: list[SampledFace]) -> list[SampledFace]:
        x_org = torch.stack([item.face.x_org for item in faces])
        result = self._sample(
            x_org,
            torch.stack([item.face.mask for item in faces]),
            generators=[item.face.generator for item in faces],
            max_rounds=1,
            x_0=torch.stack([item.crop for item in faces]),
            probability=x_org.new_tensor([item.probability_history[-1] for item in faces]),
        )
        return [
            SampledFace(
                face=item.face,
                crop=result.crops[row].clone(),  # a view would keep the whole batch in memory
                probability_history=(*item.probability_history, result.probability_history[row][-1]),
                unet_calls=item.unet_calls + result.unet_calls[row],
                reached_threshold=result.reached_threshold[row],
            )
            for row, item in enumerate(faces)
        ]


_PHOTOS_AHEAD = 4  # searched for faces while others are sampled; each is held in memory


@dataclass(frozen=True, eq=False)
class StreamPhoto:
    """A photo that goes into the stream.

    Attributes:
        owner: whatever tells the caller which photo it is.
        pixels: uint8 RGB ``[H, W, 3]``, upright.
        generator: as for the pipeline; None draws from torch's global one.
        faces: found already, photo px; None where they are still to be found.
        error: why the photo cannot be protected, where that is known already; it is passed on.
        grey: it will be written as greyscale: the result is, so that what is measured is what is written.
    """

    owner: Any
    pixels: NDArray[np.uint8]
    generator: torch.Generator | None = None
    faces: Sequence[Face] | None = None
    error: Exception | None = None
    grey: bool = False


@dataclass(frozen=True, eq=False)
class StreamResult:
    """What became of a photo.

    Attributes:
        photo: as it went in; where a face was protected, with all faces found, those too small for it too.
        pixels: protected, uint8 RGB ``[H, W, 3]``; the original where there is an error.
        faces: a record of each protected face, from left to right; ``image_index`` is 0.
        error: why the photo is not protected, or None.
    """

    photo: StreamPhoto
    pixels: NDArray[np.uint8]
    faces: tuple[FaceResult, ...] = ()
    error: Exception | None = None


@dataclass(eq=False)
class _OpenPhoto:
    """A photo some of whose faces are still being sampled."""

    photo: StreamPhoto
    faces: list[AlignedFace]
    x_org: Tensor  # [N, 3, 112, 112]
    landmarks: Tensor  # [N, 51, 2]
    mask: Tensor  # [N, 1, 112, 112]
    sampled: dict[int, SampledFace] = field(default_factory=dict)


def protect_stream(
    pipe: DeDiMPipeline,
    photos: Iterable[StreamPhoto],
    settings: DeDiMPreset,
    *,
    small_faces: Literal["error", "skip"] = "error",
    slots: int = 16,
) -> Iterator[StreamResult]:
    """Protect photos one after another, with ``slots`` faces in the networks all the time.

    Each photo gets what ``pipe(photo, preset=settings, generator=...)`` would give it, up to the rounding of other
    batch sizes. Photos are taken when there is room for them and come back as soon as all their faces are done, so
    their order may change and memory does not grow with their number. Faces are found in a thread of its own. What a
    photo provokes is in its result; the stream goes on.

    Args:
        pipe: its networks are used; its detector runs in another thread, so do not call it meanwhile.
        photos: may be endless.
        settings: of Algorithm 2; a named one is made by `resolve_preset`.
        small_faces: a face under 40 px is an "error", or "skip": left as it is, with a warning.
        slots: faces that are sampled together; halved whenever memory does not suffice.

    Raises:
        ValueError: ``slots`` is below 1.

    Example:
        >>> photos = (StreamPhoto(path, read_photo(path).pixels) for path in paths)  # doctest: +SKIP
        >>> for result in protect_stream(pipe, photos, PRESETS["fast"], slots=64):  # doctest: +SKIP
        ...     print(result.photo.owner, result.error or result.faces)
    """
    callback = chain_callbacks([settings.make_guidance()], (), pipe._callback_tensor_inputs)
    queue = FaceQueue(pipe._sampler(settings, callback), max_rounds=settings.max_rounds, slots=slots)

    def find(photo: StreamPhoto) -> tuple[StreamPhoto, list[AlignedFace] | Exception]:
        try:
            if photo.error is not None:
                raise photo.error
            found = list(pipe.face_detector(photo.pixels) if photo.faces is None else photo.faces)
            faces = find_faces(lambda _: found, photo.pixels, 0, small_faces, 2)
            return replace(photo, faces=found), faces
        except Exception as error:  # no face, or whatever this photo provokes
            return photo, error

    # one thread: the detector is not made for several
    for photo, found in map_ahead(find, photos, threads=1, ahead=_PHOTOS_AHEAD):
        error = found if isinstance(found, Exception) else _enqueue(pipe, queue, photo, found, settings)
        if error is not None:
            yield StreamResult(photo, photo.pixels, error=error)
        while queue.full:
            yield from _finished(pipe, queue, settings)
    while len(queue):
        yield from _finished(pipe, queue, settings)
    pipe.maybe_free_model_hooks()


@torch.no_grad()
def _enqueue(
    pipe: DeDiMPipeline, queue: FaceQueue, photo: StreamPhoto, faces: list[AlignedFace], settings: DeDiMPreset
) -> Exception | None:
    """Add the photo's faces to the queue, or say why that cannot be."""
    try:
        x_org = torch.stack([aligned.crop for aligned in faces]).to(pipe._execution_device)
        # a crowd has more faces than there are places
        check_embeddings(in_parts(pipe.face_encoder, x_org, queue.slots), len(faces))
        landmarks = in_parts(pipe.landmarker, x_org, queue.slots)
        mask = settings.make_mask(landmarks)
        mask = mask * torch.stack([inside_photo(face, photo.pixels.shape) for face in faces]).to(mask)
        opened = _OpenPhoto(photo, faces, x_org, landmarks, mask)
        generators = [child_generator(photo.generator) for _ in faces]
    except Exception as error:
        return error.with_traceback(None)
    for row, generator in enumerate(generators):
        queue.add(QueuedFace((opened, row), x_org[row], mask[row], generator))
    return None


def _finished(pipe: DeDiMPipeline, queue: FaceQueue, settings: DeDiMPreset) -> Iterator[StreamResult]:
    """Run a round; the photos whose last face is done with it."""
    for item in queue.run_round():
        opened, row = item.face.owner
        opened.sampled[row] = item
        if len(opened.sampled) == len(opened.faces):
            yield _close(pipe, opened, settings, queue.slots)


def _close(pipe: DeDiMPipeline, opened: _OpenPhoto, settings: DeDiMPreset, slots: int) -> StreamResult:
    """The photo's result; an error of one face is the photo's."""
    sampled = [opened.sampled[row] for row in range(len(opened.faces))]
    error = next((item.error for item in sampled if item.error is not None), None)
    if error is None:
        try:
            return _paste_and_measure(pipe, opened, sampled, settings, slots)
        except Exception as raised:
            error = raised.with_traceback(None)
    return StreamResult(opened.photo, opened.photo.pixels, error=error)


def _paste_and_measure(
    pipe: DeDiMPipeline, opened: _OpenPhoto, sampled: list[SampledFace], settings: DeDiMPreset, slots: int
) -> StreamResult:
    pixels = opened.photo.pixels
    for aligned, item, mask in zip(opened.faces, sampled, opened.mask.cpu(), strict=True):
        # the crop is blended with the mask already (line 9): only its support, or the feather counts twice
        pixels = paste_back(pixels, aligned, item.crop.cpu(), (mask > 0).float())
    pixels = as_written(pixels, grey=opened.photo.grey)  # colours that are lost may be what hid the face
    records = measure_faces(
        [pixels],
        [(0, aligned) for aligned in opened.faces],
        opened.x_org,
        opened.landmarks,
        pipe.face_encoder,
        threshold=settings.threshold,
        batch_size=slots,
        rounds=[item.rounds for item in sampled],
        unet_calls=[item.unet_calls for item in sampled],
    )
    return StreamResult(opened.photo, pixels, tuple(records))
