"""Galleries in which the probes' people have protected their photos too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_experiment as toy
from toy_session import PEOPLE, Methods, make_session

from diffusers_dedim.evaluation import ArrayCache, report
from diffusers_dedim.evaluation.data import Experiment, read_protocol
from diffusers_dedim.evaluation.gallery import Gallery
from diffusers_dedim.evaluation.mates import MATES_FIRST, add_mates, find_mates
from diffusers_dedim.evaluation.measure import EvaluationSettings
from diffusers_dedim.faces import Face


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "to_png", lambda figure: b"")
    monkeypatch.setattr(report, "to_svg", lambda figure, label: "<svg></svg>")


def run(folder: Path, methods: Methods, names: tuple[str, ...] = ("swap",), **changes: Any) -> dict:
    make_session(folder, methods, names, **changes).run(folder / "out")
    return json.loads((folder / "out" / "results.json").read_text())


def rank1(found: dict) -> dict[tuple[str, str, str], float]:
    return {
        (rate["method"], rate["gallery"], rate["recogniser"]): rate["rank1"]["value"]
        for rate in found["rates"]
    }


def test_who_hides_from_unprotected_photos_may_be_found_among_protected_ones(tmp_path: Path) -> None:
    """Everybody's colours turn the same way: red is green to who has the red photo, not to who has it turned."""
    methods = Methods()
    found = run(tmp_path, methods, gallery="both")
    assert rank1(found) == {
        ("swap", "unprotected", "white"): 0,
        ("swap", "unprotected", "other"): 0,
        ("swap", "protected", "white"): 1,
        ("swap", "protected", "other"): 1,
    }
    assert found["run"]["gallery"] == "both"
    assert found["data"]["gallery"] == 3
    assert found["methods"][0]["faces"] == 3  # of the probes
    # two pieces of mates, then two of probes, none with the noise of another
    assert [first for _, first, _ in methods.calls] == [MATES_FIRST, MATES_FIRST + 2, 0, 2]
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| rank-1, white box | rank-1, other | rank-1 in protected, white box |" in table
    assert "In protected: the person's own photos in the gallery are protected by the same method" in table
    assert "| method | gallery | recogniser |" in table
    assert "swap, other in protected, FMR 0.001: " in table


def test_one_kind_alone_gives_the_numbers_that_both_give(tmp_path: Path) -> None:
    both = rank1(run(tmp_path / "both", Methods(), ("original", "noise"), gallery="both"))
    for kind in ("unprotected", "protected"):
        found = run(tmp_path / kind, Methods(), ("original", "noise"), gallery=kind)
        assert rank1(found) == {key: value for key, value in both.items() if key[1] == kind}
    table = (tmp_path / "protected" / "out" / "table.md").read_text()
    assert "| method | rank-1 in protected, white box |" in table
    assert "original (paper)" not in table  # nobody printed such a number
    assert "In protected" not in (tmp_path / "unprotected" / "out" / "table.md").read_text()


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> None:
    for name in ("both", "unprotected", "protected"):
        (tmp_path / name).mkdir()


def test_nothing_is_protected_twice_when_the_gallery_comes_later(tmp_path: Path) -> None:
    run(tmp_path, Methods(), ("noise",), chunk=1)
    later, again = Methods(), Methods()
    run(tmp_path, later, ("noise",), chunk=1, gallery="both")
    assert [first for _, first, _ in later.calls] == [MATES_FIRST, MATES_FIRST + 1, MATES_FIRST + 2]
    run(tmp_path, again, ("noise",), chunk=1, gallery="protected")
    assert again.calls == []


def test_more_probes_later_leave_the_mates_before_them(tmp_path: Path) -> None:
    session = make_session(tmp_path, Methods(), ("noise",))
    few = Experiment(session.experiment.protocol.take_probes(2))
    run(tmp_path, Methods(), ("noise",), chunk=1, gallery="both", experiment=few)
    more = Methods()
    run(tmp_path, more, ("noise",), chunk=1, gallery="both")
    assert [first for _, first, _ in more.calls] == [MATES_FIRST + 2, 2]


def test_only_the_probes_people_protect_theirs_and_transforms_are_searched_there_too(tmp_path: Path) -> None:
    toy.write_experiment(tmp_path / "e.parquet", ["green", "red"], PEOPLE)
    back = {"back": lambda photos: [np.roll(photo, -1, axis=2) for photo in photos]}
    methods = Methods()
    found = run(tmp_path, methods, gallery="both", transforms=back, chunk=8)
    assert methods.calls == [("swap", MATES_FIRST, 2), ("swap", 0, 2)]
    after = {(rate["gallery"], rate["recogniser"]): rate["rank1"]["value"] for rate in found["robustness"]}
    # who turns the probe's colours back is a match for the plain photo, no more for the turned one
    assert after["unprotected", "other"] == 1
    assert after["protected", "other"] == 0


def test_mates_that_no_method_changes_stay_as_they_are(tmp_path: Path) -> None:
    data = toy.write_experiment(tmp_path / "e.parquet", ["red", "green"], [*PEOPLE, "red", "nobody"])
    tiny = Face((40.0, 40.0, 79.0, 79.0), toy.CENTRAL.landmarks, 0.9)

    def detect(photo: np.ndarray) -> list[Face]:
        return [tiny] if photo[..., 1].mean() > 150 else toy.detect(photo)  # the green person's

    mates = find_mates(read_protocol(data), detect, ArrayCache(tmp_path / "cache"))
    assert {row: mate.person for row, mate in mates.items()} == {0: "red", 3: "red"}


def test_the_gallery_of_each_kind_by_hand() -> None:
    plain = np.arange(6, dtype=np.float32).reshape(3, 2)
    gallery = Gallery(("a", "b", "c"), {"one": plain, "two": -plain}, undetected=0)
    pieces = [{"embeddings_0": np.full((1, 2), 7.0), "embeddings_1": np.full((1, 2), 8.0)}]
    searched = add_mates(gallery, [1], pieces)
    assert searched.gallery.persons == ("a", "b", "c", "b")
    assert searched.take("unprotected").persons == ("a", "b", "c")
    np.testing.assert_array_equal(searched.take("unprotected").embeddings["two"], -plain)
    protected = searched.take("protected")
    assert protected.persons == ("a", "c", "b")
    np.testing.assert_array_equal(protected.embeddings["one"], [[0, 1], [4, 5], [7, 7]])
    assert add_mates(gallery, [], []).take("protected").persons == ("a", "b", "c")


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"gallery: expected one of \['unprotected', 'protected', 'both'\], got"
    ):
        EvaluationSettings(("swap",), gallery="mine")
