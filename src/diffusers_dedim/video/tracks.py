"""Faces from frame to frame: detected on some, followed on those between, with points that do not tremble."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusers_dedim.faces import (
    ARCFACE_TEMPLATE,
    AlignedFace,
    Face,
    FaceDetection,
    align_face,
    contradictions,
    estimate_similarity,
    landmark_mask,
    visible_gate,
)
from diffusers_dedim.pipeline.device import in_parts
from diffusers_dedim.pipeline.rescue import Choice, EmbeddingChoice
from diffusers_dedim.video.looks import Cuts, Looks
from diffusers_dedim.video.people import STILL_THERE, People, Person, likeness
from diffusers_dedim.video.reading import Frame
from diffusers_dedim.video.smoothing import OneEuro

Network = Callable[[Tensor], Tensor]

# The five points as means of the 51 landmarks: eyes, tip of the nose, corners of the mouth.
_POINTS = ((19, 20, 21, 22, 23, 24), (25, 26, 27, 28, 29, 30), (13,), (31,), (37,))
_BIAS_SHARE = 0.2  # of a new detection in what tells the detector's points from the landmarks'
_LANDMARK_SHARE = 0.5  # of a new frame in the landmarks
_OVERLAP = 0.2  # intersection over union of two boxes that may be one face
_NEAR = 0.3  # centres nearer than this share of the size are one face
_PASSES, _SETTLED = 3, 1.5  # times that a face is looked for by its landmarks, until it moves less, crop px
_CROPS_AT_ONCE = 16  # that go through the networks together
_GATE_SHARE = 0.3  # of what is in sight again; what is covered counts at once
_RATE = Fraction(1, 25)  # s from frame to frame where nobody says


@dataclass(frozen=True, eq=False)
class PlacedFace:
    """A face of a frame.

    Attributes:
        person: whose it is.
        aligned: cut out of the frame by the smoothed points.
        landmarks: ``[51, 2]``, crop px.
        embedding: of the original crop, ``[D]``, or ``[K, D]`` of an ensemble.
        gate: factor ``[1, 112, 112]`` of the mask, 0 where the face is covered; None where nobody looked.
    """

    person: Person
    aligned: AlignedFace
    landmarks: Tensor
    embedding: Tensor
    gate: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Finding:
    """What the detector found, or what was followed: five points and the box around them, photo px."""

    points: NDArray[np.float64]
    box: NDArray[np.float64]  # relative to the points' middle, in units of their spread
    confidence: float
    reason: str = ""  # why it cannot be changed, as of `Face`

    @classmethod
    def of(cls, face: Face) -> Finding:
        """A detected face."""
        middle, spread = _extent(face.landmarks)
        corners = np.asarray(face.box).reshape(2, 2)
        return cls(face.landmarks, (corners - middle) / spread, face.confidence, face.reason)

    def moved(self, points: NDArray[np.float64]) -> Finding:
        """The same face at other points."""
        return replace(self, points=points)

    @property
    def face(self) -> Face:
        """As a `Face`."""
        middle, spread = _extent(self.points)
        x0, y0, x1, y1 = (float(edge) for edge in (middle + self.box * spread).ravel())
        return Face((x0, y0, x1, y1), self.points, self.confidence, self.reason)


@dataclass(eq=False)
class _Track:
    """A face without a break."""

    person: Person
    finding: Finding  # in the latest frame that is settled
    bias: NDArray[np.float64]  # detector's points less the landmarks', crop px
    latest: Tensor  # embedding
    smooth: OneEuro = field(default_factory=OneEuro)
    landmarks: Tensor | None = None  # smoothed, crop px: the mask must not tremble either
    gate: Tensor | None = None


@dataclass(frozen=True, eq=False)
class _Detected:
    """A finding of the detector with what the networks say of it."""

    finding: Finding
    bias: NDArray[np.float64]
    embedding: Tensor


_Path = tuple[_Track, dict[int, Finding]]  # by number of the frame


class FaceTracker:
    """Find the faces of a video's frames, and whose they are.

    The detector looks at every ``every``-th frame and at the last before each cut. Between two such frames a face's
    points are interpolated and then put right by its landmarks; what only one of the two shows is followed by its
    landmarks, forwards or backwards, as long as it is like the person. So a face is protected from its first frame on
    although it was found later. At most ``every`` + 1 frames are held.

    Args:
        detector: photo -> its faces; asked as `Looks` does.
        landmarker: crops ``[N, 3, 112, 112]`` in [-1, 1] -> ``[N, 51, 2]``, crop px.
        face_encoder: such crops -> unit embeddings.
        device: where the networks compute.
        visibility: such crops -> the probability ``[N, 1, 112, 112]`` that a pixel shows the uncovered face; None takes
            all for visible.
        every: frames from one look of the detector to the next, at least 1.
        select_faces: says of each face that is found, or by its embedding, whether it is to be protected; None for all.
        people: who was seen before; None for nobody.

    Raises:
        ValueError: ``every`` is below 1.
    """

    def __init__(
        self,
        detector: FaceDetection,
        landmarker: Network,
        face_encoder: Network,
        device: torch.device,
        *,
        visibility: Network | None = None,
        every: int = 5,
        select_faces: Choice | None = None,
        people: People | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"detect_every: expected at least 1 frame, got {every}.")
        self.looks: Looks = Looks(detector)
        self.landmarker: Network = landmarker
        self.face_encoder: Network = face_encoder
        self.visibility: Network | None = visibility
        self.device: torch.device = device
        self.every: int = every
        self.select_faces: Choice | None = select_faces
        self.people: People = people or People()
        self._tracks: list[_Track] = []
        self._last_time: Fraction | None = None

    def follow(self, frames: Iterable[Frame]) -> Iterator[list[tuple[Frame, list[PlacedFace]]]]:
        """Yield the frames with their faces, in order, from look to look.

        Args:
            frames: uint8 RGB pictures of one size; may be endless.
        """
        buffer: list[Frame] = []
        cuts = Cuts()
        for frame in frames:
            if cuts.between(frame) and buffer:
                yield self._settle(buffer, last=True)
                buffer = []
            if not buffer:
                self._start_shot(frame)
            buffer.append(frame)
            if len(buffer) > self.every:
                yield self._settle(buffer, last=False)
                buffer = buffer[-1:]
        if buffer:
            yield self._settle(buffer, last=True)

    def _start_shot(self, frame: Frame) -> None:
        self._tracks = []
        for found in self._detect(frame.pixels):
            self._tracks.append(self._begin(found, [track.person for track in self._tracks]))

    @torch.no_grad()
    def _settle(self, buffer: list[Frame], *, last: bool) -> list[tuple[Frame, list[PlacedFace]]]:
        """The faces of frames of which the detector has seen the first; and now sees the last."""
        end = len(buffer) - 1
        if end == 0:
            paths: list[_Path] = [(track, {0: track.finding}) for track in self._tracks]
        else:
            expected = [track.finding.face for track in self._tracks]
            paths = self._paths(buffer, self._detect(buffer[end].pixels, expected))
        seen = self._emit(buffer if last else buffer[:-1], paths)
        for track, path in paths:
            track.finding = path.get(end, track.finding)
        self._tracks = [track for track, path in paths if end in path]
        return seen

    def _paths(self, buffer: Sequence[Frame], detected: Sequence[_Detected]) -> list[_Path]:
        """Where each face is in each of the frames; it was seen in the first, or is seen in the last one."""
        paths: list[_Path] = []
        end = len(buffer) - 1
        pairs = self._match(self._tracks, detected)
        for track in self._tracks:
            if track not in pairs:  # it moved far, or nobody is there: where does it go?
                path = self._onwards(track, buffer, range(1, end + 1))
                free = [found for found in detected if found not in pairs.values()]
                near = [found for found in free if end in path and _near(found.finding, path[end])]
                if not near:
                    paths.append((track, path))
                    continue
                pairs[track] = near[0]
            self._rename(track, buffer[0], pairs[track])
            paths.append((track, self._between(track, buffer, pairs[track])))
        for found in [each for each in detected if each not in pairs.values()]:
            track = self._begin(found, [track.person for track, path in paths if end in path])
            paths.append((track, self._onwards(track, buffer, range(end - 1, -1, -1), start=end)))
        return paths

    def _emit(self, buffer: Sequence[Frame], paths: Sequence[_Path]) -> list[tuple[Frame, list[PlacedFace]]]:
        """The frames with their faces, which the networks see all together."""
        shown = [self._shown(index, frame, paths) for index, frame in enumerate(buffer)]
        faces = [(frame, *each) for frame, found in zip(buffer, shown, strict=True) for each in found]
        placed = iter(self._place(faces))
        return [(frame, [next(placed) for _ in found]) for frame, found in zip(buffer, shown, strict=True)]

    def _shown(self, index: int, frame: Frame, paths: Sequence[_Path]) -> list[tuple[_Track, Face]]:
        """The faces of a frame by their smoothed points."""
        seconds = float(_RATE)
        if frame.time is not None and self._last_time is not None:
            seconds = max(1e-3, float(frame.time - self._last_time))
        self._last_time = frame.time
        findings: list[tuple[_Track, Finding]] = []
        # one that was lost may be found again, and followed back to where it was lost
        for track, path in paths:
            if index in path and not any(_near(path[index], other) for _, other in findings):
                findings.append((track, path[index]))
        shown = []
        for track, finding in findings:
            smooth = track.smooth(finding.points, seconds, finding.face.size)
            shown.append((track, finding.moved(smooth).face))
        return [(track, face) for track, face in shown if _inside(face, frame.pixels)]

    def _place(self, faces: Sequence[tuple[Frame, _Track, Face]]) -> list[PlacedFace]:
        """Faces, frame after frame, with what the networks say of them."""
        if not faces:
            return []
        aligned = [align_face(frame.pixels, face) for frame, _, face in faces]
        crops, landmarks, embeddings = self._look(aligned)
        gates: Tensor | None = None
        if self.visibility is not None:
            seen = in_parts(self.visibility, crops, _CROPS_AT_ONCE)
            gates = visible_gate(seen, landmarks, landmark_mask(landmarks))
        placed = []
        for row, (_, track, _) in enumerate(faces):
            track.latest = embeddings[row]
            track.person.meet(embeddings[row])
            last = track.landmarks
            track.landmarks = (
                landmarks[row] if last is None else torch.lerp(last, landmarks[row], _LANDMARK_SHARE)
            )
            if gates is not None:
                track.gate = _reopened(track.gate, gates[row])
            placed.append(
                PlacedFace(track.person, aligned[row], track.landmarks, embeddings[row], track.gate)
            )
        return placed

    def _detect(self, pixels: NDArray[np.uint8], expected: Sequence[Face] | None = None) -> list[_Detected]:
        """Faces of a frame that are to be protected."""
        choice = self.select_faces
        faces = self.looks(pixels, expected)
        if choice is not None and not isinstance(choice, EmbeddingChoice):
            faces = [face for face in faces if choice(face)]
        if not faces:
            return []
        aligned = [align_face(pixels, face) for face in faces]
        with torch.no_grad():
            crops, landmarks, embeddings = self._look(aligned)
            reasons = contradictions(aligned, landmarks, self.landmarker(crops.flip(3)))
        chosen = choice.choose(embeddings) if isinstance(choice, EmbeddingChoice) else [True] * len(aligned)
        found = []
        for row, each in enumerate(aligned):
            ours = _five(landmarks[row])
            theirs = each.face.landmarks @ each.to_crop[:, :2].T + each.to_crop[:, 2]
            face = replace(each.face, reason=each.face.reason or reasons[row])
            found.append(_Detected(Finding.of(face), theirs - ours, embeddings[row]))
        return [each for each, is_chosen in zip(found, chosen, strict=True) if is_chosen]

    def _look(self, aligned: Sequence[AlignedFace]) -> tuple[Tensor, Tensor, Tensor]:
        """Crops ``[N, 3, 112, 112]``, their landmarks ``[N, 51, 2]`` and embeddings."""
        crops = torch.stack([each.crop for each in aligned]).to(self.device)
        landmarks = in_parts(self.landmarker, crops, _CROPS_AT_ONCE)
        return crops, landmarks, in_parts(self.face_encoder, crops, _CROPS_AT_ONCE)

    def _begin(self, found: _Detected, elsewhere: Sequence[Person]) -> _Track:
        person = self.people.find(found.embedding, elsewhere)
        return _Track(person, found.finding, found.bias, found.embedding)

    def _corrected(self, track: _Track, found: _Detected) -> Finding:
        """A detection, with the points where this track has them: the detector's tremble from look to look."""
        track.bias = track.bias + _BIAS_SHARE * (found.bias - track.bias)
        finding = found.finding
        crop = estimate_similarity(finding.points, ARCFACE_TEMPLATE)
        moved = finding.points @ crop[:, :2].T + crop[:, 2] + track.bias - found.bias
        return finding.moved((moved - crop[:, 2]) @ np.linalg.inv(crop[:, :2]).T)

    def _match(self, tracks: Sequence[_Track], detected: Sequence[_Detected]) -> dict[_Track, _Detected]:
        """Which detection is which face: the pairs that overlap and resemble most first."""
        pairs: list[tuple[float, _Track, _Detected]] = []
        for track in tracks:
            for found in detected:
                known = (track.person.embedding, track.latest)
                cosine = max(likeness(found.embedding, embedding) for embedding in known)
                overlap = _overlap(track.finding.face.box, found.finding.face.box)
                may = overlap >= _OVERLAP and cosine >= STILL_THERE
                if may or cosine >= self.people.same_person:
                    pairs.append((cosine + overlap, track, found))
        chosen: dict[_Track, _Detected] = {}
        for _, track, found in sorted(pairs, key=lambda pair: -pair[0]):
            if track not in chosen and found not in chosen.values():
                chosen[track] = found
        return chosen

    def _rename(self, track: _Track, first: Frame, found: _Detected) -> None:
        """Give who came from behind another one, half hidden, and so was taken for somebody new, the own name back."""
        person = self.people.earlier(found.embedding, track.person, [each.person for each in self._tracks])
        if person is None:
            return
        # nor were the points right that were found in a part of the face
        track.person, track.bias, track.smooth = person, found.bias, OneEuro()
        (seen,) = self._refine([first.pixels], [track.finding], track.bias)
        track.finding = seen or track.finding

    def _between(self, track: _Track, buffer: Sequence[Frame], found: _Detected) -> dict[int, Finding]:
        """A face that the detector saw at both ends: interpolated, then put right by its landmarks."""
        end = len(buffer) - 1
        path = {0: track.finding, end: self._corrected(track, found)}
        inner = list(range(1, end))
        share = _shares(buffer)
        priors = [
            path[0].moved((1 - share[index]) * path[0].points + share[index] * path[end].points)
            for index in inner
        ]
        if priors:
            settled = self._refine([buffer[index].pixels for index in inner], priors, track.bias)
            path |= {index: each for index, each in zip(inner, settled, strict=True) if each is not None}
        return path

    def _onwards(
        self, track: _Track, buffer: Sequence[Frame], indices: Iterable[int], start: int = 0
    ) -> dict[int, Finding]:
        """A face that the detector saw at one end: followed by its landmarks as long as it is like the person."""
        path = {start: track.finding}
        finding = track.finding
        for index in indices:
            pixels = buffer[index].pixels
            (seen,) = self._refine([pixels], [finding], track.bias)
            if seen is None or not _inside(seen.face, pixels):
                break
            finding = seen
            _, _, embeddings = self._look([align_face(pixels, finding.face)])
            known = (track.person.embedding, track.latest)
            if max(likeness(embeddings[0], each) for each in known) < STILL_THERE:
                break
            path[index] = finding
        return path

    def _refine(
        self, frames: Sequence[NDArray[np.uint8]], priors: Sequence[Finding], bias: NDArray[np.float64]
    ) -> list[Finding | None]:
        """Where the landmarks say that faces are that are expected somewhere; None for one outside its frame.

        They see half of the way to a face that lies elsewhere in the crop: it is cut out anew until it hardly moves.
        """
        rows = [row for row, prior in enumerate(priors) if _inside(prior.face, frames[row])]
        result: list[Finding | None] = [prior if row in rows else None for row, prior in enumerate(priors)]
        for _ in range(_PASSES):
            if not rows:
                break
            aligned = [align_face(frames[row], found.face) for row in rows if (found := result[row])]
            landmarks = self.landmarker(torch.stack([each.crop for each in aligned]).to(self.device))
            moving = []
            for row, each, points in zip(rows, aligned, landmarks, strict=True):
                crop, target = each.to_crop, _five(points) + bias
                last = each.face.landmarks @ crop[:, :2].T + crop[:, 2]
                result[row] = priors[row].moved((target - crop[:, 2]) @ np.linalg.inv(crop[:, :2]).T)
                if np.linalg.norm(target - last, axis=1).mean() > _SETTLED:
                    moving.append(row)
            rows = moving
        return result


