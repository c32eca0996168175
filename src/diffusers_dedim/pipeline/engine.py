"""One engine under `DeDiMPipeline`: faces of the next photos take the places of those that are done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusers_dedim.diffusion.noise import FaceNoise
from diffusers_dedim.diffusion.sampling import SampleResult
from diffusers_dedim.faces import (
    AlignedFace,
    FaceDetection,
    align_face,
    cover_face,
    inside_photo,
    landmark_mask,
    paste_back,
    visible_share,
)
from diffusers_dedim.faces.visible import HALF_HIDDEN
from diffusers_dedim.images.modes import as_written, is_neutral
from diffusers_dedim.pipeline.album import Album, AlbumFace, AlbumQueue
from diffusers_dedim.pipeline.components import check_embeddings
from diffusers_dedim.pipeline.device import in_parts
from diffusers_dedim.pipeline.doubts import HIDDEN
from diffusers_dedim.pipeline.inputs import child_generator
from diffusers_dedim.pipeline.output import FaceResult, Treatment, measure_faces
from diffusers_dedim.pipeline.photos import StreamPhoto, StreamResult
from diffusers_dedim.pipeline.presets import DeDiMPreset
from diffusers_dedim.pipeline.queue import FaceQueue, QueuedFace, SampledFace
from diffusers_dedim.pipeline.rescue import (
    ABOVE,
    ATTEMPTS,
    EmbeddingChoice,
    FacePolicy,
    FoundFaces,
    Subject,
    Tries,
    attempts,
    cover_of,
    find_faces,
    treatment_of,
)
from diffusers_dedim.prefetch import map_ahead

_PHOTOS_AHEAD = 4  # searched for faces while others are sampled; each is held in memory


@dataclass(frozen=True, eq=False)
class Networks:
    """What the engine works with; it does not know the pipeline.

    Attributes:
        detector: photo -> its faces.
        landmarker: crops ``[N, 3, 112, 112]`` in [-1, 1] -> 51 landmarks ``[N, 51, 2]``, crop px.
        face_encoder: such crops -> unit embeddings.
        sample: settings -> `sample_dedim` with all that does not depend on the faces put in.
        device: where the networks compute.
        second_look: (N aligned faces, their crops, their landmarks) -> for each why it must not be changed, in a few
            words, empty where it may; and the factor ``[N, 1, 112, 112]`` of its mask, 0 where a pixel is to stay.
            Asked once for the faces of a photo that would be changed; None has no doubts.
    """

    detector: FaceDetection
    landmarker: Callable[[Tensor], Tensor]
    face_encoder: nn.Module
    sample: Callable[[DeDiMPreset], Callable[..., SampleResult]]
    device: torch.device
    second_look: Callable[[Sequence[AlignedFace], Tensor, Tensor], tuple[list[str], Tensor]] | None = None


@dataclass(eq=False)
class _OpenPhoto:
    """A photo some of whose faces are still being sampled."""

    photo: StreamPhoto
    found: FoundFaces
    subjects: list[Subject]  # N
    x_org: Tensor  # [N, 3, 112, 112]
    landmarks: Tensor  # [N, 51, 2]
    gate: Tensor  # [N, 1, 112, 112], 0 where a pixel is to stay: beyond the photo, or covered
    tries: dict[int, Tries]  # of those that are to be changed
    awaited: int
    reference: Tensor  # [N, D] or [N, K, D], embeddings of x_org
    members: dict[int, AlbumFace] = field(default_factory=dict)  # in an album, of those to be changed

    def mask(self, settings: DeDiMPreset, row: int) -> Tensor:
        """Of a face, [1, 112, 112]."""
        mask: Tensor = settings.make_mask(self.landmarks[row : row + 1])[0] * self.gate[row]
        return mask

    def is_told_apart(self, row: int) -> bool:
        """Whether an album knows others of a face's person."""
        return row in self.members and bool(self.members[row].before)

    def is_half_hidden(self, row: int) -> bool:
        """Whether so little of a face is visible that this is why it cannot be changed far enough."""
        one = slice(row, row + 1)
        return bool(visible_share(landmark_mask(self.landmarks[one]), self.gate[one]) < HALF_HIDDEN)


