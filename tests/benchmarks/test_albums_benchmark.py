"""benchmarks.albums with toy networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys import ToyEncoder, toy_pipeline

from benchmarks import _command, albums
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.evaluation import Record

METHOD = "dedim@num_inference_steps=2+L=1"


def write_people(folder: Path, people: int, photos: int) -> Path:
    for person in range(people):
        (folder / f"p{person:02d}").mkdir(parents=True)
        face = np.random.default_rng(person).integers(60, 196, (14, 14, 3))
        for photo in range(photos):
            noise = np.random.default_rng((person, photo)).integers(-10, 10, face.shape)
            blocks = (face + noise).astype(np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(blocks).save(folder / f"p{person:02d}" / f"{photo}.png")
    return folder


def records(*counts: int) -> list[Record]:
    return [
        Record(f"{person}/{photo}", f"p{person}", "target", b"")
        for person, count in enumerate(counts)
        for photo in range(count)
    ]


def test_prints_what_finds_whom_before_alone_and_in_an_album(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        _command, "load_recogniser", lambda name: Recogniser.of(name, ToyEncoder(seed=int(name[-1])))
    )
    monkeypatch.setattr(albums, "FaceDetector", lambda device: None)  # crops: nothing is detected
    mine, others = write_people(tmp_path / "mine", 3, 3), write_people(tmp_path / "others", 50, 1)
    words = ["--data", mine, "--strangers", others, "--people", 2, "--photos", "2..3", "--method", METHOD]
    words += ["--black-box", "toy1", "--json", tmp_path / "r.json"]
    albums.main(list(map(str, words)), load_pipeline=toy_pipeline)
    found = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "r.json").read_text()) == found
    assert (found["people"], found["photos"], found["photos_left_out"]) == (2, 5, 0)
    assert found["strangers"] == 48  # two of the fifty have the names of those with an album
    assert set(found["lines"]) == {"white", "toy1"}
    assert found["same_person"]["joined"] == 1
    assert -1 < found["same_person"]["line_at_fmr_0.001"] < 1
    before = found["before"]["recognisers"]["toy1"]
    assert before["rank1_in_plain"]["mean"] == before["rank1_in_protected"]["mean"] == 1
    assert before["rank1_in_protected_by_photos"] == {"2": 1, "3": 1}
    assert before["together"]["mean"] == 1
    assert before["strangers_together"] == 0
    for kind in ("alone", "album"):
        done = found[kind]
        assert done["ssim"] < 1
        assert done["psnr"] > 10
        assert done["unet_calls_per_face"] >= 4
        assert done["failed"] == 0
        for rates in done["recognisers"].values():
            assert 0 <= rates["rank1_in_protected"]["mean"] <= 1
            assert -1 <= rates["own_photo"] < 1
    assert found["command"].startswith("python -m benchmarks.albums --data ")
    albums.main(list(map(str, [*words, "--no-album"])), load_pipeline=toy_pipeline)
    alone = json.loads(capsys.readouterr().out)
    assert "album" not in alone
    assert alone["alone"]["recognisers"] == found["alone"]["recognisers"]


def test_every_number_of_photos_is_had_as_often() -> None:
    people = records(*[8] * 10, *[2] * 40)
    chosen = albums.choose_people(people, 7, (2, 8), seed=0)
    counts = {record.person: sum(each.person == record.person for each in chosen) for record in chosen}
    # the even half has five people with eight photos, so two of the five large albums must make do with fewer
    assert sorted(counts.values())[-5:] == [4, 5, 6, 7, 8]
    assert len(counts) == 7
    assert len(set(chosen)) == len(chosen)


def test_the_half_for_choosing_settings_is_another() -> None:
    people = records(*[3] * 40)
    halves = [albums.choose_people(people, 10, (2, 3), seed=0, tune=tune) for tune in (False, True)]
    names = [{record.person for record in half} for half in halves]
    assert names[0].isdisjoint(names[1])
    assert albums.choose_people(people, 10, (2, 3), seed=0) == halves[0]
    everybody = albums.choose_people(
        records(2, 2, 2), 3, (2, 3), seed=0
    )  # a small folder has no half to spare
    assert {record.person for record in everybody} == {"p0", "p1", "p2"}


def test_too_few_people_are_named() -> None:
    with pytest.raises(ValueError, match=r"--people: expected at most 2 people with 2 photos, got 3"):
        albums.choose_people(records(2, 2, 1, 1), 3, (2, 8), seed=0)


def test_a_photo_does_not_find_itself() -> None:
    among = np.array([[1, 0.2, 0.1], [0.2, 1, 0.3], [0.1, 0.3, 1]])
    strangers = np.array([[0.1], [0.1], [0.4]])
    ranks = albums.rank_others(among, strangers, ["a", "a", "b"])
    # the first finds the second; the second finds b before the first; b has no other photo
    assert ranks.tolist() == [1, 2, 5]
    assert albums.by_photos(ranks == 1, ["a", "a", "b"]) == {"1": 0, "2": 0.5}


@pytest.mark.parametrize("word", ["1", "1..3", "4..2"])
def test_ranges_that_make_no_album_are_refused(word: str) -> None:
    with pytest.raises(SystemExit):
        albums._parse(["--photos", word])
    assert albums._parse(["--photos", "4"]).photos == (4, 4)
