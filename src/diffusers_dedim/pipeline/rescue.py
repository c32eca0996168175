"""What becomes of each face: what is done with one that cannot be changed, and what is tried before one is given up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diffusers_dedim.errors import NoFaceError
from diffusers_dedim.faces import (
    ARCFACE_TEMPLATE,
    AlignedFace,
    Cover,
    Face,
    FaceChoice,
    FaceDetection,
    SmallFaces,
    align_face,
    choose_faces,
)
from diffusers_dedim.faces.find import SMALL_FACES, TOO_SMALL
from diffusers_dedim.pipeline.output import Treatment
from diffusers_dedim.pipeline.presets import DeDiMPreset
from diffusers_dedim.pipeline.queue import SampledFace

Fallback = Literal["leave-out", "blur", "pixelate"]
FALLBACKS: tuple[str, ...] = get_args(Fallback)

ABOVE = "stayed above the threshold"  # the reason, see `FaceResult`
_TREATMENTS: dict[str, Treatment] = {"leave-out": "left", "blur": "blurred", "pixelate": "pixelated"}
_COVERS: dict[Treatment, Cover] = {"blurred": "blur", "pixelated": "pixelate"}


def treatment_of(fallback: Fallback | SmallFaces) -> Treatment:
    """What a word of ``fallback`` or ``small_faces`` makes of a face that cannot be changed.

    Whoever finds, anywhere, that a face is not to be changed or did not come out well treats it by this, and gives the
    reason in a few words: `Subject.reason`, and then `FaceResult.reason`.

    Example:
        >>> treatment_of("blur"), treatment_of("leave-out")
        ('blurred', 'left')
    """
    return _TREATMENTS.get(fallback, "left")


def cover_of(treatment: Treatment) -> Cover | None:
    """How `cover_face` makes a face that is treated so; None where it is not covered."""
    return _COVERS.get(treatment)


@runtime_checkable
class EmbeddingChoice(Protocol):
    """Chooses faces by what the pipeline's recogniser says of them (`PersonChoice`)."""

    def choose(self, embeddings: Tensor) -> list[bool]:
        """Which faces with these embeddings ``[N, D]``, or ``[N, K, D]`` of K recognisers, are to be protected."""
        ...


Choice = FaceChoice | EmbeddingChoice
"""What ``select_faces`` may be."""


