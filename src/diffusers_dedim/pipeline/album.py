"""What is already protected of each person, so that a person's protected photos do not find each other.

Two photos of a person move in nearly the same direction when both are pushed away from themselves, and so stay alike.
An album remembers, by the guide's embeddings, what each face was and what became of it; the guidance then pushes the
next face of the same person away from those too.
"""

from __future__ import annotations

import io
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusers_dedim.atomic import remove_unfinished, write_atomic
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
_BLOCK = 256  # originals that lie together: their product with one more stays in the processor's cache


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
        self._known: _Known = _Known()

    def __len__(self) -> int:
        """Faces that it knows."""
        return len(self._known)

    def __iter__(self) -> Iterator[AlbumFace]:
        """The faces in the order in which they were done."""
        return iter(tuple(self._known))

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
        before, _ = self.compare(_kept(original))
        return AlbumFace(original, before=before).avoid

    def clear(self) -> None:
        """Forget everybody."""
        self._known = _Known()

    def compare(
        self, original: Tensor, others: Sequence[AlbumFace] = (), without: Collection[AlbumFace] = ()
    ) -> tuple[tuple[AlbumFace, ...], list[AlbumFace]]:
        """Who is the same person, and who the same picture, among the faces that it knows and some others.

        Args:
            original: the guide's embedding, ``[D]`` or ``[K, D]``, float32 on the CPU.
            others: faces that it does not know yet; in a tie they come last.
            without: faces that do not count.

        Returns:
            Those that show the same person on another picture, the closest ``most``, the closest first; and those that
            a face with this embedding takes the place of.
        """
        lowest = min(self.same_person, SAME_PICTURE)
        alike = self._known.alike(original, lowest)
        if others:
            scores = _scores(torch.stack([face.original for face in others]), original)
            alike += [(others[row], score) for row, score in _at_least(scores, lowest)]
        alike = [each for each in alike if each[0] not in without]
        # as float32, which the scores are
        same_person, same_picture = np.float32(self.same_person), np.float32(SAME_PICTURE)
        alike.sort(key=lambda each: each[1], reverse=True)  # stable: the order of those that are as close
        before = (face for face, score in alike if same_person <= score < same_picture)
        return tuple(islice(before, self.most)), [face for face, score in alike if score >= same_picture]

    def save(self, path: str | os.PathLike[str], face_encoder: nn.Module) -> None:
        """Write it to a file that its owner alone can read, and remove what a kill has left of earlier tries.

        **That is biometric data: keep it as you keep the photos.**

        Args:
            path: the file; replaced at once or not at all.
            face_encoder: the guide whose embeddings it holds.

        Raises:
            OSError: the file cannot be written.
        """
        done = [face for face in self if face.result is not None]
        buffer = io.BytesIO()
        np.savez(
            buffer,
            format=_FORMAT,
            guide=Recogniser.of("", face_encoder).fingerprint,
            originals=np.array([face.original.numpy() for face in done]),
            results=np.array([face.result.numpy() for face in done if face.result is not None]),
        )
        write_atomic(path, buffer.getvalue(), private=True)
        remove_unfinished(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], face_encoder: nn.Module, **settings: Any) -> Album:
        """Read one that was saved.

        Args:
            path: the file.
            face_encoder: the guide it is to serve; embeddings of another one mean nothing to it.
            **settings: as for the class.

        Raises:
            DeDiMError: the file cannot be read, is no album, or was made with another guide.
            FileNotFoundError: there is no such file.
        """
        try:
            data = io.BytesIO(Path(path).read_bytes())
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DeDiMError(f"{path}: the album cannot be read ({error.strerror or error}).") from error
        try:
            with np.load(data, allow_pickle=False) as content:
                kept = {name: content[name] for name in ("format", "guide", "originals", "results")}
            if kept["originals"].shape != kept["results"].shape:
                raise ValueError("it has not one result for each face")
        except Exception as error:  # no zip file, one cut off, objects in it, an array missing
            raise DeDiMError(f"{path}: this is no album of ours ({error}); give another file.") from error
        guide = Recogniser.of("", face_encoder).fingerprint
        if (str(kept["format"]), str(kept["guide"])) != (_FORMAT, guide):
            raise DeDiMError(
                f"{path}: this album was made with another recogniser or version, whose scores mean nothing to this "
                "one; begin a new album under another name."
            )
        album = cls(**settings)
        # none is the same picture as another, or it would not have been kept: they need not be compared again
        for original, result in zip(kept["originals"], kept["results"], strict=True):
            face = AlbumFace(torch.from_numpy(original), torch.from_numpy(result.copy()), settled=True)
            album._known.add(face)
        return album

    def note(self, face: AlbumFace) -> list[AlbumFace]:
        """Put a face that is done at the end, in place of the same picture where there is one; returns those."""
        _, again = self.compare(face.original)
        self._known.remove(again)
        self._known.add(face)
        return again

    def check(self, original: Tensor) -> None:
        """Refuse an embedding that cannot be compared with those it holds.

        Args:
            original: ``[D]`` or ``[K, D]``.

        Raises:
            ValueError: the shape is another.
        """
        if len(self) and original.shape != self._known.shape:
            raise ValueError(
                f"album: expected embeddings of shape {list(self._known.shape)} like those it holds, got "
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
        faces, replaced = [], list[AlbumFace]()
        for original in originals:
            self.album.check(original)
            kept = _kept(original)
            before, again = self.album.compare(kept, self._under_way, self._replaced)
            faces.append(AlbumFace(kept, before=before))
            replaced += again
        self._under_way += faces
        self._replaced.update(replaced)
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
            self._replaced.difference_update(self.album.note(face))
        self._replaced.discard(face)  # who is gone need not be remembered


def _kept(embedding: Tensor) -> Tensor:
    """On the CPU, and no view of a whole batch."""
    return embedding.detach().float().cpu().clone()


def _scores(originals: Tensor, original: Tensor) -> Tensor:
    """Cosine of each of some originals with another one, the mean over the members of an ensemble: ``[N]``.

    No matrix product: that adds up in an order that hangs on how many rows there are, and a face that is as close as
    the line says would be the same person or not by where it lies.
    """
    cosines = (originals * original).sum(-1)
    return cosines if cosines.ndim == 1 else cosines.mean(1)


def _at_least(scores: Tensor, lowest: float) -> list[tuple[int, float]]:
    """Row and score of those that are ``lowest`` or more."""
    rows = (scores >= lowest).nonzero()[:, 0]
    return list(zip(rows.tolist(), scores[rows].tolist(), strict=True))


class _Known:
    """Faces in their order, their originals in blocks: one is compared with all without gathering them first.

    Blocks do not move, so a face's original is a view of its row, and nothing is held twice.
    """

    def __init__(self) -> None:
        self._rows: dict[AlbumFace, int] = {}
        self._faces: list[AlbumFace | None] = []  # by row; None where one was removed
        self._blocks: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[AlbumFace]:
        return iter(self._rows)

    @property
    def shape(self) -> torch.Size:
        """Of the embeddings; where there is a face."""
        return self._blocks[0].shape[1:]

    def add(self, face: AlbumFace) -> None:
        """Put a face at the end."""
        number, place = divmod(len(self._faces), _BLOCK)
        if number == len(self._blocks):
            with torch.inference_mode(False):  # what is made under it could not be written to without it
                # zeros: whoever is handed a block, as by pickle, is handed nothing else that was in memory
                self._blocks.append(torch.zeros(_BLOCK, *face.original.shape))
        self._rows[face] = len(self._faces)
        self._faces.append(face)
        face.original = self._blocks[number][place].copy_(face.original)

    def remove(self, faces: Iterable[AlbumFace]) -> None:
        """Take faces out."""
        for face in faces:
            row = self._rows.pop(face)
            self._faces[row] = None
            face.original = face.original.clone()  # keeps no block in memory
            self._blocks[row // _BLOCK][row % _BLOCK] = 0
        if len(self._faces) > 2 * len(self._rows) + _BLOCK:  # most rows are nobody's
            left, rest = list(self._rows), _Known()
            for face in left:
                rest.add(face)
            self._rows, self._faces, self._blocks = rest._rows, rest._faces, rest._blocks

    def alike(self, original: Tensor, lowest: float) -> list[tuple[AlbumFace, float]]:
        """Those whose score with an original is ``lowest`` or more, with it, in their order."""
        found: list[tuple[AlbumFace, float]] = []
        for number, block in enumerate(self._blocks):
            first = number * _BLOCK
            scores = _scores(block[: len(self._faces) - first], original)
            pairs = ((self._faces[first + row], score) for row, score in _at_least(scores, lowest))
            found += [(face, score) for face, score in pairs if face is not None]
        return found
