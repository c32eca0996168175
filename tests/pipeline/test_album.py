from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import ToyEncoder

from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.pipeline.album import Album, AlbumQueue


def unit(*values: float) -> Tensor:
    return nn.functional.normalize(torch.tensor(values, dtype=torch.float32), dim=0)


ANN, ANN_LATER, ANN_OLD, BOB = unit(1, 0, 0), unit(1, 0.5, 0), unit(1, 1, 0), unit(0, 0, 1)


def results(album: Album, original: Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in album.avoid(original).tolist()]


def test_a_face_is_told_apart_from_what_became_of_the_same_person_the_nearest_first() -> None:
    album = Album(same_person=0.5)
    assert results(album, ANN) == []
    album.add(ANN_OLD, unit(0, 1, 0))
    album.add(BOB, unit(0, 0, -1))
    album.add(ANN_LATER, unit(-1, 0, 0))
    assert results(album, ANN) == [[-1, 0, 0], [0, 1, 0]]
    assert results(album, BOB) == []  # the same picture again
    assert len(album) == 3
    album.clear()
    assert results(album, ANN) == []


def test_the_line_decides_who_is_the_same_person_and_the_cap_how_many_count() -> None:
    # the two are alike by 0.894
    for line, found in ((0.88, 1), (0.9, 0)):
        album = Album(same_person=line)
        album.add(ANN_LATER, BOB)
        assert len(album.avoid(ANN)) == found
    album = Album(most=2)
    for step in range(1, 6):
        album.add(unit(1, step / 5, 0), unit(step, 1, 1))
    assert torch.equal(album.avoid(ANN), torch.stack([unit(1, 1, 1), unit(2, 1, 1)]))


def test_the_same_picture_again_takes_the_place_of_what_it_was() -> None:
    album = Album(same_person=0.5)
    album.add(ANN, unit(0, 1, 0))
    album.add(ANN_LATER, unit(0, 0, 1))
    album.add(ANN, unit(0, -1, 0))
    assert len(album) == 2
    assert results(album, ANN_LATER) == [[0, -1, 0]]


def test_of_an_ensemble_the_mean_over_its_members_decides() -> None:
    album = Album(same_person=0.5)
    one_of_two = torch.stack([ANN, BOB])
    album.add(one_of_two, torch.stack([BOB, ANN]))
    assert album.avoid(torch.stack([ANN_OLD, ANN_OLD])).shape == (0, 2, 3)  # 0.71 and 0: 0.35
    assert album.avoid(torch.stack([ANN_OLD, unit(0, 1, 1)])).shape == (1, 2, 3)  # 0.71 twice


def test_a_face_waits_for_those_of_its_person_that_came_before_it() -> None:
    queue = AlbumQueue(Album(same_person=0.5))
    (first, other), (second,), (third,) = map(
        queue.enter, (torch.stack([ANN, BOB]), ANN_LATER[None], ANN_OLD[None])
    )
    assert [face.ready for face in (first, other, second, third)] == [True, True, False, False]
    queue.leave(first, unit(0, 1, 0))
    assert [face.ready for face in (second, third)] == [True, False]
    queue.leave(second, None)  # nothing became of it: nothing to be told apart from
    assert third.ready
    assert torch.equal(third.avoid, unit(0, 1, 0)[None])
    assert [face.original.tolist() for face in queue.album] == [ANN.tolist()]
    queue.leave(third, unit(0, 1, 1))
    queue.leave(other, unit(1, 1, 1))
    assert len(queue.album) == 3
    assert all(face.before == () for face in queue.album)  # nobody keeps everybody before him in memory


