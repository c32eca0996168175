from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_experiment as toy
from PIL import Image
from toy_session import PEOPLE, Methods, ToyPipe, make_session

from diffusers_dedim.errors import DeDiMError, UnreadablePhotoError
from diffusers_dedim.evaluation import measure as evaluate
from diffusers_dedim.evaluation import panels, report
from diffusers_dedim.evaluation.data import Experiment, Record, RetrievalProtocol
from diffusers_dedim.evaluation.experiment import check_folder, target_crops
from diffusers_dedim.faces import Face


@pytest.fixture(autouse=True)
def no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of these runs and is tested elsewhere; one test draws."""
    if "results_hold" not in request.node.name:
        monkeypatch.setattr(report, "to_png", lambda figure: b"")
        monkeypatch.setattr(report, "to_svg", lambda figure, label: "<svg></svg>")


VOLATILE = ("seconds", "commit")


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def stable(found: dict) -> dict:
    """Without what a clock decides."""
    methods = [{**entry, "seconds_per_face": 0} for entry in found["methods"]]
    run = {key: value for key, value in found["run"].items() if key not in VOLATILE}
    return {**found, "methods": methods, "run": run}


def test_results_hold_an_entry_a_method_and_recogniser(tmp_path: Path) -> None:
    told: list[str] = []
    session = make_session(tmp_path, Methods(), ("original", "swap"))
    session.run(tmp_path / "out", lambda entry: told.append(entry.method))
    found = results(tmp_path / "out")
    assert told == ["original", "swap"]
    assert found["schema"] == "diffusers-dedim/evaluation/2"
    pairs = [(entry["method"], entry["recogniser"], entry["white_box"]) for entry in found["rates"]]
    assert pairs == [
        ("original", "white", True),
        ("original", "other", False),
        ("swap", "white", True),
        ("swap", "other", False),
    ]
    assert [entry["rank1"]["value"] for entry in found["rates"]] == [1, 1, 0, 0]
    original, swap = found["methods"]
    assert (original["psnr"]["value"], original["unchanged"], original["reached_threshold"]) == (
        None,
        3,
        None,
    )
    assert (swap["rounds"], swap["unet_calls"], swap["reached_threshold"]) == (2, 20, 1)
    assert 0 < swap["ssim"]["value"] < 1
    assert swap["lpips"] is None
    assert swap["undetected"] == []
    # three people give three impostor pairs: both rates are missing, and say why
    for rate in found["rates"][0]["verification"]:
        assert rate["fnmr"] is None
        assert "got 3; give more pairs or a larger fmr" in rate["problem"]
    assert found["run"]["finished"] is True
    assert found["run"]["command"] == "dedim evaluate ..."
    assert found["recognisers"][0]["impostors"] == 3
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "cache",
        "results.json",
        "table.md",
        "report.html",
        "det.png",
        "trade-off.png",
        "calls.png",
        "panel.png",
    }
    assert Image.open(tmp_path / "out" / "panel.png").size == (130 + 3 * 236 - 12, 2 * 254)


def test_the_own_photo_is_what_the_photo_was(tmp_path: Path) -> None:
    transforms = {"back": lambda photos: [np.roll(photo, -1, axis=2) for photo in photos]}
    make_session(tmp_path, Methods(), ("original", "swap"), transforms=transforms).run(tmp_path / "out")
    found = results(tmp_path / "out")
    rates = {(each["method"], each["recogniser"]): each for each in found["rates"]}
    for recogniser in ("white", "other"):
        own = rates["original", recogniser]["own_photo"]
        assert own["value"] == pytest.approx(1, abs=1e-6)  # float32 embeddings
        assert own["high"] <= 1
        changed = rates["swap", recogniser]
        assert changed["own_photo"]["value"] < 0.9
        assert changed["dodging"]["value"] == pytest.approx((1 - changed["own_photo"]["value"]) / 2, abs=1e-6)
        assert changed["dodging"]["low"] <= changed["dodging"]["value"] <= changed["dodging"]["high"]
    # of the recognisers that do not guide
    assert found["methods"][1]["dodging"] == rates["swap", "other"]["dodging"]
    back = [each["own_photo"]["value"] for each in found["robustness"] if each["method"] == "swap"]
    assert back == pytest.approx([1, 1], abs=1e-6)


def test_a_kill_loses_one_piece_and_resuming_gives_the_same(tmp_path: Path) -> None:
    names = ("original", "noise")
    straight = Methods()
    make_session(tmp_path, straight, names, chunk=1).run(tmp_path / "straight")
    broken = Methods(broken_from=5)
    with pytest.raises(
        DeDiMError, match=r"noise: failed on probes 2 to 2 \(e\.parquet row 2\): the disk is on fire"
    ):
        make_session(tmp_path, broken, names, chunk=1).run(tmp_path / "out")
    half = results(tmp_path / "out")
    assert [entry["method"] for entry in half["methods"]] == ["original"], "nothing measured is lost"
    assert half["run"]["finished"] is False
    resumed = Methods()
    make_session(tmp_path, resumed, names, chunk=1).run(tmp_path / "out")
    assert [call[0] for call in resumed.calls] == ["noise"]
    assert stable(results(tmp_path / "out")) == stable(results(tmp_path / "straight"))
    assert broken.calls + resumed.calls == straight.calls
    assert [first for name, first, _ in straight.calls if name == "noise"] == [0, 1, 2]
    assert (tmp_path / "out" / "table.md").is_file()


def test_more_probes_later_measure_only_the_new_ones(tmp_path: Path) -> None:
    first = make_session(tmp_path, Methods(), ("noise",), chunk=1)
    few = Experiment(first.experiment.protocol.take_probes(2))
    make_session(tmp_path, Methods(), ("noise",), chunk=1, experiment=few).run(tmp_path / "out")
    again = Methods()
    make_session(tmp_path, again, ("noise",), chunk=1).run(tmp_path / "out")
    assert len(again.calls) == 1
    assert results(tmp_path / "out")["data"]["probes"] == 3


def test_the_report_of_what_is_done_outlives_a_failure(tmp_path: Path) -> None:
    with pytest.raises(DeDiMError, match="the disk is on fire"):
        make_session(tmp_path, Methods(broken_from=2), ("original", "noise")).run(tmp_path / "out")
    assert "| original |" in (tmp_path / "out" / "table.md").read_text()
    assert (tmp_path / "out" / "report.html").is_file()


def test_other_targets_leave_what_has_none(tmp_path: Path) -> None:
    made = [
        evaluate.Evaluator(ToyPipe(), [], None, evaluate.EvaluationSettings(("tip-im",)), Methods(), targets)
        for targets in (None, torch.zeros(1, 3, 112, 112), torch.ones(1, 3, 112, 112))
    ]
    assert len({each._identity("dedim") for each in made}) == 1
    assert len({each._identity("tip-im:weak") for each in made}) == 3


def test_a_newly_trained_unet_leaves_what_does_not_use_it(tmp_path: Path) -> None:
    made = []
    for width in (1, 2):
        pipe = ToyPipe()
        pipe.unet = torch.nn.Linear(width, 1)
        made.append(evaluate.Evaluator(pipe, [], None, evaluate.EvaluationSettings(("tip-im",)), Methods()))
    for kept in ("tip-im:weak", "original", "pixelate", "fgsm"):
        assert made[0]._identity(kept) == made[1]._identity(kept)
    for changed in ("dedim@h=0.5", "ddpm"):
        assert made[0]._identity(changed) != made[1]._identity(changed)


def test_a_newly_trained_unet_purifies_anew(tmp_path: Path) -> None:
    """Whatever was protected, and though the method itself may not use it."""
    made: list[str] = []

    def note(name: str) -> Any:
        return lambda photos: made.append(name) or photos

    transforms = {name: note(name) for name in ("jpeg-75", "purify-50")}
    for width in (1, 1, 2):
        pipe = ToyPipe()
        pipe.unet = torch.nn.Linear(width, 1)
        torch.nn.init.ones_(pipe.unet.weight), torch.nn.init.ones_(pipe.unet.bias)
        session = make_session(tmp_path, Methods(), ("original",), transforms=transforms, pipe=pipe)
        session.run(tmp_path / "out")
    assert (made.count("jpeg-75"), made.count("purify-50")) == (2, 4)  # two pieces of probes


def test_a_probe_whose_face_is_too_small_is_listed(tmp_path: Path) -> None:
    tiny = Face((40.0, 40.0, 79.0, 79.0), toy.CENTRAL.landmarks, 0.9)
    session = make_session(tmp_path, Methods(), ("swap",))
    gallery = session.detector

    def detect(photo: np.ndarray) -> list[Face]:
        return [tiny] if photo[..., 2].mean() > 150 else gallery(photo)  # the blue person's

    with pytest.raises(DeDiMError, match="no face was found in any"):
        make_session(tmp_path, Methods(), ("swap",), detector=lambda photo: [tiny]).run(tmp_path / "none")
    make_session(tmp_path, Methods(), ("swap",), detector=detect).run(tmp_path / "out")
    assert results(tmp_path / "out")["data"]["probes_without_face"] == ["e.parquet row 2"]


def test_another_black_box_needs_no_new_protection_and_another_seed_does(tmp_path: Path) -> None:
    make_session(tmp_path, Methods(), ("noise",)).run(tmp_path / "out")
    again = Methods()
    make_session(tmp_path, again, ("noise",), black_boxes=()).run(tmp_path / "out")
    assert again.calls == []
    assert [entry["recogniser"] for entry in results(tmp_path / "out")["rates"]] == ["white"]
    make_session(tmp_path, again, ("noise",), seed=1).run(tmp_path / "out")
    assert len(again.calls) == 2


def test_an_edit_during_a_run_does_not_protect_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The panel at the end reads the pieces of the beginning, whatever happened to the source meanwhile."""
    methods = Methods()
    session = make_session(tmp_path, methods, ("noise",))
    reads: list[int] = []
    monkeypatch.setattr(evaluate.ast, "dump", lambda tree: str(reads.append(1) or len(reads)))
    session.run(tmp_path / "out")
    assert len(methods.calls) == 2
    assert (tmp_path / "out" / "panel.png").is_file()


