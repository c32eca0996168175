"""Faces that wait for the networks, and those that are in them: a round at a time, each on its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from diffusers_dedim.diffusion.noise import FaceNoise
from diffusers_dedim.diffusion.sampling import SampleResult
from diffusers_dedim.pipeline.album import AlbumFace
from diffusers_dedim.pipeline.device import is_out_of_memory


@dataclass(frozen=True, eq=False)
class QueuedFace:
    """A face that waits to be sampled.

    Attributes:
        owner: whatever tells the caller whose face it is.
        x_org: aligned crop ``[3, H, W]`` in [-1, 1].
        mask: ``[1, H, W]`` in [0, 1]; 1 = sampled, 0 = original.
        generator: of this face alone, so that its result does not depend on who is sampled beside it.
        x_0, probability: crop ``[3, H, W]`` and match probability at which earlier rounds ended, to go on from there;
            None for the beginning.
        member: its place in an album: it waits for those of its person that came before it, and is told apart from
            what became of them. None where there is no album.
        noise: what it remembers of the noise of its rounds; forgotten once it is done.
    """

    owner: Any
    x_org: Tensor
    mask: Tensor
    generator: torch.Generator
    x_0: Tensor | None = None
    probability: float = 1.0
    member: AlbumFace | None = None
    noise: FaceNoise = field(default_factory=FaceNoise)


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
    """Run Algorithm 2 on a stream of faces, round by round, on as many of them as there are places.

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
        isolate: an error of the sampler is recorded with the face that is to blame; False raises it.

    Raises:
        ValueError: ``slots`` or ``max_rounds`` is below 1.

    Example:
        >>> queue = FaceQueue(sample, max_rounds=12, slots=64)  # doctest: +SKIP
        >>> queue.add(QueuedFace("me", x_org, mask, torch.Generator().manual_seed(0)))  # doctest: +SKIP
        >>> while len(queue):  # doctest: +SKIP
        ...     for sampled in queue.run_round():
        ...         print(sampled.face.owner, sampled.rounds)
    """

    def __init__(
        self, sample: Callable[..., SampleResult], *, max_rounds: int, slots: int, isolate: bool = True
    ) -> None:
        for name, value in (("max_rounds", max_rounds), ("slots", slots)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}.")
        self._sample = sample
        self.max_rounds: int = max_rounds
        self.slots: int = slots
        self.isolate = isolate
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
        begin = face.x_org if face.x_0 is None else face.x_0
        self._waiting.append(SampledFace(face, begin, (face.probability,)))

    def run_round(self) -> list[SampledFace]:
        """Fill the free places, run one round, and return the faces that are done with it, if any."""
        self._fill()
        after = self._advance(self._active)
        self._active = [face for face in after if not self._done(face)]
        done = [face for face in after if self._done(face)]
        for each in done:
            each.face.noise.forget()
        return done

    def _fill(self) -> None:
        """Give the free places to the first that wait for nobody of their album."""
        held: list[SampledFace] = []
        while self._waiting and len(self._active) < self.slots:
            item = self._waiting.popleft()
            ready = item.face.member is None or item.face.member.ready
            (self._active if ready else held).append(item)
        self._waiting.extendleft(reversed(held))

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
            out_of_memory = is_out_of_memory(error)
            if not self.isolate and not (out_of_memory and len(faces) > 1):
                raise
            if len(faces) == 1:
                # the traceback would keep the round's tensors alive
                return [replace(faces[0], error=error.with_traceback(None))]
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
            noises=[item.face.noise for item in faces],
            **_to_avoid([item.face.member for item in faces], x_org),
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


def _to_avoid(members: Sequence[AlbumFace | None], x_org: Tensor) -> dict[str, Tensor]:
    """The sampler's ``avoid`` for faces, rows of zeros where one has fewer; nothing where nobody has any."""
    avoid = [None if member is None else member.avoid for member in members]
    known = [each for each in avoid if each is not None and len(each)]
    if not known:
        return {}
    padded = x_org.new_zeros(len(members), max(map(len, known)), *known[0].shape[1:])
    for row, each in enumerate(avoid):
        if each is not None:
            padded[row, : len(each)] = each.to(padded)
    return {"avoid": padded}
