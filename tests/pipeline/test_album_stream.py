"""A stream with an album: order decides, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toys import face_at, seeded, tiny_preset

from diffusers_dedim import Album, DeDiMPipeline
from diffusers_dedim.pipeline.photos import StreamPhoto, StreamResult

Pixels = NDArray[np.uint8]
# pushes that tell faces apart; the toy recogniser sees all crops of a texture as one person
PRESET = tiny_preset(
    guidance="estimate", guidance_scale=0.2, threshold=0.9, max_rounds=4, num_inference_steps=4
)
ANYBODY = -0.9

pytestmark = pytest.mark.filterwarnings("ignore:.*stayed above the threshold:UserWarning")


@pytest.fixture
def photos(pipe: DeDiMPipeline, crop: Pixels) -> list[Pixels]:
    """Five photos of one person each, a little different; the third shows two."""
    pipe.face_detector = lambda photo: [face_at(x, 10, 112) for x in range(10, photo.shape[1] - 112, 130)]
    made = []
    for index, count in enumerate((1, 1, 2, 1, 1)):
        photo = np.full((132, 20 + 130 * count, 3), 120 + index, np.uint8)
        for place in range(count):
            photo[10:122, 10 + 130 * place : 122 + 130 * place] = np.roll(crop, 8 * index + 5 * place, axis=0)
        made.append(photo)
    return made


def protect(
    pipe: DeDiMPipeline, photos: list[Pixels], slots: int, album: Album | None, **settings: Any
) -> dict[int, StreamResult]:
    items = (
        StreamPhoto(index, photo, generator)
        for index, (photo, generator) in enumerate(zip(photos, seeded(*range(len(photos))), strict=True))
    )
    results = list(pipe.stream(items, preset=PRESET, batch_size=slots, album=album, **settings))
    assert [result.error for result in results] == [None] * len(photos)
    return {result.photo.owner: result for result in results}


def same(first: Pixels, second: Pixels) -> bool:
    """Up to what another batch size rounds, which is handed on from face to face."""
    difference = first.astype(int) - second
    return bool(abs(difference).max() <= 1 and (difference != 0).mean() < 0.02)


def test_results_depend_on_seeds_and_order_and_not_on_the_number_of_places(
    pipe: DeDiMPipeline, photos: list[Pixels]
) -> None:
    one, many = (protect(pipe, photos, slots, Album(ANYBODY)) for slots in (1, 16))
    assert all(same(one[index].pixels, many[index].pixels) for index in one)
    alone = protect(pipe, photos, 16, None)
    assert same(alone[0].pixels, one[0].pixels)  # the first knows nobody
    assert not all(same(alone[index].pixels, one[index].pixels) for index in one)


def test_calls_one_after_another_give_what_a_stream_gives(pipe: DeDiMPipeline, photos: list[Pixels]) -> None:
    streamed, album = protect(pipe, photos, 4, Album(ANYBODY)), Album(ANYBODY)
    for index, generator in enumerate(seeded(*range(len(photos)))):
        out = pipe(photos[index], preset=PRESET, generator=generator, album=album)
        assert same(np.asarray(out.images[0]), streamed[index].pixels)
    assert len(album) == 6


def test_a_face_waits_for_its_person_and_for_nobody_else(
    pipe: DeDiMPipeline, photos: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    encode = pipe.unet.forward

    def watch(sample: torch.Tensor, *rest: Any, **options: Any) -> Any:
        batches.append(len(sample))
        return encode(sample, *rest, **options)

    monkeypatch.setattr(pipe.unet, "forward", watch)
    protect(pipe, photos, 16, Album(ANYBODY))
    assert max(batches) == 2  # the two faces of the third photo
    batches.clear()
    protect(pipe, photos, 16, Album(same_person=0.98999))
    assert max(batches) > 2


def test_an_album_knows_who_is_protected_and_nobody_who_is_not(
    pipe: DeDiMPipeline, photos: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    album = Album(ANYBODY)
    results = protect(pipe, photos, 16, album)
    assert all(face.is_protected for result in results.values() for face in result.faces)
    assert len(album) == 6
    strict = Album(ANYBODY)
    never = tiny_preset(threshold=0.01, max_rounds=1)
    items = [StreamPhoto(0, photos[0], *seeded(0)), StreamPhoto(1, photos[1], *seeded(1))]
    assert len(list(pipe.stream(items, preset=never, album=strict))) == 2  # nobody waits for ever
    assert len(strict) == 0


def test_a_photo_that_fails_keeps_nobody_waiting(
    pipe: DeDiMPipeline, photos: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = pipe.unet.forward

    def fail_once(sample: torch.Tensor, *rest: Any, **options: Any) -> Any:
        monkeypatch.setattr(pipe.unet, "forward", encode)
        raise RuntimeError("the first face is to blame")

    monkeypatch.setattr(pipe.unet, "forward", fail_once)
    album = Album(ANYBODY)
    done = list(pipe.stream(photos, preset=PRESET, batch_size=4, album=album, generator=seeded(0)[0]))
    assert sum(result.error is not None for result in done) == 1
    assert len(album) == 5


def test_an_album_of_another_guide_is_refused_for_each_photo(
    pipe: DeDiMPipeline, photos: list[Pixels]
) -> None:
    album = Album()
    album.add(torch.ones(2, 3), torch.ones(2, 3))
    (result,) = pipe.stream(photos[:1], preset=PRESET, album=album)
    assert "begin a new Album for another recogniser" in str(result.error)
    with pytest.raises(ValueError, match="begin a new Album for another recogniser"):
        pipe(photos[0], preset=PRESET, album=album)


def test_who_is_told_apart_gets_settings_of_its_own(
    pipe: DeDiMPipeline, photos: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, int]] = []
    make = type(pipe)._sampler

    def watch(self: DeDiMPipeline, settings: Any, *rest: Any) -> Any:
        sample = make(self, settings, *rest)

        def sample_and_note(x_org: torch.Tensor, *args: Any, **options: Any) -> Any:
            avoid = options.get("avoid")
            seen.append((settings.near_push, 0 if avoid is None else avoid.shape[1]))
            return sample(x_org, *args, **options)

        return sample_and_note

    monkeypatch.setattr(type(pipe), "_sampler", watch)
    protect(pipe, photos, 16, Album(ANYBODY))
    assert {share for share, known in seen if known == 0} == {PRESET.near_push}
    assert {share for share, known in seen if known > 0} == {PRESET.told_apart().near_push}
    seen.clear()
    protect(pipe, photos, 16, None)
    assert {share for share, _ in seen} == {PRESET.near_push}


def test_photos_are_not_read_ahead_of_who_waits_for_its_person(
    pipe: DeDiMPipeline, photos: list[Pixels]
) -> None:
    read: list[int] = []

    def items() -> Any:
        for index, photo in enumerate(photos * 8):
            read.append(index)
            # another picture each time, or it takes the place of the first
            yield StreamPhoto(index, np.roll(photo, index // len(photos), axis=1), *seeded(index))

    ahead = []
    for done, _ in enumerate(pipe.stream(items(), preset=PRESET, batch_size=2, album=Album(ANYBODY))):
        ahead.append(len(read) - done)
    assert len(ahead) == 40
    assert max(ahead) < 20