def test_transforms_are_searched_too(tmp_path: Path) -> None:
    transforms = {"back": lambda photos: [np.roll(photo, -1, axis=2) for photo in photos]}
    make_session(tmp_path, Methods(), ("swap",), transforms=transforms).run(tmp_path / "out")
    found = results(tmp_path / "out")
    assert [entry["rank1"]["value"] for entry in found["rates"]] == [0, 0]
    assert [(entry["transform"], entry["rank1"]["value"]) for entry in found["robustness"]] == [
        ("back", 1),
        ("back", 1),
    ]
    assert "Robustness" in (tmp_path / "out" / "report.html").read_text()


def test_faces_lost_by_protection_are_listed_and_still_searched(tmp_path: Path) -> None:
    def picky(photo: np.ndarray) -> list:
        return toy.detect(photo) if photo[..., 0].mean() > 60 else []  # only the red person, swapped green

    session = make_session(tmp_path, Methods(), ("swap",), detector=picky)
    session.run(tmp_path / "out")
    found = results(tmp_path / "out")
    assert found["data"]["probes"] == 1
    assert found["data"]["probes_without_face"] == ["e.parquet row 1", "e.parquet row 2"]
    assert found["methods"][0]["undetected"] == ["red (e.parquet row 0)"]
    assert found["rates"][0]["probes"] == 1
    assert "no face found after: red (e.parquet row 0)" in (tmp_path / "out" / "report.html").read_text()


