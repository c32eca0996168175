"""Who is on the photos that a visitor has opened: each person once, over all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from diffusers_dedim.demo.photos import OpenedPhoto
from diffusers_dedim.faces import Face
from diffusers_dedim.faces.find import MIN_FACE_SIZE
from diffusers_dedim.images.modes import PixelArray
from diffusers_dedim.pipeline.persons import IS

_SIDE, _SMALL_SIDE, _GAP = (
    192,
    60,
    6,
)  # px of a person's picture and of its further faces: twice what is shown
_MOST_FURTHER = 3


@dataclass(frozen=True)
class Person:
    """Faces that are chosen together.

    Attributes:
        faces: (photo, face), indices of both; at most one face of a photo.
        small: they are all the faces that are too small to be told apart, of any number of people.
    """

    faces: tuple[tuple[int, int], ...]
    small: bool = False


@dataclass(frozen=True, eq=False)
class OpenedPhotos:
    """What a visitor has opened.

    Attributes:
        photos: that can be used.
        people: who is on them; every face belongs to one.
        problems: (number, name, why) of the files that cannot.
    """

    photos: tuple[OpenedPhoto, ...]
    people: tuple[Person, ...]
    problems: tuple[tuple[int, str, str], ...] = ()

    @property
    def everybody(self) -> list[int]:
        """Indices of all people."""
        return list(range(len(self.people)))

    @property
    def names(self) -> list[str]:
        """What the page calls each person."""
        return ["small" if person.small else str(index + 1) for index, person in enumerate(self.people)]

    def owner(self, photo: int, face: int) -> int:
        """Index of the person that a face belongs to."""
        return next(index for index, person in enumerate(self.people) if (photo, face) in person.faces)

    def faces_of(self, photo: int, chosen: Collection[int]) -> list[int]:
        """Indices of a photo's faces that belong to these people."""
        return [face for face in self.photos[photo].everybody if self.owner(photo, face) in chosen]

    def tags(self, photo: int) -> list[str]:
        """What the page calls each face of a photo."""
        return [self.names[self.owner(photo, face)] for face in self.photos[photo].everybody]

    def with_face(self, photo: int, face: Face, pixels: PixelArray) -> OpenedPhotos:
        """The same with a face that was drawn by hand: a person of its own, whomever else it looks like."""
        photos = list(self.photos)
        drawn = Person(((photo, len(photos[photo].faces)),))
        photos[photo] = photos[photo].with_face(face, pixels)
        at = next((index for index, person in enumerate(self.people) if person.small), len(self.people))
        return replace(self, photos=tuple(photos), people=(*self.people[:at], drawn, *self.people[at:]))


def find_people(photos: Sequence[OpenedPhoto]) -> tuple[Person, ...]:
    """Put the faces of all photos together by person, where there is no doubt.

    Leaving out a person leaves out all of its faces, so a face that is joined to the wrong one would go unprotected
    with it; two pictures of one person that stay apart only cost a click. Hence a face is joined where every recogniser
    finds it to be the same (`IS`) as **every** face of the person, and never to one that is on the same photo. Where no
    embeddings are known, each face stands alone. Small faces say too little: they are one group, the last.

    Args:
        photos: opened.

    Example:
        >>> find_people([])
        ()
    """
    people: list[list[tuple[int, int]]] = []
    small: list[tuple[int, int]] = []
    for number, photo in enumerate(photos):
        for index, face in enumerate(photo.faces):
            if face.size < MIN_FACE_SIZE:
                small.append((number, index))
                continue
            best = max(people, key=lambda faces: _likeness(photos, faces, (number, index)), default=[])
            if best and _likeness(photos, best, (number, index)) >= IS:
                best.append((number, index))
            else:
                people.append([(number, index)])
    found = tuple(Person(tuple(faces)) for faces in people)
    return (*found, Person(tuple(small), small=True)) if small else found


def _likeness(
    photos: Sequence[OpenedPhoto], faces: Sequence[tuple[int, int]], face: tuple[int, int]
) -> float:
    """Least cosine of a face with those of a person, by the recogniser that finds it least like; -1 for never."""
    one = photos[face[0]].embeddings
    likes = [-1.0]
    for photo, index in faces:
        other = photos[photo].embeddings
        if one is None or other is None or photo == face[0]:
            return -1.0
        likes.append(float(np.min((one[face[1]] * other[index]).sum(-1))))
    return min(likes[1:], default=-1.0)


def portrait(opened: OpenedPhotos, person: Person) -> Image.Image:
    """The first face of a person, and below it a few more where there are more: who was joined can be seen.

    Returns:
        RGBA, nothing between the faces.
    """
    squares = [opened.photos[photo].squares[face] for photo, face in person.faces]
    further = squares[1 : 1 + _MOST_FURTHER]
    picture = Image.new("RGBA", (_SIDE, _SIDE + (_SMALL_SIDE + _GAP if further else 0)))
    picture.paste(squares[0].resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
    for index, square in enumerate(further):
        small = square.resize((_SMALL_SIDE, _SMALL_SIDE), Image.Resampling.LANCZOS)
        picture.paste(small, (index * (_SMALL_SIDE + _GAP), _SIDE + _GAP))
    return picture
