from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toys import face_at, in_bytes, tiny_preset

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.errors import NoFaceError
from diffusers_dedim.faces import align_face
from diffusers_dedim.pipeline.persons import PersonChoice

Pixels = NDArray[np.uint8]
EASY = tiny_preset(threshold=0.999, max_rounds=1)
pytestmark = pytest.mark.filterwarnings("ignore:.*stayed above the threshold:UserWarning")
LINES = {"may_be": 0.7, "surely": 0.9}


def unit(degrees: float) -> list[float]:
    angle = np.deg2rad(degrees)
    return [float(np.cos(angle)), float(np.sin(angle))]


class Angles(torch.nn.Module):
    """A recogniser, or two, for whom a crop's brightness is an angle."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.factors = factors or (1.0,)

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        angle = crops.mean((1, 2, 3)) * torch.pi
        # upside down is somebody else
        angle = angle + 2 * (crops[:, :, 56:].mean((1, 2, 3)) - crops[:, :, :56].mean((1, 2, 3))).clamp_min(0)
        each = torch.stack([torch.stack([(f * angle).cos(), (f * angle).sin()], -1) for f in self.factors], 1)
        return each[:, 0] if len(self.factors) == 1 else each


def crop_of(level: int) -> Pixels:
    pixels = np.full((112, 112, 3), level, np.uint8)
    pixels[:56] = np.minimum(pixels[:56] + 40, 255)
    return pixels


def choice(encoder: torch.nn.Module | None = None, levels: tuple[int, ...] = (100,), **options: Any) -> Any:
    faces = [align_face(crop_of(level), face_at(0, 0, 112)) for level in levels]
    return PersonChoice(faces, encoder or Angles(), **{**LINES, **options})


def relative(person: Any, *degrees: float) -> torch.Tensor:
    """Embeddings at these angles from the first reference."""
    x, y = person._references.reshape(-1, 2)[0].tolist()
    return torch.tensor(
        [
            [x * c - y * s, x * s + y * c]
            for c, s in map(unit, degrees)
        ]
    )  # fmt: skip


def test_in_doubt_a_face_is_protected() -> None:
    # cosines 0.98, 0.82 (in between), 0.64
    for spared, expected in ((False, [True, True, False]), (True, [False, True, True])):
        person = choice(spared=spared)
        assert person.choose(relative(person, 10, 35, 50)) == expected
        nan = torch.full((1, 2), torch.nan)
        assert person.choose(nan) == [True]


def test_recognisers_that_disagree_are_a_doubt() -> None:
    both = Angles(1.0, 1.0)
    for spared in (False, True):
        person = choice(both, spared=spared)
        near, far = relative(person, 0, 80)
        # by one it is the person, by the other it is not
        assert person.choose(torch.stack([torch.stack([near, far])])) == [True]
    assert choice(both).choose(torch.stack([torch.stack([far, far])])) == [False]
    assert choice(both, spared=True).choose(torch.stack([torch.stack([near, near])])) == [False]


def test_any_photo_of_the_person_counts() -> None:
    two = choice(levels=(100, 160))
    assert two._references.shape == (2, 2)
    assert two.choose(two._references) == [True, True]
    assert choice(levels=(100, 160), spared=True).choose(two._references) == [False, False]
    assert choice(levels=(100,)).choose(two._references[1:]) == [False]


def test_a_pipeline_protects_the_person_alone_or_all_others(pipe: DeDiMPipeline) -> None:
    pipe.face_encoder.forward = Angles().forward
    photo = np.full((112, 240, 3), 128, np.uint8)
    photo[:, :112], photo[:, 128:] = crop_of(90), crop_of(170)
    pipe.face_detector = lambda seen: (
        [face_at(0, 0, 112), face_at(128, 0, 112)] if seen.shape[1] > 200 else [face_at(0, 0, 112)]
    )
    me = PersonChoice.of(pipe, [crop_of(170)], **LINES)
    out = in_bytes(pipe(photo, preset=EASY, select_faces=me))
    assert [face.box[0] for face in out.faces] == [128]
    np.testing.assert_array_equal(out.images[0][:, :120], photo[:, :120])
    not_me = PersonChoice.of(pipe, [crop_of(170)], spared=True, **LINES)
    (result,) = pipe.stream([photo], preset=EASY, select_faces=not_me)
    assert [face.box[0] for face in result.faces] == [0]
    assert [face.box[0] for face in result.unchosen] == [128]
    with pytest.raises(NoFaceError, match=r"none of the 1 faces found is one to be protected"):
        pipe(crop_of(90), preset=EASY, select_faces=me)


def test_references_without_one_face_are_refused(pipe: DeDiMPipeline) -> None:
    pipe.face_detector = lambda seen: [face_at(0, 0, 50)] * (int(seen[0, 0, 0]) // 50)
    with pytest.raises(NoFaceError, match="no face was found in it; give a photo that shows the person's"):
        PersonChoice.of(pipe, [np.zeros((112, 112, 3), np.uint8)])
    with pytest.raises(ValueError, match="it shows 3 faces; crop it so that it shows the person alone"):
        PersonChoice.of(pipe, [np.full((112, 112, 3), 150, np.uint8)])


def test_wrong_lines_and_no_references_are_refused() -> None:
    with pytest.raises(ValueError, match=r"references: expected a face of the person, got none\."):
        PersonChoice([], Angles())
    with pytest.raises(ValueError, match=r"may_be: expected a cosine in \(-1, 1\), got 1\."):
        choice(may_be=1)

    class Indifferent(torch.nn.Module):
        def forward(self, crops: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(crops), -1)

    with pytest.raises(ValueError, match="surely: this recogniser finds an upside-down face as like"):
        choice(Indifferent())
