from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from toys import face_at, seeded, tiny_preset

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.errors import FaceTooSmallError, NoFaceError
from diffusers_dedim.faces import Face
from diffusers_dedim.pipeline.photos import StreamPhoto, StreamResult

Pixels = NDArray[np.uint8]
PRESET = tiny_preset(threshold=0.45, max_rounds=3)
EMPTY = np.zeros((60, 60, 3), np.uint8)

pytestmark = pytest.mark.filterwarnings("ignore:.*stayed above the threshold:UserWarning")


def detect(photo: Pixels) -> list[Face]:
    """A face every 130 px; none in a black photo; a photo of white pixels breaks the detector."""
    if photo.min() == 255:
        raise RuntimeError("the detector is broken")
    return [face_at(x, 10, 112) for x in range(10, photo.shape[1] - 112, 130)] if photo.any() else []


@pytest.fixture
def photos(pipe: DeDiMPipeline, crop: Pixels) -> list[Pixels]:
    """Photos with 1, 2, 3, 1 and 2 faces."""
    pipe.face_detector = detect
    results = []
    for index, count in enumerate((1, 2, 3, 1, 2)):
        photo = np.full((132, 20 + 130 * count, 3), 120 + index, np.uint8)
        for face in detect(photo):
            x = int(face.box[0])
            photo[10:122, x : x + 112] = np.roll(crop, 8 * index + x, axis=0)
        results.append(photo)
    return results


def stream(pipe: DeDiMPipeline, photos: list[Pixels], slots: int) -> dict[int, StreamResult]:
    items = (
        StreamPhoto(index, photo, generator)
        for index, (photo, generator) in enumerate(zip(photos, seeded(*range(len(photos))), strict=True))
    )
    results = list(pipe.stream(items, preset=PRESET, batch_size=slots))
    assert len(results) == len(photos)
    return {result.photo.owner: result for result in results}


@pytest.mark.parametrize("slots", [1, 2, 16])
def test_a_stream_gives_what_the_pipeline_gives(
    pipe: DeDiMPipeline, photos: list[Pixels], slots: int
) -> None:
    originals = [photo.copy() for photo in photos]
    streamed = stream(pipe, photos, slots)
    for index, generator in enumerate(seeded(*range(len(photos)))):
        np.testing.assert_array_equal(photos[index], originals[index])
        alone = pipe(photos[index], preset=PRESET, generator=generator)
        result = streamed[index]
        # convolutions of another batch size may add in another order: a value on .5 may round the other way
        difference = result.pixels.astype(int) - np.asarray(alone.images[0])
        assert abs(difference).max() <= 1
        assert (difference != 0).mean() < 1e-3
        assert (result.pixels != photos[index]).any()
        for face, expected in zip(result.faces, alone.faces, strict=True):
            assert face.probability == pytest.approx(expected.probability, abs=1e-4)
            assert (face.box, face.rounds, face.unet_calls) == (
                expected.box,
                expected.rounds,
                expected.unet_calls,
            )


def test_a_bad_photo_comes_back_with_its_reason_and_the_others_protected(
    pipe: DeDiMPipeline, photos: list[Pixels]
) -> None:
    bad = [StreamPhoto("empty", EMPTY), StreamPhoto("broken", EMPTY + 255)]
    torn = ValueError("torn file")  # no photo: the stream hands it through
    items = [StreamPhoto(0, photos[0]), *bad, torn, StreamPhoto(1, photos[1])]
    done = list(pipe.stream(items, preset=PRESET, batch_size=2))
    assert done.count(torn) == 1
    results = {result.photo.owner: result for result in done if result is not torn}
    assert isinstance(results["empty"].error, NoFaceError)
    assert str(results["broken"].error) == "the detector is broken"
    assert [len(results[index].faces) for index in (0, 1)] == [1, 2]
    assert results["broken"].pixels is bad[1].pixels


