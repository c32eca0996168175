"""What became of a video, counted frame by frame without keeping the frames."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from diffusers_dedim.faces.find import TOO_SMALL
from diffusers_dedim.pipeline.output import Treatment
from diffusers_dedim.video.frame_faces import FrameFace


@dataclass(frozen=True)
class PersonReport:
    """One person of a video.

    Attributes:
        person: number, from 0, in the order of appearance.
        box: in the first frame with that face, px.
        frames: frames with the face.
        below: frames in which it ended below the threshold.
        covered: frames in which it is blurred or pixelated.
        left: frames in which it stayed above the threshold or as it was: **unprotected**.
        similarity: the highest cosine of a frame that was changed; nan where there is none.
        mean_similarity: the mean one.
        rounds, unet_calls: in all frames together.
        treatment: what was done in most frames.
    """

    person: int
    box: tuple[float, float, float, float]
    frames: int
    below: int
    covered: int
    left: int
    similarity: float
    mean_similarity: float
    rounds: int
    unet_calls: int
    treatment: Treatment

    @property
    def is_protected(self) -> bool:
        """Whether the face ended below the threshold or covered in all frames."""
        return self.left == 0


@dataclass(frozen=True)
class VideoReport:
    """What became of a video.

    Attributes:
        frames: how many there are.
        face_frames: faces over all frames.
        below: of these, those that ended below the threshold.
        covered: those that are blurred or pixelated.
        carried: those that took no round: their person's change was carried on.
        unprotected_frames: frames with a face that stayed above the threshold, or cannot be changed.
        left_frames: frames with a face that was left as it was because it is small: **unprotected**, as was asked for.
        people: each person.
        notes: what reading and writing could not keep, in words.
        seconds: spent.
    """

    frames: int
    face_frames: int
    below: int
    covered: int
    carried: int
    unprotected_frames: int
    left_frames: int
    people: tuple[PersonReport, ...]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def below_share(self) -> float:
        """Share of the faces of all frames that ended below the threshold; nan without a face."""
        return self.below / self.face_frames if self.face_frames else math.nan

    @property
    def summary(self) -> str:
        """The numbers in a line of words.

        Example:
            >>> FrameTally().report().summary
            '0 frames, 0 people'
        """
        words = [
            f"{self.frames} frames",
            f"{len(self.people)} {'person' if len(self.people) == 1 else 'people'}",
        ]
        if self.face_frames:
            words.append(f"{100 * self.below_share:.4g} % of {self.face_frames} faces below the threshold")
        if self.covered:
            words.append(f"{self.covered} covered")
        if self.unprotected_frames:
            words.append(f"{self.unprotected_frames} frames NOT protected")
        if self.left_frames:
            words.append(f"small faces left UNPROTECTED in {self.left_frames} frames")
        return ", ".join(words)


@dataclass(eq=False)
class _PersonTally:
    box: tuple[float, float, float, float]
    frames: int = 0
    below: int = 0
    covered: int = 0
    left: int = 0
    highest: float = math.nan
    total: float = 0.0
    changed: int = 0
    treatments: Counter[Treatment] = field(default_factory=Counter)
    rounds: int = 0
    unet_calls: int = 0

    def add(self, face: FrameFace) -> None:
        self.frames += 1
        self.treatments[face.treatment] += 1
        self.below += face.reached_threshold
        self.covered += face.treatment in ("blurred", "pixelated")
        self.left += not face.is_protected
        self.rounds += face.rounds
        self.unet_calls += face.unet_calls
        if face.treatment == "changed":
            self.changed += 1
            self.total += face.similarity
            self.highest = face.similarity if self.changed == 1 else max(self.highest, face.similarity)

    def report(self, person: int) -> PersonReport:
        mean = self.total / self.changed if self.changed else math.nan
        return PersonReport(
            person, self.box, self.frames, self.below, self.covered, self.left, self.highest, mean, self.rounds,
            self.unet_calls, self.treatments.most_common(1)[0][0],
        )  # fmt: skip


@dataclass(eq=False)
class FrameTally:
    """Counts frames and faces as they come; its size grows with the people, not with the frames.

    Attributes:
        frames: how many were added.
    """

    frames: int = 0
    _carried: int = 0
    _unprotected: int = 0
    _left: int = 0
    _people: dict[int, _PersonTally] = field(default_factory=dict)

    def add(self, faces: Sequence[FrameFace]) -> None:
        """Count a frame with these faces."""
        self.frames += 1
        open_faces = [face for face in faces if not face.is_protected]
        self._unprotected += any(face.reason != TOO_SMALL for face in open_faces)
        self._left += any(face.reason == TOO_SMALL for face in open_faces)
        for face in faces:
            self._carried += face.treatment == "changed" and face.rounds == 0
            self._people.setdefault(face.person, _PersonTally(face.box)).add(face)

    def report(self, notes: tuple[str, ...] = (), seconds: float = 0.0) -> VideoReport:
        """The numbers so far."""
        people = tuple(tally.report(person) for person, tally in sorted(self._people.items()))
        return VideoReport(
            frames=self.frames,
            face_frames=sum(person.frames for person in people),
            below=sum(person.below for person in people),
            covered=sum(person.covered for person in people),
            carried=self._carried,
            unprotected_frames=self._unprotected,
            left_frames=self._left,
            people=people,
            notes=notes,
            seconds=seconds,
        )