def test_bad_input_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    methods = Methods()
    session = make_session(tmp_path, methods, ("original", "typo"))
    with pytest.raises(ValueError, match="method: expected 'original', 'swap' or 'noise', got 'typo'"):
        session.run(tmp_path / "out")
    protocol = session.experiment.protocol
    broken = Record("bad.jpg", "red", "probe", b"no photo")
    experiment = Experiment(RetrievalProtocol((*protocol.probes, broken), protocol.gallery))
    with pytest.raises(
        UnreadablePhotoError, match=r"1 of 7 photos cannot be read: bad\.jpg \(probe of 'red'\)"
    ):
        make_session(tmp_path, methods, ("original",), experiment=experiment).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DeDiMError, match="no face was found in any of the 3 probes"):
        make_session(tmp_path, methods, ("original",), detector=_only_gallery(3)).run(tmp_path / "new")
    assert methods.calls == []
    for wrong in ((), ("a", "a")):
        with pytest.raises(ValueError, match="methods: expected at least one, each named once"):
            make_session(tmp_path, methods, wrong)
    with pytest.raises(ValueError, match="chunk: expected at least 1 probe, got 0"):
        make_session(tmp_path, methods, ("original",), chunk=0)


def _only_gallery(count: int):
    seen: list[int] = []

    def detect(photo: np.ndarray) -> list:
        seen.append(1)
        return toy.detect(photo) if len(seen) <= count else []

    return detect