def test_a_face_that_crashes_fails_its_photo_only(
    pipe: DeDiMPipeline, photos: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = (7, 201, 33)
    photos[2][10:18, 140:148] = poison  # the corner of the second face, which no mask covers
    embed, marked = pipe.face_encoder.forward, torch.tensor(poison) / 127.5 - 1

    def forward(crops: torch.Tensor) -> torch.Tensor:
        if torch.isclose(crops[:, :, 2, 2], marked, atol=0.01).all(1).any():
            raise RuntimeError("poison")
        return embed(crops)

    monkeypatch.setattr(pipe.face_encoder, "forward", forward)
    results = stream(pipe, photos, slots=4)
    assert {index: str(result.error) for index, result in results.items() if result.error} == {2: "poison"}
    assert [len(results[index].faces) for index in (0, 1, 3, 4)] == [1, 2, 1, 2]


@pytest.mark.parametrize("fits", [2, 1])
def test_a_crowd_larger_than_memory_is_protected(
    pipe: DeDiMPipeline, crop: Pixels, monkeypatch: pytest.MonkeyPatch, fits: int
) -> None:
    """Seven faces in one photo, two places; the networks refuse more than fits, even fewer than the places."""
    pipe.face_detector = detect
    photo = np.full((132, 20 + 130 * 7, 3), 120, np.uint8)
    for index, face in enumerate(detect(photo)):
        x = int(face.box[0])
        photo[10:122, x : x + 112] = np.roll(crop, 8 * index, axis=0)
    (roomy,) = stream(pipe, [photo], slots=fits).values()
    sizes: list[int] = []

    def small(forward):
        def run(crops: torch.Tensor) -> torch.Tensor:
            sizes.append(len(crops))
            if len(crops) > fits:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return forward(crops)

        return run

    for network in (pipe.face_encoder, pipe.landmarker):
        monkeypatch.setattr(network, "forward", small(network.forward))
    (result,) = stream(pipe, [photo], slots=2).values()
    assert result.error is None
    assert max(sizes) == 2
    assert [face.box for face in result.faces] == [face.box for face in detect(photo)]
    np.testing.assert_array_equal(result.pixels, roomy.pixels)  # the same batches, so to the bit
    for face, expected in zip(result.faces, roomy.faces, strict=True):
        assert face.probability == expected.probability
        np.testing.assert_array_equal(face.landmarks, expected.landmarks)


def test_memory_does_not_grow_with_the_number_of_photos(pipe: DeDiMPipeline, photos: list[Pixels]) -> None:
    """Photos are taken only as they are needed: never more than places and a few ahead are open."""
    taken = 0

    def source():
        nonlocal taken
        for taken in range(1, 31):
            yield StreamPhoto(taken, photos[0], torch.Generator().manual_seed(taken))

    for done, _ in enumerate(pipe.stream(source(), preset=tiny_preset(max_rounds=1), batch_size=2), start=1):
        assert taken - done <= 2 + 4 + 2
    assert done == 30


def test_photos_of_any_kind_go_into_a_stream_and_are_numbered(
    pipe: DeDiMPipeline, photos: list[Pixels]
) -> None:
    transparent = Image.fromarray(photos[0]).convert("RGBA")
    results = list(pipe.stream([photos[1], transparent, "no photo"], preset=PRESET))
    assert "no photo" in results
    by_owner = {result.photo.owner: result for result in results if result != "no photo"}
    assert [len(by_owner[index].faces) for index in (0, 1)] == [2, 1]
    assert by_owner[1].image.mode == "RGBA"


def test_small_faces_are_named_in_the_result(pipe: DeDiMPipeline, photos: list[Pixels]) -> None:
    pipe.face_detector = lambda photo: [*detect(photo), face_at(0, 0, 30)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (result,) = pipe.stream(photos[:1], preset=tiny_preset(threshold=0.999), small_faces="skip")
    assert [face.size for face in result.small_faces] == [30]
    assert len(result.faces) == 1
    (failed,) = pipe.stream(photos[:1], preset=PRESET, small_faces="error")
    assert isinstance(failed.error, FaceTooSmallError)


def test_an_array_that_is_no_photo_ends_the_stream(pipe: DeDiMPipeline) -> None:
    with pytest.raises(ValueError, match=r"image: expected an array"):
        list(pipe.stream([np.zeros((4, 4, 7))], preset=PRESET))


def test_in_a_call_the_callback_is_not_asked_again_after_an_error(
    pipe: DeDiMPipeline, photos: list[Pixels]
) -> None:
    calls = []

    def stop(*arguments: object) -> dict[str, torch.Tensor]:
        calls.append(arguments)
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        pipe(photos, preset=PRESET, callback_on_step_end=stop)
    assert len(calls) == 1
