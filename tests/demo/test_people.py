"""People over several photos: joined where there is no doubt, and in doubt a person more."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from toy_demo import toy_face, toy_handlers

from diffusers_dedim.demo import protect as scores
from diffusers_dedim.demo import texts
from diffusers_dedim.demo.handlers import Upload
from diffusers_dedim.demo.people import OpenedPhotos, Person, find_people, portrait
from diffusers_dedim.demo.photos import OpenedPhoto
from diffusers_dedim.demo.protect import ScoreScale
from diffusers_dedim.pipeline.persons import IS


def at(*degrees: float) -> NDArray[np.float32]:
    """Unit vectors at these angles."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def photo(embeddings: NDArray[np.float32] | None, count: int = 1, side: float = 60) -> OpenedPhoto:
    squares = (Image.new("RGB", (112, 112)),) * count
    return OpenedPhoto(
        b"",
        (100, 300),
        b"",
        tuple(toy_face(70 * index, 5, side) for index in range(count)),
        squares,
        embeddings,
    )


def faces(people: tuple[Person, ...]) -> list[tuple[tuple[int, int], ...]]:
    return [person.faces for person in people]


def test_the_same_person_on_several_photos_is_one() -> None:
    people = find_people([photo(at(0, 120), 2), photo(at(10)), photo(at(125))])
    assert faces(people) == [((0, 0), (1, 0)), ((0, 1), (2, 0))]


def test_a_chain_of_likenesses_joins_nobody_who_is_unlike() -> None:
    """0 is like 50, and 50 like 100, but 0 is not like 100."""
    assert np.cos(np.radians(50)) > IS > np.cos(np.radians(100))
    people = find_people([photo(at(0)), photo(at(50)), photo(at(100))])
    assert faces(people) == [((0, 0), (1, 0)), ((2, 0),)]


def test_two_faces_of_one_photo_are_two_people() -> None:
    people = find_people([photo(at(0, 1), 2), photo(at(2))])
    assert faces(people) == [((0, 0),), ((0, 1), (1, 0))]


def test_every_guide_must_find_it_the_same() -> None:
    agree = np.stack([at(0), at(0)], axis=1)  # [1, 2 guides, 2]
    differ = np.stack([at(0), at(70)], axis=1)
    assert len(find_people([photo(agree), photo(agree)])) == 1
    assert len(find_people([photo(agree), photo(differ)])) == 2


def test_without_embeddings_each_face_stands_alone_and_small_ones_are_one_group() -> None:
    people = find_people([photo(None), photo(None, 2, side=20), photo(None), photo(at(0), 1, side=20)])
    assert faces(people) == [((0, 0),), ((2, 0),), ((1, 0), (1, 1), (3, 0))]
    opened = OpenedPhotos((photo(None),) * 4, people)
    assert [person.small for person in people] == [False, False, True]
    assert texts.people_labels(opened) == ["Person 1", "Person 2", "3 small, blurred"]


def test_a_picture_shows_who_was_joined() -> None:
    squares = [Image.new("RGB", (112, 112), colour) for colour in ("red", "green", "blue")]
    photos = tuple(OpenedPhoto(b"", (9, 9), b"", (toy_face(0, 0, 60),), (square,)) for square in squares)
    opened = OpenedPhotos(photos, (Person(((0, 0), (1, 0), (2, 0))), Person(((1, 0),))))
    joined, alone = (portrait(opened, person) for person in opened.people)
    assert joined.height > alone.height == joined.width
    assert joined.getpixel((90, 90)) == (255, 0, 0, 255)
    assert joined.getpixel((10, joined.height - 10)) == (0, 128, 0, 255)
    assert joined.getpixel((80, joined.height - 10)) == (0, 0, 255, 255)


def test_only_a_recogniser_whose_scale_is_known_says_who_is_who(tmp_path, monkeypatch) -> None:
    """By dlib's numbers, say, everybody would be the same person, and be left out together."""
    noise = np.random.default_rng(0).integers(40, 216, (120, 200, 3), dtype=np.uint8)
    uploads = []
    for index in range(2):
        Image.fromarray(noise).save(tmp_path / f"{index}.png")
        uploads.append(Upload(str(tmp_path / f"{index}.png")))
    assert len(toy_handlers(lambda _: [toy_face(20, 30, 60)]).open(uploads).people) == 2
    monkeypatch.setitem(scores.SCALES, "toy", ScoreScale(0.1, 0.45))
    opened = toy_handlers(lambda _: [toy_face(20, 30, 60)]).open(uploads)
    assert faces(opened.people) == [((0, 0), (1, 0))]
    assert texts.people_found(opened) == "One person on 2 photos."
