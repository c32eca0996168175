from __future__ import annotations

import tracemalloc
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from toy_clips import PRESET, detect, moving, picture, sound_of, write_clip
from toys import face_at, tiny_preset, toy_pipeline

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.diffusion.sampling import SampleResult
from diffusers_dedim.errors import FaceTooSmallError, NoFaceError, NotProtectedError, UnreadablePhotoError
from diffusers_dedim.pipeline.album import Album
from diffusers_dedim.pipeline.doubts import HIDDEN
from diffusers_dedim.pipeline.presets import DeDiMPreset
from diffusers_dedim.video import worn
from diffusers_dedim.video.people import People
from diffusers_dedim.video.protect import protect_frames, protect_video
from diffusers_dedim.video.reading import Frame, VideoReader
from diffusers_dedim.video.steady import deeper, shorter

NEVER = tiny_preset(guidance_scale=0.0, max_rounds=1, threshold=0.001)


@pytest.fixture
def pipe() -> DeDiMPipeline:
    pipeline = toy_pipeline()
    pipeline.face_detector = detect
    return pipeline


def test_a_person_wears_one_change_and_most_frames_need_no_denoiser(pipe: DeDiMPipeline) -> None:
    before = moving(10)
    results = list(protect_frames(pipe, before, preset=PRESET, seed=1))
    assert all(result.is_protected and result.faces[0].reached_threshold for result in results)
    assert [face.person for result in results for face in result.faces] == [0] * 10
    assert results[0].faces[0].rounds > 0
    assert sum(face.rounds == 0 for result in results for face in result.faces) >= 8
    assert all(not np.array_equal(a, result.pixels) for a, result in zip(before, results, strict=True))
    # what lies outside the face keeps its bits
    assert all(np.array_equal(a[:20], result.pixels[:20]) for a, result in zip(before, results, strict=True))


def test_frames_may_come_in_one_array(pipe: DeDiMPipeline) -> None:
    """As a camera loop reads them."""
    frames = moving(6)

    def camera() -> Any:
        buffer = np.empty_like(frames[0])
        for frame in frames:
            buffer[:] = frame
            yield buffer

    settings: dict[str, Any] = {"preset": PRESET, "seed": 1}
    expected = [result.pixels for result in protect_frames(pipe, frames, **settings)]
    found = [result.pixels for result in protect_frames(pipe, camera(), **settings)]
    assert all(map(np.array_equal, found, expected))


def test_the_change_flickers_less_than_that_of_single_photos(pipe: DeDiMPipeline) -> None:
    before = [picture((0, 40, 30))] * 4
    video = [result.pixels.astype(int) for result in protect_frames(pipe, before, preset=PRESET, seed=1)]
    alone = [np.asarray(image).astype(int) for image in pipe(before, preset=PRESET).images]

    def flicker(frames: list[np.ndarray]) -> float:
        return float(np.mean([np.abs(b - a).mean() for a, b in pairwise(frames)]))

    assert flicker(video) < 0.5 * flicker(alone)


def test_a_seed_makes_a_video_repeatable(pipe: DeDiMPipeline) -> None:
    first, second, third = (
        [result.pixels for result in protect_frames(pipe, moving(3), preset=PRESET, seed=seed)]
        for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], third[0])


@pytest.mark.parametrize("cover", ["blur", "pixelate"])
def test_a_face_that_stays_above_the_threshold_is_covered(pipe: DeDiMPipeline, cover: str) -> None:
    treatment = {"blur": "blurred", "pixelate": "pixelated"}[cover]
    results = list(protect_frames(pipe, moving(3), preset=NEVER, fallback=cover, seed=0))
    assert [face.treatment for result in results for face in result.faces] == [treatment] * 3
    assert all(result.is_protected for result in results)


def fail_at_first(pipe: DeDiMPipeline, failures: int) -> list[int]:
    """Let the first calls of the sampler change nothing and the others make whole rounds; returns a count of calls."""
    whole, calls = pipe.sampler(PRESET), [0]

    def sample(x_org: torch.Tensor, mask: torch.Tensor, **options: Any) -> SampleResult:
        calls[0] += 1
        if calls[0] > failures:
            return whole(x_org, mask, **options | {"max_rounds": PRESET.max_rounds})
        return SampleResult(options["x_0"], [[1.0, 1.0]], [1], [1], [False])

    pipe.sampler = lambda settings: sample
    return calls


