"""Who is in a video: a person's mean embedding, the change that person wears, and the one who comes back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from diffusers_dedim.diffusion.matching import match_probability
from diffusers_dedim.pipeline.album import Album

SAME_PERSON = 0.5
"""Cosine of an embedding with a person's mean from which on the two are one person."""

STILL_THERE = 0.25
"""Cosine above which what is followed is still taken for the person: in doubt it is, and stays protected."""

_FIRST = 10  # embeddings that count alike in the mean
_SLOWLY = 0.02  # share of each later one
_MOST_PEOPLE = 256  # that are remembered; who was seen longest ago is forgotten first


@dataclass(eq=False)
class Person:
    """A person of a video.

    Attributes:
        number: from 0, in the order of appearance.
        embedding: v_0, the mean of the first embeddings of the original face, moved slowly by later ones; unit vectors
            ``[D]``, or ``[K, D]`` of an ensemble.
        change: what is added to the aligned crop now, ``[3, 112, 112]`` in [-2, 2], or None before the first frame.
            Where the mask is below 1 it is that much smaller already.
        target: where the change is moving to, or None.
        gate: mask ``[1, 112, 112]`` in [0, 1] that the target was made with, or None.
        tired_for: frames for which a face above h gets one short round each and no more: all tries failed, or 0.
        draw: number of the noise that rounds begin with: the same until a round does not help.
        settled_for: frames for which a face a little below h takes no round: the last one did not help, or 0.
        small: the face was too small in the last frame.
        hidden: too little of it was visible in the last frame.
        half_hidden: frames for which much of it has not been visible now.
        whole: the last target and gate that were not made while it was half hidden, or None.
        avoid: embeddings ``[M, D]`` or ``[M, K, D]`` of protected photos of this person, which the change leads away
            from too; None for none.
        result: embedding of the face in the last frame in which it ended below h, or None.
        seen: how many embeddings are in the mean.
    """

    number: int
    embedding: Tensor
    change: Tensor | None = None
    target: Tensor | None = None
    gate: Tensor | None = None
    tired_for: int = 0
    draw: int = 0
    settled_for: int = 0
    small: bool = False
    hidden: bool = False
    half_hidden: int = 0
    whole: tuple[Tensor, Tensor] | None = None
    avoid: Tensor | None = None
    result: Tensor | None = None
    seen: int = 1

    def meet(self, embedding: Tensor) -> None:
        """Take another embedding of the original face into the mean, if it is like the others."""
        if likeness(embedding, self.embedding) < STILL_THERE:
            return
        self.seen += 1
        share = 1 / self.seen if self.seen <= _FIRST else _SLOWLY
        self.embedding = functional.normalize(torch.lerp(self.embedding, embedding, share), dim=-1)


def likeness(embedding: Tensor, other: Tensor) -> float:
    """Cosine of two embeddings ``[D]``; of two of an ensemble, ``[K, D]``, that of the member that matches best.

    Example:
        >>> likeness(torch.eye(2)[0], torch.eye(2)[0])
        1.0
    """
    return 2 * float(match_probability(embedding[None], other[None])) - 1


class People:
    """Everybody who was seen; a face that comes back is told by its embedding.

    Given to one video after another it makes a person wear one changed face in all of them. What it holds are
    embeddings, biometric data: it lives in memory alone.

    Args:
        same_person: cosine with a person's mean from which on a face is that person's.
        album: protected photos, which the faces of somebody new are told apart from; gets what becomes of the people of
            each video. None for none.

    Raises:
        ValueError: it is no cosine.

    Example:
        >>> people = People()
        >>> people.find(torch.eye(2)[0], []).number, people.find(torch.eye(2)[1], []).number
        (0, 1)
        >>> people.find(torch.tensor([0.9, 0.1]), []).number
        0
    """

    def __init__(self, same_person: float = SAME_PERSON, album: Album | None = None) -> None:
        if not -1 < same_person < 1:
            raise ValueError(f"same_person: expected a cosine between -1 and 1, got {same_person}.")
        self.same_person: float = same_person
        self.album: Album | None = album
        self._known: list[Person] = []
        self._count = 0

    def find(self, embedding: Tensor, elsewhere: Collection[Person]) -> Person:
        """The person whose face this is; somebody new where it is nobody's who is known.

        Args:
            embedding: of the original face, ``[D]`` or ``[K, D]``.
            elsewhere: who is in the picture already, and so is not this one.
        """
        free = [person for person in self._known if person not in elsewhere]
        alike = [(likeness(embedding, person.embedding), person) for person in free]
        cosine, found = max(alike, key=lambda pair: pair[0], default=(-1.0, None))
        if found is None or cosine < self.same_person:
            found = Person(self._count, embedding)
            if self.album is not None and len(self.album):
                avoid = self.album.avoid(embedding.float().cpu())
                found.avoid = avoid.to(embedding) if len(avoid) else None
            self._count += 1
        else:
            self._known.remove(found)
        self._known = [*self._known, found][-_MOST_PEOPLE:]
        return found

    def earlier(self, embedding: Tensor, person: Person, elsewhere: Collection[Person]) -> Person | None:
        """Who this face is more like than the person it was taken for, and was seen before; None where there is nobody.

        Args:
            embedding: of the original face, ``[D]`` or ``[K, D]``.
            person: whose face it was taken for.
            elsewhere: who is in the picture already.
        """
        least = max(self.same_person, likeness(embedding, person.embedding))
        known = [each for each in self._known if each.number < person.number and each not in elsewhere]
        alike = [(likeness(embedding, each.embedding), each) for each in known]
        cosine, found = max(alike, key=lambda pair: pair[0], default=(-1.0, None))
        return found if cosine > least else None

    def end_video(self) -> None:
        """A video is done: note in the album, if there is one, what became of its people."""
        for person in self._known:
            if self.album is not None and person.result is not None:
                self.album.add(person.embedding.float().cpu(), person.result.float().cpu())
            person.result = None