def test_photos_that_may_be_shown_take_the_probes_place_on_the_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, dict] = {}

    def draw(rows: dict, ranks: dict, notes: dict) -> Image.Image:
        drawn.update(rows=rows, ranks=ranks, notes=notes)
        return made(rows, ranks, notes)

    made = panels.make_rank_panel
    monkeypatch.setattr(panels, "make_rank_panel", draw)
    Image.fromarray(toy.photo_of("blue", shade=77)).save(tmp_path / "me.png")
    mine = Record("me.png", "me", "panel", tmp_path / "me.png")
    methods = Methods()
    make_session(tmp_path, methods, ("original", "swap"), panel=[mine], chunk=4).run(tmp_path / "out")
    assert [len(faces) for faces in drawn["rows"].values()] == [1, 1], "no probe"
    # blue turned red: two gallery photos of red and green may come first, the own blue one in any case does not
    assert drawn["ranks"]["original"] == [1]
    assert drawn["ranks"]["swap"][0] > 1
    ssim = results(tmp_path / "out")["methods"][1]["ssim"]["value"]
    assert drawn["notes"] == {"original": "mean SSIM 1.000\n", "swap": f"mean SSIM {ssim:.3f}\n20 UNet calls"}
    assert Image.open(tmp_path / "out" / "panel.png").size == (130 + 224, 2 * 254)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 1
    assert "put among the\ngallery, by other" in page
    assert "must not" not in page
    assert results(tmp_path / "out")["data"]["probes"] == 3
    assert methods.calls == [("original", 0, 3), ("swap", 0, 3), ("original", 0, 1), ("swap", 0, 1)]
    again = Methods()
    make_session(tmp_path, again, ("original", "swap"), chunk=4).run(tmp_path / "out")
    assert again.calls == []
    assert "<img" not in (tmp_path / "out" / "report.html").read_text()


def test_a_photo_without_a_face_cannot_be_shown(tmp_path: Path) -> None:
    methods = Methods()
    Image.fromarray(toy.photo_of("nobody")).save(tmp_path / "dark.png")
    for name, message in (
        ("dark.png", r"panel: expected a face of 40 px or more in the middle of dark\.png, got none"),
        ("gone.png", r"gone\.png \(panel of 'me'\)"),
    ):
        shown = Record(name, "me", "panel", tmp_path / name)
        with pytest.raises(DeDiMError, match=message):
            make_session(tmp_path, methods, ("original",), panel=[shown]).run(tmp_path / "out")
    small = Record("small.png", "me", "panel", tmp_path / "small.png")
    Image.fromarray(toy.photo_of("red")).save(small.content)
    with pytest.raises(DeDiMError, match=r"40 px or more in the middle of small\.png, got 30 px"):
        panels.read_shown([small], lambda photo: [toy.BYSTANDER])
    assert methods.calls == []


def test_targets_are_other_people(tmp_path: Path) -> None:
    session = make_session(tmp_path, Methods(), ("original",))
    rows = session.experiment.protocol.gallery
    strangers = [Record(f"t{i}", f"stranger {i}", "target", rows[i % 3].content) for i in range(12)]
    assert target_crops(strangers, toy.detect).shape == (10, 3, 112, 112)
    assert target_crops([], toy.detect) is None
    with pytest.raises(
        DeDiMError, match="targets: none of the 3 photos shows a face of a person who is neither"
    ):
        make_session(tmp_path, Methods(), ("original",), targets=rows).run(tmp_path / "out")
    make_session(tmp_path, Methods(), ("original",), targets=strangers).run(tmp_path / "out")
    assert results(tmp_path / "out")["run"]["targets"] == 10
    assert {record.person for record in rows} == {*PEOPLE}


def test_a_folder_is_not_mixed_by_accident(tmp_path: Path) -> None:
    check_folder(tmp_path / "new", resume=False)
    check_folder(tmp_path, resume=False)
    (tmp_path / "results.json").touch()
    check_folder(tmp_path, resume=True)
    with pytest.raises(DeDiMError, match="the output folder is not empty; go on with a stopped evaluation"):
        check_folder(tmp_path, resume=False)
    with pytest.raises(DeDiMError, match="expected a folder for the results, this is a file"):
        check_folder(tmp_path / "results.json", resume=True)