class PhotoStream:
    """Photos in, protected photos out, with ``slots`` faces in the networks all the time.

    Photos are taken when there is room for them and come back as soon as all their faces are done, so their order may
    change and memory does not grow with their number. Faces are found in a thread of its own. A face's result does not
    depend on those beside it, up to the rounding of other batch sizes.

    A face that is above the threshold in the finished photo, or would be in its file (`StreamPhoto.packed`), is tried
    again, as often as the settings say (`rescue.ATTEMPTS`), each time with a generator that is the child of its last
    one; the best try is kept. One that stays above all the same is left or covered, as the policy says.

    Args:
        networks: see `Networks`; the detector is called in another thread.
        settings: of Algorithm 2.
        policy: which faces are changed, and what becomes of the others.
        slots: faces that are sampled together; halved whenever memory does not suffice.
        isolate: what a photo provokes is in its result and the stream goes on; False raises it.
        on_face: called whenever a face's first try is over.
        album: what is protected of each person already; gets what is protected here. Faces of a person it knows wait
            for those on earlier photos. None tells nobody apart.

    Raises:
        ValueError: ``slots`` is below 1.

    Example:
        >>> stream = PhotoStream(networks, PRESETS["fast"], slots=64)  # doctest: +SKIP
        >>> for result in stream.protect(photos):  # doctest: +SKIP
        ...     print(result.photo.owner, result.error or result.faces)
    """

    networks: Networks
    settings: DeDiMPreset
    policy: FacePolicy
    isolate: bool
    on_face: Callable[[], object] | None

    def __init__(
        self,
        networks: Networks,
        settings: DeDiMPreset,
        *,
        policy: FacePolicy | None = None,
        slots: int = 16,
        isolate: bool = True,
        on_face: Callable[[], object] | None = None,
        album: Album | None = None,
    ) -> None:
        self.networks, self.settings = networks, settings
        self.policy = policy or FacePolicy()
        self.isolate, self.on_face = isolate, on_face
        self._album = None if album is None else AlbumQueue(album)
        # the settings of each attempt, for who is told apart from nobody and from somebody; a queue for each
        self._attempts = {apart: attempts(settings, told_apart=apart) for apart in (False, True)}
        self._queues = {
            each: FaceQueue(networks.sample(each), max_rounds=each.max_rounds, slots=slots, isolate=isolate)
            for each in dict.fromkeys(chain(*self._attempts.values()))
        }
        self._queue = self._queues[settings]
        # from here on so much of the margin is used up that packing with loss may use up the rest
        self._near = settings.threshold - settings.threshold_margin / 2

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
            result = self._failed(item, found) if isinstance(found, Exception) else self._enqueue(item, found)
            if result is not None:
                yield result
            while any(queue.full for queue in self._queues.values()):
                yield from self._run_round()
        while any(map(len, self._queues.values())):
            yield from self._run_round()

    def _find(self, item: Any) -> tuple[Any, Any]:
        """The photo and its `FoundFaces`, or why there are none."""
        if not isinstance(item, StreamPhoto):
            return item, None
        if isinstance(item.faces, FoundFaces):
            return item, item.faces
        try:
            return item, find_faces(item.pixels, item.faces, self.networks.detector, self.policy)
        except Exception as error:  # no face, or whatever this photo provokes
            return item, error

    def _failed(self, photo: StreamPhoto, error: Exception) -> StreamResult:
        if not self.isolate:
            raise error
        # the traceback would keep a round's tensors alive
        return StreamResult(photo, photo.pixels, error=error.with_traceback(None))

    @torch.no_grad()
    def _enqueue(self, photo: StreamPhoto, found: FoundFaces) -> StreamResult | None:
        """Add the photo's faces to the queue; its result where none is to be changed, or that cannot be."""
        try:
            opened = self._open(photo, found)
            generators = {row: child_generator(photo.generator) for row in opened.tries}
            masks = {row: opened.mask(self.settings, row) for row in opened.tries}
            if self._album is not None and generators:
                entered = self._album.enter(opened.reference[list(generators)])
                opened.members = dict(zip(generators, entered, strict=True))
        except Exception as error:
            return self._failed(photo, error)
        for row, generator in generators.items():
            self._add(opened, row, masks[row], generator, self._settings(opened, row, 0))
        return None if generators else self._close(opened)

    def _settings(self, opened: _OpenPhoto, row: int, attempt: int) -> DeDiMPreset:
        """What a face is sampled with in an attempt."""
        return self._attempts[opened.is_told_apart(row)][attempt]

    def _add(
        self, opened: _OpenPhoto, row: int, mask: Tensor, generator: torch.Generator, settings: DeDiMPreset,
        begin: SampledFace | None = None,
    ) -> None:  # fmt: skip
        """Queue a face of a photo, to begin with the original or where an earlier attempt ended."""
        noise, member = FaceNoise(settings.reuse_noise), opened.members.get(row)
        face = QueuedFace((opened, row), opened.x_org[row], mask, generator, member=member, noise=noise)
        if begin is not None:
            face = replace(face, x_0=begin.crop, probability=begin.probability_history[-1])
        self._queues[settings].add(face)

    def _open(self, photo: StreamPhoto, found: FoundFaces) -> _OpenPhoto:
        """Look at the photo's faces with the networks, and settle the last doubts about who is changed."""
        slots, choice = self._queue.slots, self.policy.select_faces
        x_org = self._crops(found)
        # a crowd has more faces than there are places
        embeddings = in_parts(self.networks.face_encoder, x_org, slots)
        check_embeddings(embeddings, len(x_org))
        if isinstance(choice, EmbeddingChoice):
            chosen = list(choice.choose(embeddings))
            found, embeddings = found.only(chosen), embeddings[torch.tensor(chosen, dtype=torch.bool)]
            x_org = self._crops(found)
        landmarks = in_parts(self.networks.landmarker, x_org, slots)
        subjects, shape = list(found.subjects), photo.pixels.shape
        gate = torch.stack([inside_photo(each.aligned, shape) for each in subjects]).to(x_org)
        changed = [row for row, subject in enumerate(subjects) if subject.treatment == "changed"]
        if self.networks.second_look is not None and changed:
            reasons: list[str] = []
            for rows in (changed[start : start + slots] for start in range(0, len(changed), slots)):
                aligned = [subjects[row].aligned for row in rows]
                doubts, factor = self.networks.second_look(aligned, x_org[rows], landmarks[rows])
                reasons += doubts
                gate[rows] *= factor
            for row, reason in zip(changed, reasons, strict=True):
                if reason:
                    treatment = treatment_of(self.policy.hidden)
                    subjects[row] = replace(subjects[row], treatment=treatment, reason=reason)
        tries = {row: Tries() for row in changed if subjects[row].treatment == "changed"}
        return _OpenPhoto(photo, found, subjects, x_org, landmarks, gate, tries, len(tries), embeddings)

    def _crops(self, found: FoundFaces) -> Tensor:
        return torch.stack([subject.aligned.crop for subject in found.subjects]).to(self.networks.device)

    def _run_round(self) -> Iterator[StreamResult]:
        """Run a round of all that are under way; the photos whose last face is done with it."""
        # few faces get as far as the other queue: waiting for company there would keep their photos in memory
        for item in [item for queue in self._queues.values() if len(queue) for item in queue.run_round()]:
            opened, row = item.face.owner
            if self.on_face is not None and opened.tries[row].latest is None:
                self.on_face()
            opened.tries[row].add(item)
            opened.awaited -= 1
            if opened.awaited == 0:
                result = self._close(opened)
                if result is not None:
                    self._leave_album(opened, result)
                    yield result

    def _close(self, opened: _OpenPhoto) -> StreamResult | None:
        """The photo's result, or None where faces of it are tried again; an error of one face is the photo's."""
        for each in opened.tries.values():
            if each.latest is not None and each.latest.error is not None:
                return self._failed(opened.photo, each.latest.error)
        try:
            return self._finish(opened)
        except Exception as error:
            return self._failed(opened.photo, error)

    def _finish(self, opened: _OpenPhoto) -> StreamResult | None:
        shown = {row: each.latest for row, each in opened.tries.items()}
        covered: dict[int, Treatment] = {}
        pixels, records = self._paste_and_measure(opened, shown, covered)
        for row, each in opened.tries.items():
            each.judge(records[row].probability)
        hard = [row for row, each in opened.tries.items() if each.probability >= self.settings.threshold]
        again = {row: number for row in hard if (number := self._next_attempt(opened, row)) is not None}
        if again:
            self._try_again(opened, again)
            return None
        best = {row: each.best for row, each in opened.tries.items()}
        covered = {row: self._given_up(opened, row) for row in hard}
        covered = {row: treatment for row, treatment in covered.items() if treatment != "left"}
        if covered or any(best[row] is not shown[row] for row in best):
            pixels, records = self._paste_and_measure(opened, best, covered)
        small, unchosen = opened.found.small, opened.found.unchosen
        aligned = tuple(subject.aligned for subject in opened.subjects)
        return StreamResult(opened.photo, pixels, tuple(records), small, unchosen, aligned=aligned)

    def _given_up(self, opened: _OpenPhoto, row: int) -> Treatment:
        """What becomes of a face that stays above the threshold."""
        return treatment_of(self.policy.hidden if opened.is_half_hidden(row) else self.policy.fallback)

    @torch.no_grad()
    def _leave_album(self, opened: _OpenPhoto, result: StreamResult) -> None:
        """Let those who wait for faces of this photo know what became of them."""
        for row, member in opened.members.items():
            embedding = None
            # what is covered, or will not be handed out as protected, nobody is found by
            if (
                result.error is None
                and result.faces[row].treatment == "changed"
                and result.faces[row].is_protected
            ):
                crop = align_face(result.pixels, opened.subjects[row].aligned.face).crop
                embedding = self.networks.face_encoder(crop[None].to(opened.x_org))[0]
            if self._album is not None:
                self._album.leave(member, embedding)

    def _next_attempt(self, opened: _OpenPhoto, row: int) -> int | None:
        """Number of what is tried next on a face (`rescue.ATTEMPTS`), or None."""
        last, number = len(self._attempts[False]) - 1, ATTEMPTS.index(opened.tries[row].names[-1]) + 1
        if number > last:
            return None
        # where little is left to change, other noise or more of the same hardly ever helps
        return last if opened.is_half_hidden(row) else number

    def _try_again(self, opened: _OpenPhoto, again: Mapping[int, int]) -> None:
        """Queue faces of a photo for attempts with these numbers."""
        opened.awaited = len(again)
        for row, number in again.items():
            each = opened.tries[row]
            last, best = each.latest, each.best
            if last is None or best is None:  # they have been sampled: for the type checker
                continue
            settings, name = self._settings(opened, row, number), ATTEMPTS[number]
            each.names.append(name)
            begin = best if name == ATTEMPTS[2] else None
            generator = child_generator(last.face.generator)
            self._add(opened, row, opened.mask(settings, row), generator, settings, begin)

    def _paste_and_measure(
        self, opened: _OpenPhoto, shown: Mapping[int, SampledFace | None], covered: Mapping[int, Treatment]
    ) -> tuple[NDArray[np.uint8], list[FaceResult]]:
        """The photo with these tries, and covers over those that did not suffice; and the records of all its faces."""
        pixels = opened.photo.pixels
        for row, item in shown.items():
            if item is not None and row not in covered:
                # the crop is blended with the mask already (line 9): only its support, or the feather counts twice
                support = (item.face.mask > 0).float().cpu()
                pixels = paste_back(pixels, opened.subjects[row].aligned, item.crop.cpu(), support)
        grey = opened.photo.grey or is_neutral(opened.photo.pixels)
        pixels = as_written(pixels, grey=grey)  # colours that are lost may be what hid the face
        treatments = [covered.get(row, each.treatment) for row, each in enumerate(opened.subjects)]
        pairs = [
            (each.aligned.face, treatment)
            for each, treatment in zip(opened.subjects, treatments, strict=True)
        ]
        changed = [face for face, treatment in pairs if treatment == "changed"]
        for face, treatment in pairs:
            cover = cover_of(treatment)
            if cover is not None:
                pixels = cover_face(pixels, face, cover, changed)
        records = self._measure(opened, pixels, treatments)
        packed = opened.photo.packed
        if packed is not None and any(record.probability >= self._near for record in records):
            # what its file would show again is tried again, too
            records = self._measure(opened, packed(pixels), treatments)
        return pixels, records

    def _measure(
        self, opened: _OpenPhoto, pixels: NDArray[np.uint8], treatments: Sequence[Treatment]
    ) -> list[FaceResult]:
        tries = [opened.tries.get(row, Tries([])) for row in range(len(opened.subjects))]
        # after all faces are pasted, for one may lie over another
        records = measure_faces(
            [pixels],
            [(0, subject.aligned) for subject in opened.subjects],
            opened.x_org,
            opened.landmarks,
            self.networks.face_encoder,
            threshold=self.settings.threshold,
            batch_size=self._queue.slots,
            rounds=[each.rounds for each in tries],
            unet_calls=[each.unet_calls for each in tries],
        )
        return [
            replace(
                record, treatment=treatment, reason=_reason(opened, row, record, treatment), attempts=each
            )
            for row, (record, treatment, each) in enumerate(
                zip(records, treatments, (tuple(each.names) for each in tries), strict=True)
            )
        ]


def _reason(opened: _OpenPhoto, row: int, record: FaceResult, treatment: Treatment) -> str:
    """Why a face was not simply changed."""
    if opened.subjects[row].treatment != "changed":
        return opened.subjects[row].reason
    if treatment == "changed" and record.reached_threshold:
        return ""
    return HIDDEN if opened.is_half_hidden(row) else ABOVE