def test_a_frame_above_the_threshold_covers_no_other_frame(pipe: DeDiMPipeline) -> None:
    """From the beginning, a short round, a few, from the beginning again: all in vain; the next frame is tried anew."""
    calls = fail_at_first(pipe, 4)
    results = list(protect_frames(pipe, moving(4), preset=PRESET, seed=0))
    assert [result.faces[0].treatment for result in results] == ["blurred", "changed", "changed", "changed"]
    assert all(result.faces[0].reached_threshold for result in results[1:])
    assert calls[0] == 5


@pytest.mark.parametrize(("retries", "all_tries"), [(0, 3), (3, 4)])
def test_what_fails_again_and_again_costs_one_round_a_frame(
    pipe: DeDiMPipeline, retries: int, all_tries: int
) -> None:
    """All tries, five frames with one each, all again; with retries one of the tries pushes further."""
    calls = fail_at_first(pipe, 1000)
    results = list(protect_frames(pipe, moving(7), preset=replace(PRESET, retries=retries), seed=0))
    assert [result.faces[0].treatment for result in results] == ["blurred"] * 7
    assert calls[0] == 1 + all_tries + 5 + all_tries


def test_or_it_is_left_there_and_said(pipe: DeDiMPipeline) -> None:
    results = list(protect_frames(pipe, moving(2), preset=NEVER, fallback="leave-out", seed=0))
    assert not any(result.is_protected for result in results)
    assert all(result.faces[0].similarity > 0.5 for result in results)


@pytest.mark.parametrize(
    ("word", "treatment"), [("blur", "blurred"), ("pixelate", "pixelated"), ("skip", "left")]
)
def test_small_faces(pipe: DeDiMPipeline, word: str, treatment: str) -> None:
    pipe.face_detector = lambda pixels: [face_at(50, 40, 30)]
    (result,) = protect_frames(pipe, [picture((0, 40, 30))], preset=PRESET, small_faces=word)
    assert [face.treatment for face in result.faces] == [treatment]
    assert result.is_protected == (word != "skip")
    assert np.array_equal(result.pixels, result.frame.pixels) == (word == "skip")


def test_a_small_face_may_be_an_error(pipe: DeDiMPipeline) -> None:
    pipe.face_detector = lambda pixels: [face_at(50, 40, 30)]
    with pytest.raises(FaceTooSmallError, match=r"30 px is smaller than 40 px.*small_faces='blur'"):
        list(protect_frames(pipe, moving(1), preset=PRESET, small_faces="error"))


