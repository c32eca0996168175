from __future__ import annotations

from pathlib import Path

import pytest

from diffusers_dedim.evaluation.data import draw_protocol, read_experiment, reserve_people


@pytest.fixture
def lfw(tmp_path: Path) -> Path:
    """Twelve people, the first six with two photos or more, as LFW is handed out."""
    for index in range(12):
        person = f"Person_{index:02d}"
        (tmp_path / "lfw" / person).mkdir(parents=True)
        for number in range(1, 2 + (index < 6) * (1 + index % 3)):
            (tmp_path / "lfw" / person / f"{person}_{number:04d}.jpg").touch()
    (tmp_path / "lfw" / "readme.txt").touch()
    (tmp_path / "lfw" / "Person_00" / "notes.txt").touch()
    (tmp_path / "lfw" / "Nobody").mkdir()
    return tmp_path / "lfw"


def test_the_protocol_is_the_papers(lfw: Path) -> None:
    experiment = draw_protocol(lfw, seed=1, paired=4, alone=5)
    probes, gallery = experiment.protocol.probes, experiment.protocol.gallery
    assert len(probes) == 4
    assert len(gallery) == 9
    assert len({record.person for record in gallery}) == 9
    known = {record.person: record.name for record in gallery}
    assert all(known[probe.person] != probe.name for probe in probes), "another photo of the same person"
    assert {record.role for record in (*probes, *gallery)} == {"probe", "gallery"}
    spare = {record.person for record in experiment.spare}
    assert len(spare) == 3
    assert not spare & set(known)


def test_the_seed_decides_and_the_file_system_does_not(lfw: Path) -> None:
    first = draw_protocol(lfw, seed=3, paired=4, alone=5)
    assert first == draw_protocol(lfw, seed=3, paired=4, alone=5)
    assert first != draw_protocol(lfw, seed=4, paired=4, alone=5)
    # pinned: a paper's numbers must not move with a Python or library version
    assert [probe.name.partition("/")[2] for probe in first.protocol.probes] == PINNED


PINNED = ["Person_01_0001.jpg", "Person_04_0003.jpg", "Person_05_0004.jpg", "Person_03_0001.jpg"]


def test_too_few_people_are_told(lfw: Path) -> None:
    with pytest.raises(
        ValueError, match=r"at least 1000 people, 500 of them with two photos .* got 12 and 6;"
    ):
        read_experiment(lfw)


def test_people_without_a_probe_can_be_taken_out_of_the_gallery(lfw: Path) -> None:
    whole = draw_protocol(lfw, seed=1, paired=4, alone=8)
    smaller = reserve_people(whole, 3, seed=5)
    assert smaller == reserve_people(whole, 3, seed=5)
    assert smaller.protocol.probes == whole.protocol.probes
    assert len(smaller.protocol.gallery) == 9
    taken = {record.person for record in smaller.spare}
    assert len(taken) == 3
    assert not taken & {record.person for record in (*smaller.protocol.probes, *smaller.protocol.gallery)}
    assert len(reserve_people(whole, 100).protocol.gallery) == 4, "people with a probe stay"


def test_a_folder_with_roles_is_no_lfw(tmp_path: Path) -> None:
    for role in ("probe", "gallery"):
        (tmp_path / role / "a").mkdir(parents=True)
        (tmp_path / role / "a" / "1.jpg").touch()
    experiment = read_experiment(tmp_path)
    assert len(experiment.protocol.probes) == 1
    assert experiment.spare == ()
