"""What becomes of faces that cannot be changed, and of those that stay above the threshold."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toys import face_at, in_bytes, seeded, tiny_preset

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.pipeline.engine import PhotoStream
from diffusers_dedim.pipeline.photos import StreamPhoto
from diffusers_dedim.pipeline.presets import PRESETS, DeDiMPreset
from diffusers_dedim.pipeline.rescue import ATTEMPTS, FacePolicy, attempts, find_faces, stronger

Pixels = NDArray[np.uint8]
EASY, NEVER = tiny_preset(threshold=0.999, max_rounds=1), tiny_preset(threshold=0.001, retries=3)


@pytest.fixture
def photo(crop: Pixels) -> Pixels:
    """A face of 112 px, and beside it room for a small one."""
    pixels = np.random.default_rng(0).integers(100, 150, (150, 320, 3), dtype=np.uint8)
    pixels[20:132, 20:132] = crop
    return pixels


def protect(pipe: DeDiMPipeline, photo: Pixels, preset: DeDiMPreset, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return in_bytes(pipe(photo, preset=preset, generator=seeded(0)[0], **options))


@pytest.mark.parametrize(("way", "word"), [("blur", "blurred"), ("pixelate", "pixelated")])
def test_a_small_face_is_covered_and_the_large_one_gets_what_it_would_alone(
    pipe: DeDiMPipeline, photo: Pixels, way: str, word: str
) -> None:
    large, small = face_at(20, 20, 112), face_at(200, 60, 30)
    alone = protect(pipe, photo, EASY, faces=[large])
    both = protect(pipe, photo, EASY, faces=[small, large], small_faces=way)
    assert [face.treatment for face in both.faces] == [word, "changed"]
    assert both.faces[0].reason == "under 40 px"
    assert (both.faces[0].rounds, both.faces[0].attempts) == (0, ())
    assert all(face.is_protected for face in both.faces)
    np.testing.assert_array_equal(both.images[0][:, :160], alone.images[0][:, :160])
    assert (both.images[0][70:80, 210:220] != photo[70:80, 210:220]).any()


def test_blurring_is_the_default_and_said_aloud(pipe: DeDiMPipeline, photo: Pixels) -> None:
    pipe.face_detector = lambda _: [face_at(20, 20, 112), face_at(200, 60, 30)]
    text = r"image 0: 1 of 2 faces are smaller than 40 px and are blurred \(small_faces='blur'\)\."
    with pytest.warns(UserWarning, match=text) as caught:
        out = pipe(photo, preset=EASY)
    assert caught[0].filename == __file__
    assert [face.treatment for face in out.faces] == ["changed", "blurred"]


def test_a_photo_of_small_faces_alone_comes_out_of_call_and_stream(
    pipe: DeDiMPipeline, photo: Pixels
) -> None:
    pipe.face_detector = lambda _: [face_at(200, 60, 30), face_at(250, 20, 20)]
    out = protect(pipe, photo, EASY)
    (result,) = pipe.stream([photo], preset=EASY)
    np.testing.assert_array_equal(result.pixels, out.images[0])
    assert [face.treatment for face in result.faces] == ["blurred", "blurred"]


def test_the_named_presets_try_again_and_the_papers_own_does_not() -> None:
    assert [PRESETS[name].retries for name in ("fast", "strong", "paper")] == [3, 3, 0]


@pytest.mark.parametrize("retries", [0, 1, 2, 3])
def test_what_was_tried_is_recorded_in_order(pipe: DeDiMPipeline, photo: Pixels, retries: int) -> None:
    (face,) = protect(pipe, photo, replace(NEVER, retries=retries), faces=[face_at(20, 20, 112)]).faces
    assert face.attempts == ATTEMPTS[: retries + 1]
    assert face.rounds == NEVER.max_rounds * (retries + 1)
    assert face.unet_calls == face.rounds * NEVER.num_inference_steps
    assert (face.treatment, face.reason) == ("changed", "stayed above the threshold")
    assert not face.is_protected


def test_the_best_try_is_kept(pipe: DeDiMPipeline, photo: Pixels) -> None:
    def score(retries: int) -> float:
        preset = replace(NEVER, retries=retries)
        return protect(pipe, photo, preset, faces=[face_at(20, 20, 112)]).faces[0].probability

    scores = [score(retries) for retries in range(4)]
    assert scores == sorted(scores, reverse=True)
    assert scores[3] < scores[0]


def test_a_face_that_gets_there_at_once_is_as_without_retries(pipe: DeDiMPipeline, photo: Pixels) -> None:
    preset = tiny_preset(threshold=0.9, max_rounds=4)
    face = face_at(20, 20, 112)
    once = protect(pipe, photo, preset, faces=[face])
    assert once.faces[0].attempts == ("first",)
    again = protect(pipe, photo, replace(preset, retries=3), faces=[face])
    np.testing.assert_array_equal(again.images[0], once.images[0])
    assert again.faces[0].attempts == ("first",)


def test_a_stubborn_face_does_not_depend_on_who_is_beside_it(pipe: DeDiMPipeline, crop: Pixels) -> None:
    """Some faces of these photos need all attempts, some fewer; whatever company they are in."""
    photos = [np.roll(crop, 16 * index, axis=0) for index in range(5)]
    preset = tiny_preset(threshold=0.4, max_rounds=2, retries=3)

    def stream(slots: int) -> dict[int, Any]:
        items = [
            StreamPhoto(index, photo, generator, [face_at(0, 0, 112)])
            for index, (photo, generator) in enumerate(zip(photos, seeded(*range(5)), strict=True))
        ]
        return {result.photo.owner: result for result in pipe.stream(items, preset=preset, batch_size=slots)}

    alone, together = stream(1), stream(5)
    tried = {alone[index].faces[0].attempts for index in range(5)}
    assert len(tried) > 1  # else nothing is shown
    for index in range(5):
        first, second = alone[index].faces[0], together[index].faces[0]
        assert (first.attempts, first.rounds) == (second.attempts, second.rounds)
        # convolutions of another batch size may add in another order: a value on .5 may round the other way
        assert abs(alone[index].pixels.astype(int) - together[index].pixels).max() <= 1


@pytest.mark.parametrize(("fallback", "word"), [("blur", "blurred"), ("pixelate", "pixelated")])
def test_what_stays_above_the_threshold_is_covered_where_asked(
    pipe: DeDiMPipeline, photo: Pixels, fallback: str, word: str
) -> None:
    face = face_at(20, 20, 112)
    (record,) = (out := protect(pipe, photo, NEVER, faces=[face], fallback=fallback)).faces
    assert (record.treatment, record.is_protected, record.reached_threshold) == (word, True, False)
    assert record.reason == "stayed above the threshold"
    assert len(record.attempts) == 4
    # the original is covered, not what was tried
    untried = protect(pipe, photo, EASY, faces=[replace(face, reason="turned")], small_faces=fallback)
    np.testing.assert_array_equal(out.images[0], untried.images[0])


def test_a_face_with_a_reason_is_not_sampled(pipe: DeDiMPipeline, photo: Pixels) -> None:
    turned = replace(face_at(20, 20, 112), reason="lies on its side")
    pipe.face_detector = lambda _: [turned]
    text = r"1 of 1 faces cannot be changed \(lies on its side\) and were left UNPROTECTED"
    with pytest.warns(UserWarning, match=text):
        out = in_bytes(pipe(photo, preset=EASY, small_faces="skip"))
    np.testing.assert_array_equal(out.images[0], photo)
    assert [(face.treatment, face.is_protected) for face in out.faces] == [("left", False)]
    (result,) = pipe.stream([photo], preset=EASY)
    assert [(face.treatment, face.is_protected) for face in result.faces] == [("blurred", True)]


def test_points_that_fix_no_face_are_no_reason_to_fail(pipe: DeDiMPipeline, photo: Pixels) -> None:
    flat = replace(face_at(20, 20, 112), landmarks=np.full((5, 2), 60.0), reason="its points contradict")
    out = protect(pipe, photo, EASY, faces=[flat], fallback="blur")
    assert out.faces[0].treatment == "blurred"
    assert (out.images[0][60:90, 60:90] != photo[60:90, 60:90]).any()


def test_doubts_of_the_networks_are_heeded(pipe: DeDiMPipeline, photo: Pixels) -> None:
    networks = pipe._networks(None, None, ())
    asked: list[int] = []

    def look(aligned: Any, crops: torch.Tensor, landmarks: torch.Tensor) -> tuple[list[str], torch.Tensor]:
        asked.append(len(aligned))
        assert landmarks.shape == (len(crops), 51, 2)
        visible = torch.ones_like(crops[:, :1])
        visible[..., :70, :] = 0  # down to the mouth the face is covered
        return ["too little of it is visible", ""], visible

    stream = PhotoStream(replace(networks, second_look=look), EASY)
    faces = [face_at(20, 20, 112), face_at(180, 20, 112), face_at(0, 0, 30)]
    (result,) = stream.protect([StreamPhoto(0, photo, seeded(0)[0], faces)])
    assert asked == [2]
    assert [face.treatment for face in result.faces] == ["blurred", "changed", "blurred"]
    assert result.faces[0].reason == "too little of it is visible"
    np.testing.assert_array_equal(result.pixels[30:88, 180:292], photo[30:88, 180:292])
    assert (result.pixels[92:132, 180:292] != photo[92:132, 180:292]).any()


def test_the_stronger_settings_aim_at_the_same_threshold() -> None:
    for preset in (PRESETS["fast"], NEVER, tiny_preset(threshold=0.2, threshold_margin=0.19)):
        pushed = stronger(preset)
        assert pushed.threshold == preset.threshold
        assert pushed.sampler_threshold <= preset.sampler_threshold
        assert pushed.guidance_scale > preset.guidance_scale


def test_the_last_attempt_is_the_same_for_who_is_told_apart() -> None:
    preset = PRESETS["fast"]
    alone, apart = attempts(preset), attempts(preset, told_apart=True)
    assert apart[:3] == [preset.told_apart()] * 3 != alone[:3] == [preset] * 3
    assert apart[3] == alone[3] == stronger(preset)
    once = tiny_preset(retries=0)
    assert attempts(once) == [once]


def test_more_than_three_retries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"retries: expected a whole number in 0\.\.3, got 4\."):
        tiny_preset(retries=4)


def test_a_detector_that_finds_something_else_is_no_empty_photo() -> None:
    boxes: Any = [(1, 2, 30, 40)]
    photo = np.zeros((60, 60, 3), np.uint8)
    with pytest.raises(TypeError, match=r"faces: expected `Face` records, got tuple; mend the detector\."):
        find_faces(photo, None, lambda _: boxes, FacePolicy())


def _restored_until(attempt: int, photo: Pixels, asked: list[int]) -> Any:
    """A file that shows the original again, for so many attempts."""

    def packed(pixels: Pixels) -> Pixels:
        asked.append(len(asked))
        return photo if len(asked) <= attempt else pixels

    return packed


def test_what_only_the_file_would_show_again_is_tried_again(pipe: DeDiMPipeline, photo: Pixels) -> None:
    preset = tiny_preset(threshold=0.5, threshold_margin=0.49, max_rounds=9, retries=3)
    asked: list[int] = []
    item = StreamPhoto(
        0, photo, seeded(0)[0], [face_at(20, 20, 112)], packed=_restored_until(1, photo, asked)
    )
    (result,) = pipe.stream([item], preset=preset)
    (face,) = result.faces
    assert face.attempts == ("first", "another draw")
    assert face.is_protected
    assert len(asked) == 2
    (plain,) = pipe.stream([replace(item, generator=seeded(0)[0], packed=None)], preset=preset)
    assert plain.faces[0].attempts == ("first",)
    assert (plain.pixels != result.pixels).any()


def test_what_every_file_shows_again_is_covered_where_asked(pipe: DeDiMPipeline, photo: Pixels) -> None:
    preset = tiny_preset(threshold=0.5, threshold_margin=0.49, max_rounds=9, retries=1)
    item = StreamPhoto(0, photo, seeded(0)[0], [face_at(20, 20, 112)], packed=_restored_until(9, photo, []))
    (result,) = pipe.stream([item], preset=preset, fallback="blur")
    (face,) = result.faces
    assert (face.attempts, face.treatment) == (("first", "another draw"), "blurred")


def test_a_face_with_room_below_the_threshold_is_not_packed_to_be_judged(
    pipe: DeDiMPipeline, photo: Pixels
) -> None:
    asked: list[int] = []
    item = StreamPhoto(
        0, photo, seeded(0)[0], [face_at(20, 20, 112)], packed=_restored_until(9, photo, asked)
    )
    (result,) = pipe.stream([item], preset=tiny_preset(threshold=0.999, max_rounds=4))
    assert result.faces[0].attempts == ("first",)
    assert asked == []
