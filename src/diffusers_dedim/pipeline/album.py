"""What is already protected of each person, so that a person's protected photos do not find each other.

Two photos of a person move in nearly the same direction when both are pushed away from themselves, and so stay alike.
An album remembers, by the guide's embeddings, what each face was and what became of it; the guidance then pushes the
next face of the same person away from those too.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusers_dedim.atomic import write_atomic
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.errors import DeDiMError

SAME_PERSON = 0.3
"""Mean cosine of the guides from which two originals count as one person.

Well below their false match rate of 0.001, because the two mistakes do not cost the same: a stranger who is taken for
the person is told apart from it for a little change, a photo of the person that is not joined is found by the others.
"""

SAME_PICTURE = 0.99
"""Mean cosine from which two originals count as one picture: protecting it again replaces what became of it."""

MOST_AVOIDED = 8

_FORMAT = "diffusers-dedim/album/1"


@dataclass(eq=False)
class AlbumFace:
    """A face that an album knows, or that is on its way into it.

    Attributes:
        original: the guide's embedding of the face as it was, ``[D]``, or ``[K, D]`` of an `EncoderEnsemble`.
        result: of what became of it; None while it is under way, and where nothing came of it.
        before: the faces of the same person that were there first, the closest `Album.most` of them.
        settled: whether it is no longer under way.
    """

    original: Tensor
    result: Tensor | None = None
    before: tuple[AlbumFace, ...] = ()
    settled: bool = False

    @property
    def ready(self) -> bool:
        """Whether all that it is to be told apart from is known."""
        return all(face.settled for face in self.before)

    @property
    def avoid(self) -> Tensor:
        """What it is to be told apart from: results of the same person, ``[M, D]`` or ``[M, K, D]``, M may be 0."""
        known = [face.result for face in self.before if face.result is not None]
        return torch.stack(known) if known else self.original.new_zeros(0, *self.original.shape)


class Album:
    """The protected photos of some people, as far as the guide sees them; held in memory alone.

    Give one to the pipeline call after call, or to one stream: each face is then pushed away from what is already
    protected of the same person, besides from itself. Who is the same person the guide's own scores say, by the
    originals: no name is needed, and a stranger who is taken for the person costs a little more change, no more. A face
    is told apart from its nearest ``most`` faces, so that neither a long album nor a wrong friend decides everything.

    **A photo's result then depends on the photos before it.** For the same seed and order it is the same again.

    What is held are embeddings: biometric data. Nothing is written unless you call `save`.

    Args:
        same_person: mean cosine over the guides, in (-1, 1), from which two originals count as one person. The default
            suits the bundled guides; `python -m benchmarks.albums` prints the line of any other.
        most: results that one face is pushed away from, at least 1.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> album = Album()
        >>> for number, photo in enumerate(photos):  # doctest: +SKIP
        ...     out = pipe(photo, album=album)
        ...     if all(face.is_protected for face in out.faces):
        ...         out.images[0].save(f"protected-{number}.png")
    """

    def __init__(self, same_person: float = SAME_PERSON, most: int = MOST_AVOIDED) -> None:
        if not -1 < same_person < 1:
            raise ValueError(f"same_person: expected a cosine between -1 and 1, got {same_person}.")
        if most < 1:
            raise ValueError(f"most: expected at least 1 result to push away from, got {most}.")
        self.same_person: float = same_person
        self.most: int = most
        self._faces: list[AlbumFace] = []

    def __len__(self) -> int:
        """Faces that it knows."""
        return len(self._faces)

    def __iter__(self) -> Iterator[AlbumFace]:
        """The faces in the order in which they were done."""
        return iter(self._faces)

    def add(self, original: Tensor, result: Tensor) -> None:
        """Note what became of a face; the same picture again takes the place of what it was before.

        Args:
            original: the guide's embedding of the face as it was, ``[D]`` or ``[K, D]``.
            result: of the face as it is now, of the same shape.

        Raises:
            ValueError: the shapes differ, or are not those of what it holds already.

        Example:
            >>> album = Album()
            >>> album.add(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
            >>> len(album)
            1
        """
        if result.shape != original.shape:
            raise ValueError(
                f"result: expected the shape of original {list(original.shape)}, got {list(result.shape)}."
            )
        self.check(original)
        self.note(AlbumFace(_kept(original), _kept(result), settled=True))

    def avoid(self, original: Tensor) -> Tensor:
        """What a face with this embedding is to be told apart from.

        Args:
            original: ``[D]`` or ``[K, D]``.

        Returns:
            ``[M, D]`` or ``[M, K, D]``, M from 0 to ``most``, the nearest person first.

        Raises:
            ValueError: the shape is not that of what it holds.

        Example:
            >>> Album().avoid(torch.tensor([1.0, 0.0])).shape
            torch.Size([0, 2])
        """
        self.check(original)
        return AlbumFace(original, before=self.nearest(_kept(original), self._faces)).avoid

    def clear(self) -> None:
        """Forget everybody."""
        self._faces.clear()

    def nearest(self, original: Tensor, faces: list[AlbumFace]) -> tuple[AlbumFace, ...]:
        """Those of ``faces`` that show the same person on another picture: the closest ``most``, the closest first."""
        if not faces:
            return ()
        scores = _scores(original, faces)
        order = scores.argsort(descending=True, stable=True).tolist()
        same = [row for row in order if self.same_person <= scores[row] < SAME_PICTURE]
        return tuple(faces[row] for row in same[: self.most])

    def same_pictures(self, original: Tensor, faces: list[AlbumFace]) -> list[AlbumFace]:
        """Those of ``faces`` that a face with this embedding takes the place of."""
        if not faces:
            return []
        same = (_scores(original, faces) >= SAME_PICTURE).tolist()
        return [face for face, again in zip(faces, same, strict=True) if again]

    def save(self, path: str | os.PathLike[str], face_encoder: nn.Module) -> None:
        """Write it to a file that its owner alone can read.

        **That is biometric data: keep it as you keep the photos.**

        Args:
            path: the file; replaced at once or not at all.
            face_encoder: the guide whose embeddings it holds.

        Raises:
            OSError: the file cannot be written.
        """
        done = [face for face in self._faces if face.result is not None]
        buffer = io.BytesIO()
        np.savez(
            buffer,
            format=_FORMAT,
            guide=Recogniser.of("", face_encoder).fingerprint,
            originals=np.array([face.original.numpy() for face in done]),
            results=np.array([face.result.numpy() for face in done if face.result is not None]),
        )
        write_atomic(path, buffer.getvalue(), private=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], face_encoder: nn.Module, **settings: Any) -> Album:
        """Read one that was saved.

        Args:
            path: the file.
            face_encoder: the guide it is to serve; embeddings of another one mean nothing to it.
            **settings: as for the class.

        Raises:
            DeDiMError: the file is no album, or was made with another guide.
            FileNotFoundError: there is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                kept = {name: content[name] for name in ("format", "guide", "originals", "results")}
        except FileNotFoundError:
            raise
        except Exception as error:  # no zip file, one cut off, objects in it, an array missing
            raise DeDiMError(f"{path}: this is no album of ours ({error}); give another file.") from error
        guide = Recogniser.of("", face_encoder).fingerprint
        if (str(kept["format"]), str(kept["guide"])) != (_FORMAT, guide):
            raise DeDiMError(
                f"{path}: this album was made with another recogniser or version, whose scores mean nothing to this "
                "one; begin a new album under another name."
            )
        album = cls(**settings)
        for original, result in zip(kept["originals"], kept["results"], strict=True):
            album.add(torch.from_numpy(original), torch.from_numpy(result))
        return album

    def note(self, face: AlbumFace) -> None:
        """Put a face that is done at the end, in place of the same picture where there is one."""
        again = set(self.same_pictures(face.original, self._faces))
        self._faces = [*(each for each in self._faces if each not in again), face]

    def check(self, original: Tensor) -> None:
        """Refuse an embedding that cannot be compared with those it holds.

        Args:
            original: ``[D]`` or ``[K, D]``.

        Raises:
            ValueError: the shape is another.
        """
        if self._faces and original.shape != self._faces[0].original.shape:
            raise ValueError(
                f"album: expected embeddings of shape {list(self._faces[0].original.shape)} like those it holds, got "
                f"{list(original.shape)}; begin a new Album for another recogniser."
            )


class AlbumQueue:
    """The faces of one stream on their way into an album, in their order.

    Who a face is to be told apart from is settled when it comes, by the originals alone: those of its person that the
    album knows, and those on photos that came before its own. So its result depends on seeds and order, and not on how
    many faces are worked on at a time. Two faces of one photo are taken for two people: neither waits for the other. A
    stream that ends early leaves nothing behind that anybody would wait for.

    Args:
        album: gets what is done.

    Example:
        >>> queue = AlbumQueue(Album(same_person=0.5))
        >>> (first,), (second,) = (queue.enter(torch.tensor([each])) for each in ([1.0, 0.0], [0.8, 0.6]))
        >>> first.ready, second.ready
        (True, False)
        >>> queue.leave(first, torch.tensor([0.0, 1.0]))
        >>> second.ready, second.avoid.tolist()
        (True, [[0.0, 1.0]])
    """

    def __init__(self, album: Album) -> None:
        self.album = album
        self._under_way: list[AlbumFace] = []
        self._replaced: set[AlbumFace] = set()

    def enter(self, originals: Tensor) -> list[AlbumFace]:
        """Note the faces of a photo that are to be protected.

        Args:
            originals: the guide's embeddings, ``[N, D]`` or ``[N, K, D]``.

        Returns:
            One for each.

        Raises:
            ValueError: the album holds embeddings of another shape.
        """
        # by those that came, not by those that are done: how many are done hangs on how many are worked on at a time
        earlier = [face for face in (*self.album, *self._under_way) if face not in self._replaced]
        faces = []
        for original in originals:
            self.album.check(original)
            kept = _kept(original)
            faces.append(AlbumFace(kept, before=self.album.nearest(kept, earlier)))
            self._replaced |= set(self.album.same_pictures(kept, earlier))
        self._under_way += faces
        return faces

    def leave(self, face: AlbumFace, result: Tensor | None) -> None:
        """Settle a face: with what became of it, or None where nothing did.

        Args:
            face: as `enter` gave it.
            result: embedding of what became of it, ``[D]`` or ``[K, D]``.
        """
        face.settled, face.before = True, ()  # those before it are of no more use, nor those before them
        face.result = None if result is None else _kept(result)
        self._under_way.remove(face)
        if face.result is not None and face not in self._replaced:
            self.album.note(face)


def _kept(embedding: Tensor) -> Tensor:
    """On the CPU, and no view of a whole batch."""
    return embedding.detach().float().cpu().clone()


def _scores(original: Tensor, faces: list[AlbumFace]) -> Tensor:
    """Cosine of an original with those of faces, the mean over the members of an ensemble: ``[N]``."""
    cosines = (torch.stack([face.original for face in faces]) * original).sum(-1)
    return cosines if cosines.ndim == 1 else cosines.mean(1)