def test_whom_a_face_replaces_hangs_on_who_came_and_not_on_who_is_done() -> None:
    """The second is the first again; the third is to be told apart from the second alone."""
    for done_at_once in (True, False):
        queue = AlbumQueue(Album(same_person=0.5))
        (first,) = queue.enter(ANN[None])
        if done_at_once:
            queue.leave(first, unit(0, 1, 0))
        (second,) = queue.enter(ANN[None])
        if done_at_once:
            queue.leave(second, unit(0, 0, 1))
        (third,) = queue.enter(ANN_LATER[None])
        if not done_at_once:
            queue.leave(second, unit(0, 0, 1))
            queue.leave(first, unit(0, 1, 0))  # later than what takes its place
        assert torch.equal(third.avoid, unit(0, 0, 1)[None])
        assert [face.result.tolist() for face in queue.album] == [[0, 0, 1]]


def test_two_faces_of_one_photo_do_not_wait_for_each_other() -> None:
    queue = AlbumQueue(Album(same_person=0.5))
    faces = queue.enter(torch.stack([ANN, ANN_LATER]))
    assert [face.ready for face in faces] == [True, True]
    (later,) = queue.enter(ANN_OLD[None])
    queue.leave(faces[0], BOB)
    assert not later.ready
    queue.leave(faces[1], BOB)
    assert later.avoid.shape == (2, 3)


def test_an_earlier_stream_that_was_left_keeps_nobody_waiting() -> None:
    album = Album(same_person=0.5)
    AlbumQueue(album).enter(ANN[None])
    (later,) = AlbumQueue(album).enter(ANN_LATER[None])
    assert later.ready
    assert later.avoid.shape == (0, 3)