@dataclass(frozen=True)
class FacePolicy:
    """Which faces are changed, and what becomes of those that cannot be.

    Attributes:
        small_faces: a face under 40 px is an "error", or "skip": left as it is, or "blur" or "pixelate": covered.
        fallback: a face that stays above the threshold whatever is tried stays as it is ("leave-out": its photo is not
            to be handed out), or is covered.
        select_faces: says which faces are to be protected; None for all of them.

    Raises:
        ValueError: a word is another one.
    """

    small_faces: SmallFaces = "blur"
    fallback: Fallback = "leave-out"
    select_faces: Choice | None = None

    def __post_init__(self) -> None:
        for name, known in (("small_faces", SMALL_FACES), ("fallback", FALLBACKS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {list(known)}, got {getattr(self, name)!r}.")

    @property
    def hidden(self) -> Fallback | SmallFaces:
        """What becomes of a face that has too little to change at any size: covered like a small one, or the fallback.

        Too little of it is visible, or its points contradict one another, as of heads that are turned away.

        Example:
            >>> FacePolicy().hidden, FacePolicy(small_faces="skip").hidden
            ('blur', 'leave-out')
        """
        return self.small_faces if self.small_faces in _TREATMENTS else self.fallback


@dataclass(frozen=True, eq=False)
class Subject:
    """A face that something is to be done with.

    Attributes:
        aligned: cut out.
        treatment: what is to be done; "changed" where it is to be sampled.
        reason: why it is not, in a few words.
    """

    aligned: AlignedFace
    treatment: Treatment = "changed"
    reason: str = ""


@dataclass(frozen=True, eq=False)
class FoundFaces:
    """The faces of a photo.

    Attributes:
        subjects: those that something is to be done with, in the order in which they were found.
        small: chosen, too small to be changed, and left as they are.
        unchosen: faces that are not to be protected.
    """

    subjects: tuple[Subject, ...]
    small: tuple[Face, ...] = ()
    unchosen: tuple[Face, ...] = ()

    @property
    def changed(self) -> int:
        """How many of them are to be sampled."""
        return sum(subject.treatment == "changed" for subject in self.subjects)

    def only(self, chosen: Sequence[bool]) -> FoundFaces:
        """Without the subjects that are not chosen.

        Raises:
            NoFaceError: that leaves none.
        """
        pairs = list(zip(self.subjects, chosen, strict=True))
        if not any(chosen):
            raise NoFaceError(
                f"none of the {len(pairs)} faces found is one to be protected, so nothing was changed."
            )
        refused = tuple(subject.aligned.face for subject, keep in pairs if not keep)
        kept = tuple(subject for subject, keep in pairs if keep)
        return FoundFaces(kept, self.small, (*self.unchosen, *refused))


def find_faces(
    photo: NDArray[np.uint8],
    faces: Sequence[Face] | Sequence[AlignedFace] | None,
    detector: FaceDetection,
    policy: FacePolicy,
    index: int = 0,
) -> FoundFaces:
    """Find the faces of a photo and settle what is to be done with each.

    Args:
        photo: uint8 RGB ``[H, W, 3]``.
        faces: found already, or cut out already, which are all to be changed; None asks the detector.
        detector: photo -> faces.
        policy: what is wanted.
        index: number of the photo, for the messages.

    Raises:
        NoFaceError, FaceTooSmallError: as `choose_faces`.
        TypeError: what was found are no `Face` records.
        ValueError: a face lies outside the photo.
    """
    given = detector(photo) if faces is None else faces
    for face in given:
        if not isinstance(face, (Face, AlignedFace)):
            raise TypeError(f"faces: expected `Face` records, got {type(face).__name__}; mend the detector.")
    cut_out = [Subject(face) for face in given if isinstance(face, AlignedFace)]
    if cut_out:
        return FoundFaces(tuple(cut_out))
    found = [face for face in given if isinstance(face, Face)]
    select = None if isinstance(policy.select_faces, EmbeddingChoice) else policy.select_faces
    large, small = choose_faces(found, index, policy.small_faces, select)
    chosen, too_small = set(map(id, [*large, *small])), set(map(id, small))
    skipped = small if policy.small_faces == "skip" else []
    unchosen = tuple(face for face in found if id(face) not in chosen)
    subjects = []
    for face in found:
        if id(face) in too_small and not skipped:
            subjects.append(Subject(_align_anyhow(photo, face), treatment_of(policy.small_faces), TOO_SMALL))
        elif id(face) in chosen - too_small and face.reason:
            subjects.append(Subject(_align_anyhow(photo, face), treatment_of(policy.hidden), face.reason))
        elif id(face) in chosen - too_small:
            subjects.append(Subject(align_face(photo, face)))
    return FoundFaces(tuple(subjects), tuple(skipped), unchosen)


def _align_anyhow(photo: NDArray[np.uint8], face: Face) -> AlignedFace:
    """Cut out a face whose points may contradict one another: it is only scored by them."""
    try:
        return align_face(photo, face)
    except ValueError:
        x0, y0, x1, y1 = face.box
        side = max(x1 - x0, y1 - y0)
        corner = np.array([(x0 + x1 - side) / 2, (y0 + y1 - side) / 2])
        return align_face(photo, replace(face, landmarks=corner + ARCFACE_TEMPLATE / 112 * side))


ATTEMPTS = ("first", "another draw", "more rounds", "stronger")
"""What is tried on a face, in this order, until it ends below the threshold, as `FaceResult.attempts` has it: as set;
from the beginning with other noise; on from the better of the two; from the beginning, pushed further, in a wider mask
and without keeping the eyes. A face of which little is visible gets the first and the last."""

_PUSH, _FURTHER, _WIDER = 1.5, 1.5, 1.2


def stronger(settings: DeDiMPreset) -> DeDiMPreset:
    """The settings of the last attempt: what counts as done stays, what is done for it grows.

    Example:
        >>> from diffusers_dedim.pipeline.presets import PRESETS
        >>> stronger(PRESETS["fast"]).threshold == PRESETS["fast"].threshold
        True
    """
    return replace(
        settings,
        guidance_scale=settings.guidance_scale * _PUSH,
        threshold_margin=max(
            settings.threshold_margin, min(settings.threshold_margin * _FURTHER, settings.threshold / 2)
        ),
        mask_radius=settings.mask_radius * _WIDER,
        keep_eyes=0.0,
        keep_between_brows=0.0,
        contrast_masking=0.0,
        spread=0.0,
        spared_structure=0.0,
        near_push=1.0,
        realism=settings.realism / 2,
    )


def attempts(settings: DeDiMPreset, *, told_apart: bool = False) -> list[DeDiMPreset]:
    """What each of `ATTEMPTS` that the settings allow for is made with.

    Args:
        settings: as they are set.
        told_apart: whether the face is to be told apart from others (`DeDiMPreset.told_apart`); the last attempt is the
            same for all, for what counts there is that the face is hidden at all.

    Example:
        >>> from diffusers_dedim.pipeline.presets import PRESETS
        >>> len(attempts(PRESETS["fast"])), len(attempts(PRESETS["paper"]))
        (4, 1)
    """
    as_set = [settings.told_apart() if told_apart else settings] * min(
        len(ATTEMPTS) - 1, 1 + settings.retries
    )
    return [*as_set, stronger(settings)] if settings.retries >= len(ATTEMPTS) - 1 else as_set


@dataclass(eq=False)
class Tries:
    """What was tried on one face.

    Attributes:
        names: of the attempts, in order, the one under way included.
        latest, best: what the last one, and the one with the lowest match probability in the finished photo, gave.
        probability: the best one's, in the finished photo.
        rounds, unet_calls: of all of them.
    """

    names: list[str] = field(default_factory=lambda: [ATTEMPTS[0]])
    latest: SampledFace | None = None
    best: SampledFace | None = None
    probability: float = 1.0
    rounds: int = 0
    unet_calls: int = 0

    def add(self, item: SampledFace) -> None:
        """An attempt is over."""
        self.latest = item
        self.rounds += item.rounds
        self.unet_calls += item.unet_calls

    def judge(self, probability: float) -> None:
        """The match probability of the latest one in the finished photo is known; of two as good the earlier stays."""
        if self.best is None or probability < self.probability:
            self.best, self.probability = self.latest, probability
