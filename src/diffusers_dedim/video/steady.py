"""A steady face: each person wears one change from frame to frame, and it moves slowly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffusers_dedim.diffusion.matching import match_probability
from diffusers_dedim.diffusion.sampling import SampleResult
from diffusers_dedim.errors import FaceTooSmallError
from diffusers_dedim.faces import MIN_FACE_SIZE, inside_photo
from diffusers_dedim.faces.cover import Cover, cover_face
from diffusers_dedim.faces.visible import HALF_HIDDEN, MIN_VISIBLE
from diffusers_dedim.pipeline.device import in_parts
from diffusers_dedim.pipeline.presets import DeDiMPreset
from diffusers_dedim.pipeline.rescue import stronger
from diffusers_dedim.video.frame_faces import FrameFace, record, treatment_of
from diffusers_dedim.video.tracks import Network, PlacedFace
from diffusers_dedim.video.worn import STEPS, WornFace, note_hidden, paste, visible_part, wear

Pixels = NDArray[np.uint8]
Sampler = Callable[[DeDiMPreset], Callable[..., SampleResult]]
"""Settings -> `sample_dedim` with the networks bound, as `DeDiMPipeline.sampler` gives it."""

CODING_MARGIN = 0.04  # of h, so that neither coding nor another alignment lifts a face above it
_QUICK_ERROR = 0.005  # of a match probability by the quick recogniser
_AT_ONCE = 16  # crops that it gets together
_MOST_AHEAD = 8  # frames that are looked at together, as long as nobody needs more than what is worn
_CROP_MARGIN = 0.02  # of h, which carrying a crop's change into the frame takes
_DEPTH = 0.05  # how far below its usual aim a round goes, so that its change holds for the next frames
_DRIFT = 0.15  # share of the way to its target that a change moves in a frame
_SHORT = 0.4  # start of a short round, as a share of the preset's
_SHORT_STEPS = 0.6
_FEW_ROUNDS = 3
_BEGINNING = 2  # place of the try from the beginning, after short rounds and before stronger ones
_RESTS = 6  # frames from one time that all tries failed to the next that all are made; between them one short round
_STAYS = 12  # frames for which a round for the margin alone is not tried again, after one that did not help
# Times the smallest size, or the least that must be visible, from which on a face is changed again.
_GROWN = 1.15


class SteadyFaces:
    """Protect the faces of frame after frame.

    A frame begins with the change that its person wears. Where the face matches below h with it no denoiser is called.
    Else the change goes on to the target that the last round set, as little of that way as the frame needs; else a
    short round is run from there, always with the person's own noise, whose result is the next target; else whole
    rounds, all of them from the beginning, and, with ``retries``, some that push further. A target gives way to a
    better one only. What matches all the same is covered in this frame, or left, as ``fallback`` says; the next one
    begins with the best change so far and, for some frames, adds one short round at most.

    Args:
        sampler: see `Sampler`.
        face_encoder: crops ``[N, 3, 112, 112]`` in [-1, 1] -> unit embeddings; judges.
        settings: of Algorithm 2.
        device: where the networks compute.
        quick: the same recogniser with a small error, for frames that are clearly below h and for the choice among
            changes. None for itself.
        small_faces: what becomes of a face with too little to change, small or hidden: "blur", "pixelate"; of one under
            40 px also "skip" (left as it is) or "error".
        fallback: what becomes of one that cannot be brought below h: "blur", "pixelate", or "leave-out", which leaves
            it above.
        seed: of the noise of each person.

    Raises:
        FaceTooSmallError: by `protect`, with ``small_faces="error"``.
    """

    def __init__(
        self,
        sampler: Sampler,
        face_encoder: nn.Module,
        settings: DeDiMPreset,
        *,
        device: torch.device,
        quick: Network | None = None,
        small_faces: str = "blur",
        fallback: str = "blur",
        seed: int = 0,
    ) -> None:
        self.face_encoder: nn.Module = face_encoder
        self.quick: Network = quick or face_encoder
        self.settings: DeDiMPreset = settings
        self.device: torch.device = device
        self.small_faces: str = small_faces
        self.fallback: str = fallback
        self.seed: int = seed
        deep = deeper(settings)
        tries = [(shorter(deep), 1), (deep, min(_FEW_ROUNDS, deep.max_rounds)), (deep, deep.max_rounds)]
        if settings.retries:
            tries.append((stronger(deep), deep.max_rounds))
        self._tries = [(sampler(each), most) for each, most in tries]
        self._line = settings.threshold - min(CODING_MARGIN, settings.threshold / 4)
        self._ahead = 1

    @torch.no_grad()
    def protect_all(
        self, frames: Sequence[tuple[Pixels, Sequence[PlacedFace]]]
    ) -> Iterator[tuple[Pixels, list[FrameFace]]]:
        """Protect frames after one another; where people can go on wearing what they wear, several in one look.

        Args:
            frames: uint8 RGB ``[H, W, 3]`` and its faces, of each.

        Yields:
            As `protect`, for each frame.
        """
        start = 0
        while start < len(frames):
            some = frames[start : start + self._ahead]
            done = self._carry(some) if len(some) > 1 else []
            yield from done
            start += len(done)
            is_carried = len(done) == len(some)
            if not is_carried:
                result, faces = self.protect(*frames[start])
                yield result, faces
                start += 1
                is_carried = len(some) == 1 and not any(face.rounds for face in faces)
            self._ahead = min(2 * self._ahead, _MOST_AHEAD) if is_carried else 1

    def _carry(
        self, frames: Sequence[tuple[Pixels, Sequence[PlacedFace]]]
    ) -> list[tuple[Pixels, list[FrameFace]]]:
        """The first of these frames whose faces are all clearly below h as they are dressed; others change nothing."""
        begun, states = [], []
        for pixels, placed in frames:
            states.append([(each.person, vars(each.person).copy()) for each in placed])
            covered, records = self._set_aside(placed)
            worn = self._dress([each for each in placed if each not in covered], pixels.shape)
            if any(each.person.target is None for each in worn):
                break
            result, seen = paste(pixels, worn)
            # covered now: what a person is in the frames to come decides nothing here
            begun.append((self._cover(result, covered, worn), records, worn, seen))
        crops = [crop for *_, seen in begun for crop in seen]
        embeddings = iter(in_parts(self.quick, torch.stack(crops).to(self.device), _AT_ONCE) if crops else ())
        done = []
        for result, records, worn, _ in begun:
            self._judge_worn(worn, [next(embeddings) for _ in worn])
            if any(each.probability >= self._line_of(each) - _QUICK_ERROR for each in worn):
                break
            records += [self._changed(each) for each in worn]
            done.append((result, records))
        for person, state in [pair for each in reversed(states[len(done) :]) for pair in each]:
            vars(person).update(state)
        return done

    @torch.no_grad()
    def protect(self, pixels: Pixels, placed: Sequence[PlacedFace]) -> tuple[Pixels, list[FrameFace]]:
        """Protect the faces of the next frame.

        Args:
            pixels: uint8 RGB ``[H, W, 3]``.
            placed: its faces.

        Returns:
            The frame with its faces changed or covered, and a record of each.
        """
        covered, records = self._set_aside(placed)
        worn = self._dress([each for each in placed if each not in covered], pixels.shape)
        result = self._try_on(pixels, worn)
        while short := [each for each in worn if self._may_go_on(each)]:
            for each in short:
                self._go_on(each)
            result = self._try_on(pixels, worn)
        if any(each.probability > each.best[0] for each in worn):  # another try was better than the last
            for each in worn:
                each.crop = each.best[1]
            result = self._try_on(pixels, worn)
        for each in worn:
            line = self._line_of(each)
            if each.probability >= line and each.tries:
                each.person.settled_for = _STAYS
            is_above = each.probability >= self.settings.threshold
            if (is_above or (each.is_passing and each.probability >= line)) and self.fallback != "leave-out":
                each.person.tired_for = each.person.tired_for or _RESTS * is_above
                covered.append(each.placed)
                records.append(record(each.placed, treatment_of(self.fallback), each.rounds, each.unet_calls))
            else:
                records.append(self._changed(each))
        return self._cover(result, covered, worn), records

    def _changed(self, each: WornFace) -> FrameFace:
        """The record of a face that goes into the video as it is dressed."""
        if each.probability < self.settings.threshold:
            each.person.result = each.best[2]
        return record(
            each.placed, "changed", each.rounds, each.unet_calls, each.probability, self.settings.threshold
        )

    def _set_aside(self, placed: Sequence[PlacedFace]) -> tuple[list[PlacedFace], list[FrameFace]]:
        """Faces that are not changed in this frame, and what is said of them."""
        aside, records = [], []
        for each in placed:
            person, size = each.person, each.aligned.face.size
            person.small = size < MIN_FACE_SIZE * (_GROWN if person.small else 1)
            share = visible_part(each)
            person.hidden = share < MIN_VISIBLE * (_GROWN if person.hidden else 1)
            note_hidden(person, share < HALF_HIDDEN * (_GROWN if person.half_hidden else 1))
            word = self._word(each)
            if person.small and word == "error":
                raise FaceTooSmallError(
                    f"a face of {size:.0f} px is smaller than {MIN_FACE_SIZE} px and cannot be changed; use a larger "
                    "video, or small_faces='blur' to make such faces unrecognisable."
                )
            if person.small or person.hidden or each.aligned.face.reason:
                aside.append(each)
                records.append(record(each, "left" if word == "skip" else treatment_of(word)))
        return aside, records

    def _word(self, placed: PlacedFace) -> str:
        """What becomes of a face that is not changed: one with too little to change is covered like a small one."""
        person = placed.person
        hidden = person.hidden or bool(placed.aligned.face.reason)
        is_small = person.small or (hidden and self.small_faces in ("blur", "pixelate"))
        return self.small_faces if is_small else self.fallback

    def _dress(self, placed: Sequence[PlacedFace], shape: tuple[int, ...]) -> list[WornFace]:
        """The faces with the changes of their people on."""
        if not placed:
            return []
        x_org = torch.stack([each.aligned.crop for each in placed]).to(self.device)
        mask = self.settings.make_mask(torch.stack([each.landmarks for each in placed]))
        mask = mask * torch.stack([inside_photo(each.aligned, shape) for each in placed]).to(mask)
        seen = [torch.ones_like(mask[0]) if each.gate is None else each.gate for each in placed]
        mask = mask * torch.stack(seen).to(mask)
        worn = []
        for row, each in enumerate(placed):
            person = each.person
            person.settled_for = max(0, person.settled_for - 1)
            person.tired_for = max(0, person.tired_for - 1)
            if person.change is not None and person.target is not None:
                person.change = torch.lerp(person.change, person.target, _DRIFT)
            worn.append(WornFace(each, x_org[row], mask[row], wear(x_org[row], mask[row], person)))
        return worn

    def _try_on(self, pixels: Pixels, worn: Sequence[WornFace]) -> Pixels:
        """The frame with these faces, which get their probability from it: its 8 bits are what counts."""
        if not worn:
            return pixels
        result, crops = paste(pixels, worn)
        self._judge_worn(worn, list(self.face_encoder(torch.stack(crops).to(self.device))))
        return result

    def _judge_worn(self, worn: Sequence[WornFace], embeddings: Sequence[Tensor]) -> None:
        """Give faces their probability by their embeddings in the frame, and note it where it is their best."""
        if not worn:
            return
        values = self._judge(torch.stack(list(embeddings)), worn).tolist()
        for each, value, embedding in zip(worn, values, embeddings, strict=True):
            each.probability = value
            each.best = min(each.best, (value, each.crop, embedding), key=lambda known: known[0])

    def _judge(self, embeddings: Tensor, worn: Sequence[WornFace]) -> Tensor:
        """Match probability ``[N]`` with the frame's own original or the person's mean, the higher one."""
        own = torch.stack([each.placed.embedding for each in worn])
        mean = torch.stack([each.person.embedding for each in worn])
        return torch.maximum(match_probability(embeddings, own), match_probability(embeddings, mean))

    def _line_of(self, each: WornFace) -> float:
        """The probability below which a face is done.

        Who is half hidden for some frames is placed by few points, so less exactly, and keeps twice the margin.
        """
        return 2 * self._line - self.settings.threshold if each.is_passing else self._line

    def _may_go_on(self, each: WornFace) -> bool:
        """Whether a face has tries left: the margin below h is worth steps, and now and then one short round."""
        if each.probability < self._line_of(each):
            return False
        if each.is_passing:
            return each.has_steps
        if each.probability < self.settings.threshold:
            return each.has_steps or (each.tries < 1 and not each.person.settled_for)
        most = 1 if each.person.tired_for else len(self._tries)
        return bool(each.steps) or each.tries < most

    def _go_on(self, each: WornFace) -> None:
        """On to the target, if that is not reached yet; else to a new one."""
        if each.has_steps:
            self._step(each)
            return
        each.steps = ()
        if self._may_go_on(each):
            self._sample(each)

    def _step(self, each: WornFace) -> None:
        """Go on to the target, as little as the frame needs."""
        person = each.person
        if person.change is None or person.target is None:
            return
        changes = [torch.lerp(person.change, person.target, share) for share in each.steps]
        crops = torch.stack([wear(each.x_org, each.mask, person, change) for change in changes])
        values = self._judge(self.quick(crops), [each] * len(crops)).tolist()
        line = self._line_of(each) - _CROP_MARGIN
        place = next((row for row, value in enumerate(values) if value < line), len(values) - 1)
        person.change, each.crop = changes[place], crops[place]
        # where the frame needs more than the crop says, the rest of the way
        each.steps = (1.0,) if place < len(values) - 1 else ()

    def _sample(self, each: WornFace) -> None:
        """Run a round, or rounds; where they end lower than the target does, they set a new one."""
        person, first = each.person, each.person.target is None
        number = _BEGINNING if first else each.tries
        each.tries += not first
        sample, rounds = self._tries[number]
        standing = wear(each.x_org, each.mask, person, person.target)
        start = each.x_org if number == _BEGINNING else standing
        originals = torch.stack([each.placed.embedding, person.embedding])
        values = match_probability(self.quick(start[None]).expand_as(originals), originals)
        # of whole numbers: the same in every process
        seed = hash((self.seed, person.number, number, first, person.draw)) % 2**62
        result = sample(
            each.x_org[None],
            each.mask[None],
            generators=[torch.Generator().manual_seed(seed)],
            max_rounds=rounds,
            x_0=start[None],
            probability=values.amax()[None],
            reference=originals[values.argmax()][None],
            avoid=None if person.avoid is None else person.avoid[None],
        )
        each.rounds += result.rounds[0]
        each.unet_calls += result.unet_calls[0]
        ends = self.quick(torch.stack([result.crops[0], standing]))
        new, old = self._judge(ends, [each, each]).tolist()
        if new >= old and not first:
            person.draw += 1
            return
        person.target, person.gate = result.crops[0] - each.x_org, each.mask
        if not person.half_hidden:
            person.whole = person.target, person.gate
        each.steps = STEPS
        if first:
            person.change = person.target
        self._step(each)

    def _cover(self, pixels: Pixels, covered: Sequence[PlacedFace], worn: Sequence[WornFace]) -> Pixels:
        beside = [each.placed.aligned.face for each in worn if each.placed not in covered]
        for each in covered:
            word = self._word(each)
            if word in ("blur", "pixelate"):
                cover: Cover = "blur" if word == "blur" else "pixelate"
                pixels = cover_face(pixels, each.aligned.face, cover, beside)
        return pixels


def deeper(settings: DeDiMPreset) -> DeDiMPreset:
    """Settings whose rounds end further below h, so that what they make holds for frames to come."""
    margin = min(settings.threshold_margin + _DEPTH, settings.threshold / 2)
    return replace(settings, threshold_margin=max(margin, settings.threshold_margin))


def shorter(settings: DeDiMPreset) -> DeDiMPreset:
    """Settings of a short round: with less noise and fewer steps it changes less of what it begins with."""
    start = max(1, math.ceil(settings.start_timestep * _SHORT))
    steps = min(start, max(1, math.ceil(settings.num_inference_steps * _SHORT_STEPS)))
    return replace(settings, start_timestep=start, num_inference_steps=steps)
