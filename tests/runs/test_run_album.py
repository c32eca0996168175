"""A run tells a person's photos apart, in memory unless a file is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_pipeline import FakePipeline
from PIL import Image
from toys import ToyEncoder

from diffusers_dedim.atomic import TEMPORARY_PREFIX
from diffusers_dedim.pipeline.album import Album
from diffusers_dedim.pipeline.photos import StreamPhoto, StreamResult
from diffusers_dedim.runs.albums import NEW_ALBUM, AlbumKeeper
from diffusers_dedim.runs.jobs import RunError
from diffusers_dedim.runs.records import RunSettings
from diffusers_dedim.runs.run import FolderRun


class Remembering(FakePipeline):
    """Notes a face in the album for each photo; stops the run after some."""

    def __init__(self, stop_after: int = 10**6, seed: int = 0) -> None:
        super().__init__()
        self.face_encoder = ToyEncoder(dim=3, seed=seed)
        self.stop_after, self.known = stop_after, list[int]()

    def __call__(self, photos: list[StreamPhoto], **keywords: Any) -> list[StreamResult]:
        for photo in photos:
            if len(self.known) == self.stop_after:
                raise KeyboardInterrupt
            self.known.append(len(keywords["album"]))
            face = torch.tensor(photo.pixels[1, 1].astype(float)).float()
            keywords["album"].add(*[torch.nn.functional.normalize(face, dim=0)] * 2)
        return super().__call__(photos, **keywords)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for index, colour in enumerate(((200, 20, 20), (20, 200, 20), (20, 20, 200))):
        Image.fromarray(np.full((40, 40, 3), colour, np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def run(photos: Path, tmp_path: Path) -> Callable[..., Any]:
    def start(pipe: Any, settings: RunSettings | None = None, **options: Any) -> Any:
        return FolderRun([photos], tmp_path / "out", settings, **options).execute(pipe, batch_size=1)

    return start


def test_a_run_has_one_album_and_forgets_it(run: Callable[..., Any], tmp_path: Path) -> None:
    pipe = Remembering()
    result = run(pipe)
    assert pipe.known == [0, 1, 2]
    assert result.notes == ()
    again = Remembering()
    run(again, overwrite=True)
    assert again.known == [0, 1, 2]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("0.png", "1.png", "2.png", "dedim-manifest.jsonl")
    ]


def test_without_an_album_nobody_is_told_apart(run: Callable[..., Any]) -> None:
    pipe = FakePipeline()
    run(pipe, RunSettings(album=False))
    assert {id(keywords["album"]) for keywords in pipe.keywords} == {id(None)}
    pipe = FakePipeline()
    run(pipe, overwrite=True)
    assert {type(keywords["album"]) for keywords in pipe.keywords} == {Album}


def test_a_resumed_run_begins_anew_and_says_so(run: Callable[..., Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Remembering(stop_after=2))
    pipe = Remembering()
    result = run(pipe, resume=True)
    assert pipe.known[0] == 0
    assert result.resumed > 0
    assert result.notes == (NEW_ALBUM,)
    assert run(None, resume=True).notes == ()  # nothing is left to be done
    with pytest.raises(RunError, match="album was True and is now False"):
        run(None, RunSettings(album=False), resume=True)


def test_a_file_carries_it_from_run_to_run(run: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "me.album"
    with pytest.raises(KeyboardInterrupt):
        run(Remembering(stop_after=2), keep_album=file)
    assert len(Album.load(file, ToyEncoder(dim=3))) == 2
    pipe = Remembering()
    result = run(pipe, resume=True, keep_album=file)
    assert pipe.known[0] == 2
    assert "me.album holds what faces are known by, which is biometric data" in result.notes[0]
    assert NEW_ALBUM not in result.notes
    later = Remembering()
    run(later, overwrite=True, keep_album=file)
    assert later.known[0] == 3  # the same pictures again take the places of what they were
    assert len(Album.load(file, ToyEncoder(dim=3))) == 3


def test_what_a_kill_left_of_the_file_goes_when_it_is_opened_again(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds whom the album knows, and nobody would look for it."""
    file = tmp_path / "me.album"
    monkeypatch.setattr(Path, "replace", lambda *_: None)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    Album().save(file, ToyEncoder(dim=3))
    monkeypatch.undo()
    left = [path for path in tmp_path.iterdir() if path.name.startswith(TEMPORARY_PREFIX)]
    assert len(left) == 1
    seen: list[bool] = []

    class Looking(Remembering):
        def __call__(self, photos: list[StreamPhoto], **keywords: Any) -> list[StreamResult]:
            seen.append(left[0].exists())
            return super().__call__(photos, **keywords)

    run(Looking(), keep_album=file)
    assert set(seen) == {False}


def test_a_file_of_another_guide_ends_the_run_before_any_photo(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "me.album"
    Album().save(file, ToyEncoder(dim=3, seed=1))
    before, pipe = file.read_bytes(), Remembering()
    with pytest.raises(RunError, match=r"me\.album: this album was made with another recogniser"):
        run(pipe, keep_album=file)
    assert pipe.calls == []
    assert file.read_bytes() == before


def test_what_cannot_be_kept_is_told_at_once(run: Callable[..., Any], tmp_path: Path) -> None:
    for path, settings, text in (
        (tmp_path / "none" / "a", None, "expected a file in a folder that is there"),
        (tmp_path, None, "expected a file in a folder that is there"),
        (tmp_path / "a", RunSettings(album=False), "leave out one of --keep-album and --no-album"),
        (tmp_path / "out" / "0.png", None, "expected a file in a folder that is there"),
        (tmp_path / "in" / "album.png", None, "keep it outside photos and results"),
    ):
        with pytest.raises(RunError, match=text):
            run(Remembering(), settings, keep_album=path)
    assert not (tmp_path / "out").exists()


def test_no_result_and_no_list_of_them_makes_room_for_the_album(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(Remembering())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "link").symlink_to(out / "0.png")
    for file in (out / "0.png", out / "dedim-manifest.jsonl", out / "new", tmp_path / "link"):
        with pytest.raises(RunError, match="keep it outside photos and results"):
            run(Remembering(), overwrite=True, keep_album=file)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_link_leads_to_the_album(run: Callable[..., Any], tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "mine" / "me.album"
    file.parent.mkdir()
    link.symlink_to(file)
    run(Remembering(), keep_album=link)
    assert link.is_symlink()
    assert len(Album.load(file, ToyEncoder(dim=3))) == 3


def test_the_album_is_kept_after_each_photo(tmp_path: Path) -> None:
    """A kill asks nobody."""
    file, pipe = tmp_path / "me.album", Remembering()
    keeper = AlbumKeeper.of(True, file, tmp_path / "out", [tmp_path / "in"])
    with keeper.open(pipe):
        for count, face in enumerate(torch.eye(3), 1):
            assert keeper.album is not None
            keeper.album.add(face, face)
            keeper.tick()
            assert len(Album.load(file, pipe.face_encoder)) == count