def _shares(buffer: Sequence[Frame]) -> list[float]:
    """How far each frame lies between the first and the last one, by time where it is said."""
    times: list[Any] = [frame.time for frame in buffer]
    if None in times or times[-1] <= times[0]:
        return [index / (len(buffer) - 1) for index in range(len(buffer))]
    return [float((time - times[0]) / (times[-1] - times[0])) for time in times]


def _reopened(last: Tensor | None, gate: Tensor) -> Tensor:
    """The factor of a mask: what is covered counts at once, what is in sight again comes back slowly."""
    return gate if last is None else torch.minimum(gate, torch.lerp(last, gate, _GATE_SHARE))


def _five(landmarks: Tensor) -> NDArray[np.float64]:
    """Five points ``[5, 2]`` of 51 landmarks, crop px."""
    points = landmarks.cpu().double().numpy()
    return np.stack([points[list(indices)].mean(axis=0) for indices in _POINTS])


def _extent(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Middle and spread of points, px."""
    middle = points.mean(axis=0)
    return middle, max(1e-6, float(np.linalg.norm(points - middle, axis=1).mean()))


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (both - width * height)


def _near(a: Finding, b: Finding) -> bool:
    distance = float(np.linalg.norm(a.points.mean(axis=0) - b.points.mean(axis=0)))
    return distance < _NEAR * max(a.face.size, b.face.size)


def _inside(face: Face, pixels: NDArray[np.uint8]) -> bool:
    """Whether the middle of a face lies in the frame: its other half may be cut off."""
    x, y = face.landmarks.mean(axis=0)
    return bool(0 <= x < pixels.shape[1] and 0 <= y < pixels.shape[0])