def test_a_face_costs_no_more_than_looking_at_those_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them is fetched or copied for it: in a large folder that took longer than the networks."""
    draw = torch.Generator().manual_seed(0)
    faces = nn.functional.normalize(torch.randn(600, 2, 16, generator=draw), dim=-1)
    queue = AlbumQueue(Album())
    for face in faces:
        queue.leave(queue.enter(face[None])[0], face)
    stack, stacked = torch.stack, list[int]()
    monkeypatch.setattr(torch, "stack", lambda rows: (stacked.append(len(rows)), stack(rows))[1])
    (again,) = queue.enter(faces[:1])
    queue.leave(again, faces[0])
    assert sum(stacked) == 0
    assert len(queue.album) == 600


@pytest.mark.parametrize("shape", [(128,), (2, 512)])
def test_among_many_the_same_are_found_as_among_few_to_the_last_bit(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    people = torch.randn(9, *shape, generator=draw)
    known = people.repeat(70, *[1] * len(shape))
    known = nn.functional.normalize(known + torch.randn(known.shape, generator=draw), dim=-1)
    album = Album(same_person=0.4)
    for number, face in enumerate(known):
        album.add(face, known[-number])
        if number % 3:  # again, in place of what it was
            album.add(face, known[number - 1])
    kept = list(album)
    originals = torch.stack([face.original for face in kept])
    assert torch.equal(originals, known)
    scores = (originals * people[0]).sum(-1).reshape(len(kept), -1).mean(1)
    best = [row for row in scores.argsort(descending=True).tolist() if 0.4 <= scores[row] < 0.99][:8]
    assert len(best) == 8
    results = [face.result for row in best for face in [kept[row]] if face.result is not None]
    assert torch.equal(album.avoid(people[0]), torch.stack(results))


def test_it_goes_on_outside_of_inference_mode() -> None:
    album = Album(same_person=0.5)
    with torch.inference_mode():
        album.add(ANN * 1, BOB * 1)
    album.add(ANN_LATER, BOB)
    with torch.inference_mode():
        assert len(album.avoid(ANN_OLD)) == 2


def test_what_was_replaced_is_not_remembered() -> None:
    queue = AlbumQueue(Album())
    for _ in range(3):
        queue.leave(queue.enter(ANN[None])[0], BOB)
    (last,) = queue.enter(ANN[None])
    assert len(queue._replaced) == 1  # what is in the album until this one is done
    queue.leave(last, BOB)
    assert len(queue._replaced) == 0


def test_nothing_is_left_of_who_was_replaced() -> None:
    """The rows that held them are handed on with an album that is pickled."""
    album = Album()
    for _ in range(3):
        album.add(ANN, BOB)
    (block,) = album._known._blocks
    assert int(block.any(1).sum()) == len(album) == 1


def test_what_is_kept_is_no_view_of_a_batch() -> None:
    batch = torch.stack([ANN, BOB])
    queue = AlbumQueue(Album())
    queue.leave(queue.enter(batch[:1])[0], batch[1])
    batch.zero_()
    (face,) = queue.album
    assert torch.equal(face.original, ANN)
    assert torch.equal(face.result, BOB)


def test_a_file_gives_the_album_back_to_the_same_guide_alone(tmp_path: Path) -> None:
    path, guide = tmp_path / "me.album", ToyEncoder(dim=3)
    album = Album(same_person=0.5)
    album.save(path, guide)
    assert len(Album.load(path, guide)) == 0
    album.add(ANN, unit(0, 1, 0))
    album.add(BOB, unit(1, 1, 1))
    album.save(path, guide)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Album.load(path, guide, same_person=0.5, most=3)
    assert again.most == 3
    for ours, theirs in zip(album, again, strict=True):
        assert torch.equal(ours.original, theirs.original)
        assert torch.equal(ours.result, theirs.result)
    with pytest.raises(
        DeDiMError, match=r"me\.album: this album was made with another recogniser or version"
    ):
        Album.load(path, ToyEncoder(dim=3, seed=1))
    with pytest.raises(FileNotFoundError):
        Album.load(tmp_path / "none", guide)


def test_nobody_else_can_read_it_while_it_is_written_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (modes.append(stat.S_IMODE(os.fstat(file).st_mode)), fsync(file))
    )
    (tmp_path / "me.album").touch(0o644)
    Album().save(tmp_path / "me.album", ToyEncoder(dim=3))
    assert modes == [0o600]
    assert stat.S_IMODE((tmp_path / "me.album").stat().st_mode) == 0o600


def test_a_file_that_is_no_album_is_refused(tmp_path: Path) -> None:
    path, guide = tmp_path / "album", ToyEncoder(dim=3)
    album = Album()
    album.add(ANN, BOB)
    album.save(path, guide)
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", format="x")
    np.savez(tmp_path / "objects.npz", format=np.array([{}], dtype=object))
    np.savez(
        tmp_path / "short.npz", format="x", guide="x", originals=np.ones((2, 3)), results=np.ones((1, 3))
    )
    others = [(tmp_path / name).read_bytes() for name in ("other.npz", "objects.npz", "short.npz")]
    for content in (b"", b"a photo", whole[: len(whole) // 2], *others):
        path.write_bytes(content)
        with pytest.raises(DeDiMError, match="this is no album of ours"):
            Album.load(path, guide)


def test_a_file_that_cannot_be_read_is_not_called_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, guide = tmp_path / "me.album", ToyEncoder(dim=3)
    with pytest.raises(DeDiMError, match=r"the album cannot be read \((Is a directory|Permission denied)\)"):
        Album.load(tmp_path, guide)
    Album().save(path, guide)

    def refuse(file: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DeDiMError, match=r"me\.album: the album cannot be read \(Permission denied\)\.$"):
        Album.load(path, guide)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"same_person: expected a cosine between -1 and 1, got 1\.2"):
        Album(same_person=1.2)
    with pytest.raises(ValueError, match="most: expected at least 1 result to push away from, got 0"):
        Album(most=0)
    album = Album()
    with pytest.raises(ValueError, match=r"result: expected the shape of original \[3\], got \[2\]"):
        album.add(ANN, torch.ones(2))
    album.add(ANN, BOB)
    both = torch.stack([ANN, BOB])
    for use in (lambda: album.avoid(both), lambda: AlbumQueue(album).enter(both[None])):
        with pytest.raises(ValueError, match=r"\[3\] like those it holds, got \[2, 3\]; begin a new Album"):
            use()