def test_a_frame_without_a_face_is_as_it_was(pipe: DeDiMPipeline) -> None:
    (result,) = protect_frames(pipe, [picture()], preset=PRESET)
    assert np.array_equal(result.pixels, picture())
    assert result.faces == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"small_faces": "hide"}, "small_faces: expected one of"),
        ({"fallback": "error"}, "fallback: expected one of"),
        ({"detect_every": 0}, "detect_every: expected at least 1"),
        ({"preset": "best"}, "preset: expected one of"),
        ({"threshold": 1.5}, "threshold: expected a probability"),
    ],
)
def test_wrong_settings_are_refused_at_once(pipe: DeDiMPipeline, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protect_frames(pipe, moving(1), **options)


def test_a_person_can_be_chosen_by_the_recogniser(pipe: DeDiMPipeline) -> None:
    class Nobody:
        def choose(self, embeddings: torch.Tensor) -> list[bool]:
            return [False] * len(embeddings)

    class Everybody(Nobody):
        def choose(self, embeddings: torch.Tensor) -> list[bool]:
            return [True] * len(embeddings)

    for choice, count in ((Nobody(), 0), (Everybody(), 1)):
        (result,) = protect_frames(pipe, moving(1), preset=PRESET, select_faces=choice)
        assert len(result.faces) == count


def test_a_face_that_cannot_be_changed_is_covered(pipe: DeDiMPipeline) -> None:
    pipe.face_detector = lambda pixels: [replace(face, reason="lies on its side") for face in detect(pixels)]
    results = list(protect_frames(pipe, moving(2), preset=PRESET))
    assert [(face.treatment, face.reason) for result in results for face in result.faces] == [
        ("blurred", "lies on its side")
    ] * 2
    (result,) = protect_frames(pipe, moving(1), preset=PRESET, fallback="leave-out")
    assert result.faces[0].treatment == "blurred"
    (result,) = protect_frames(pipe, moving(1), preset=PRESET, fallback="leave-out", small_faces="skip")
    assert result.faces[0].treatment == "left"
    assert not result.is_protected


class Seen(torch.nn.Module):
    """Says that the rows of a crop from one on are covered."""

    def __init__(self, row: int) -> None:
        super().__init__()
        self.row = row

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        seen = torch.ones_like(crops[:, :1])
        seen[:, :, self.row :] = 0
        return seen


def test_what_is_covered_keeps_its_bits(pipe: DeDiMPipeline) -> None:
    pipe.visibility = Seen(80)
    results = list(protect_frames(pipe, moving(6), preset=PRESET, seed=0))
    assert all(result.faces[0].reached_threshold for result in results)
    for result in results:
        covered = 30 + 64 * 80 // 112
        assert np.array_equal(result.pixels[covered:], result.frame.pixels[covered:])
        assert not np.array_equal(result.pixels[:covered], result.frame.pixels[:covered])


def test_a_face_of_which_too_little_is_visible_falls_back(pipe: DeDiMPipeline) -> None:
    pipe.visibility = Seen(45)
    results = list(protect_frames(pipe, moving(3), preset=PRESET, seed=0))
    assert {(face.treatment, face.reason) for result in results for face in result.faces} == {
        ("blurred", HIDDEN)
    }


@pytest.mark.parametrize("passes", [0, 24])
def test_who_was_half_hidden_comes_out_with_the_face_from_before(
    pipe: DeDiMPipeline, monkeypatch: pytest.MonkeyPatch, passes: int
) -> None:
    """Half hidden for longer than ``passes`` frames, it is pushed to what is forgotten then."""
    monkeypatch.setattr(worn, "_PASSES", passes)
    people = People()

    def protect(row: int, preset: DeDiMPreset = PRESET, fallback: str = "blur") -> list[str]:
        pipe.visibility = Seen(row)
        results = protect_frames(pipe, moving(2), preset=preset, seed=0, people=people, fallback=fallback)
        return [face.treatment for result in results for face in result.faces]

    protect(112)
    (person,) = people._known
    whole = person.target
    assert whole is not None
    protect(70, replace(PRESET, threshold=PRESET.threshold - 0.2), "leave-out")
    assert person.half_hidden == 2
    assert (person.target is whole) == (passes > 0)
    assert person.whole is not None
    assert person.whole[0] is whole
    assert protect(112) == ["changed"] * 2
    assert person.target is person.whole[0]
    assert person.half_hidden == 0


def test_who_begins_half_hidden_begins_anew_when_it_comes_out(pipe: DeDiMPipeline) -> None:
    people = People()
    gates = []
    for row in (70, 112):
        pipe.visibility = Seen(row)
        (result, *_) = protect_frames(pipe, moving(2), preset=PRESET, seed=0, people=people)
        assert result.faces[0].treatment == "changed"
        gates.append(people._known[0].gate)
    assert not (gates[0][:, 90:] > 0).any()
    assert (gates[1][:, 90:] > 0).any()


def test_what_is_half_hidden_for_some_frames_is_not_pushed_and_keeps_a_larger_margin(
    pipe: DeDiMPipeline,
) -> None:
    people = People()
    pipe.visibility = Seen(112)
    list(protect_frames(pipe, moving(1), preset=replace(PRESET, threshold=0.6), seed=0, people=people))
    pipe.visibility = Seen(70)
    (carried,) = protect_frames(
        pipe, moving(1), preset=replace(PRESET, threshold=0.1), seed=0, people=people, fallback="leave-out"
    )
    ends = (1 + carried.faces[0].similarity) / 2
    for above, treatment in ((0.02, "blurred"), (0.06, "blurred"), (0.09, "changed")):
        preset = replace(PRESET, threshold=ends + above)
        (result,) = protect_frames(pipe, moving(1), preset=preset, seed=0, people=people)
        assert (result.faces[0].treatment, result.faces[0].rounds) == (treatment, 0)


def test_people_are_known_in_the_next_video_and_wear_the_same_face(pipe: DeDiMPipeline) -> None:
    album = Album()
    people = People(album=album)
    first = list(protect_frames(pipe, moving(4), preset=PRESET, seed=0, people=people))
    assert sum(face.rounds for result in first for face in result.faces) > 0
    (noted,) = album
    assert noted.result is not None
    second = list(protect_frames(pipe, moving(4), preset=PRESET, seed=5, people=people))
    assert sum(face.rounds for result in second for face in result.faces) == 0
    assert {face.person for result in second for face in result.faces} == {0}
    changes = [result.pixels.astype(int) - result.frame.pixels for result in (first[-1], second[-1])]
    assert np.abs(changes[0] - changes[1]).max() <= 2


def test_somebody_new_is_told_apart_from_protected_photos(pipe: DeDiMPipeline) -> None:
    album, seen = Album(same_person=-0.99), []
    album.add(torch.eye(16)[0], torch.eye(16)[1])
    whole = pipe.sampler(PRESET)

    def sample(*crops: torch.Tensor, **options: Any) -> SampleResult:
        seen.append(options["avoid"])
        return whole(*crops, **options)

    pipe.sampler = lambda settings: sample
    list(protect_frames(pipe, moving(1), preset=PRESET, seed=0, people=People(album=album)))
    assert torch.equal(seen[0], torch.eye(16)[1][None, None])
    list(protect_frames(pipe, moving(1), preset=PRESET, seed=0))
    assert seen[-1] is None


def test_wrong_frames_are_refused(pipe: DeDiMPipeline) -> None:
    with pytest.raises(ValueError, match="all of the size of the first"):
        list(protect_frames(pipe, [picture(), picture(size=(80, 80))], preset=PRESET))
    with pytest.raises(TypeError, match="photo: expected a numpy array of dtype uint8"):
        list(protect_frames(pipe, [picture().astype(float)], preset=PRESET))


def test_frames_may_bring_their_times_and_never_end(pipe: DeDiMPipeline) -> None:
    def webcam():
        index = 0
        while True:
            yield Frame(picture((0, 40, 30)), Fraction(index, 10))
            index += 1

    results = protect_frames(pipe, webcam(), preset=PRESET, seed=0)
    assert [next(results).frame.time for _ in range(3)] == [0, Fraction(1, 10), Fraction(1, 5)]


def test_a_video_file(pipe: DeDiMPipeline, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "clip.mp4", moving(7))
    seen = []
    report = protect_video(
        pipe,
        source,
        tmp_path / "out.mp4",
        preset=PRESET,
        seed=0,
        on_frame=lambda *numbers: seen.append(numbers),
    )
    assert seen == [(index, 7) for index in range(1, 8)]
    assert (report.frames, report.face_frames, report.below_share) == (7, 7, 1.0)
    assert [person.frames for person in report.people] == [7]
    assert report.people[0].similarity < 0.8
    assert report.summary == "7 frames, 1 person, 100 % of 7 faces below the threshold"
    assert sound_of(tmp_path / "out.mp4") == sound_of(source)
    with VideoReader(source) as before, VideoReader(tmp_path / "out.mp4") as after:
        pairs = list(zip(before.frames(), after.frames(), strict=True))
    assert all(a.time == b.time for a, b in pairs)
    # coding has left the change: it is larger on the face than the loss beside it
    change = np.abs(pairs[3][0].pixels.astype(int) - pairs[3][1].pixels).mean(2)
    assert change[40:90, 35:85].mean() > 3 * change[:20].mean()


def test_an_animation(pipe: DeDiMPipeline, tmp_path: Path) -> None:
    images = [Image.fromarray(pixels) for pixels in moving(3)]
    images[0].save(tmp_path / "a.png", save_all=True, append_images=images[1:], duration=80)
    report = protect_video(pipe, tmp_path / "a.png", tmp_path / "out.png", preset=PRESET, seed=0)
    assert report.below_share == 1.0
    with Image.open(tmp_path / "out.png") as image:
        assert image.n_frames == 3


def test_without_a_face_nothing_is_written(pipe: DeDiMPipeline, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", [picture()] * 3)
    with pytest.raises(NoFaceError, match=r"a\.mp4: no face was found in 3 frames"):
        protect_video(pipe, source, tmp_path / "out.mp4", preset=PRESET)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_what_still_matches_is_not_written_unless_asked_for(pipe: DeDiMPipeline, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", moving(2))
    options = {"preset": NEVER, "fallback": "leave-out", "seed": 0}
    with pytest.raises(NotProtectedError, match="in 2 of 2 frames a face still matches") as caught:
        protect_video(pipe, source, tmp_path / "out.mp4", **options)
    assert caught.value.report.unprotected_frames == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    report = protect_video(pipe, source, tmp_path / "out.mp4", allow_partial=True, **options)
    assert "2 frames NOT protected" in report.summary
    assert (tmp_path / "out.mp4").is_file()


def test_a_stop_leaves_no_half_file_and_keeps_the_old_one(pipe: DeDiMPipeline, tmp_path: Path) -> None:
    source = write_clip(tmp_path / "a.mp4", moving(4))
    (tmp_path / "out.mp4").write_bytes(b"old")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        protect_video(pipe, source, tmp_path / "out.mp4", preset=PRESET, on_frame=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"old"


def test_no_video_is_no_video(pipe: DeDiMPipeline, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    with pytest.raises(UnreadablePhotoError):
        protect_video(pipe, tmp_path / "a.mp4", tmp_path / "b.mp4", preset=PRESET)
    assert not (tmp_path / "b.mp4").exists()


def test_memory_does_not_grow_with_the_length(pipe: DeDiMPipeline) -> None:
    """Frames alone are counted (the networks' memory is torch's): 640 x 360 are 0.7 MB each."""
    pipe.face_detector = lambda pixels: []

    def peak(count: int) -> int:
        tracemalloc.start()
        for result in protect_frames(
            pipe, (np.full((360, 640, 3), index % 7, np.uint8) for index in range(count)), preset=PRESET
        ):
            assert result.faces == ()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(80) < peak(20) + 2_000_000


def test_rounds_go_deeper_and_short_ones_change_less() -> None:
    preset = tiny_preset(start_timestep=100, num_inference_steps=5, threshold_margin=0.05)
    assert deeper(preset).sampler_threshold == pytest.approx(preset.sampler_threshold - 0.05)
    assert deeper(tiny_preset(threshold=0.1, threshold_margin=0.05)).sampler_threshold == pytest.approx(0.05)
    assert (shorter(preset).start_timestep, shorter(preset).num_inference_steps) == (40, 3)
    assert shorter(tiny_preset(start_timestep=1, num_inference_steps=1)).start_timestep == 1


def test_a_reference_that_is_given_is_what_the_sampler_leaves(pipe: DeDiMPipeline) -> None:
    """The person's mean takes the place of the frame's own embedding in Algorithm 2."""
    x_org = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    options = {"generators": [torch.Generator().manual_seed(1)], "max_rounds": 1}
    own = pipe.face_encoder(x_org)
    mask = torch.ones(1, 1, 112, 112)
    same = pipe.sampler(PRESET)(x_org, mask, **options)
    options["generators"] = [torch.Generator().manual_seed(1)]
    given = pipe.sampler(PRESET)(x_org, mask, reference=own, **options)
    assert torch.equal(same.crops, given.crops)
    options["generators"] = [torch.Generator().manual_seed(1)]
    other = pipe.sampler(PRESET)(x_org, mask, reference=-own, **options)
    assert other.probability_history[0][-1] < given.probability_history[0][-1]


def test_a_video_is_not_written_over_itself(pipe: DeDiMPipeline, tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    source.write_bytes(b"a video")
    (tmp_path / "b.mp4").symlink_to(source)
    for target in (source, tmp_path / "b.mp4"):
        with pytest.raises(ValueError, match="target: expected another file than the source"):
            protect_video(pipe, source, target)
    assert source.read_bytes() == b"a video"
