"""benchmarks.adaptive, benchmarks.fairness and benchmarks.settings, with colours for people and toy recognisers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import toy_experiment as toy
from encoders.test_onnx_encoder import write_model
from PIL import Image
from toys import ToyEncoder

from benchmarks import _command, _faces, adaptive, fairness, settings
from benchmarks._attackers import DrawnGuide
from diffusers_dedim import DeDiMPipeline, EncoderEnsemble, EstimateGuidance
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.evaluation import ArrayCache, Gallery, Probe, crops
from diffusers_dedim.evaluation.adaptive import read_adaptive
from diffusers_dedim.faces import ARCFACE_TEMPLATE, Face

PEOPLE = 12
WHOLE = Face((0.0, 0.0, 112.0, 112.0), ARCFACE_TEMPLATE, 1.0)


class Swap(toy.SwapColours):
    """Protection by swapping colours, with the parts and records of a `DeDiMPipeline`."""

    guide: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.face_encoder = self.guide or ToyEncoder()
        self.unet = self.landmarker = toy.MeanColour()
        self.face_detector = toy.detect

    def __call__(self, photos: list[np.ndarray], **settings: Any) -> SimpleNamespace:
        found = [self.face_detector(photo) for photo in photos]
        return super().__call__(photos, found=found, guide=id(self.face_encoder), **settings)


def picture(person: int) -> dict[str, object]:
    blocks = np.random.default_rng(person).integers(20, 236, (14, 14, 3)).repeat(8, 0).repeat(8, 1)
    file = io.BytesIO()
    Image.fromarray(blocks.astype(np.uint8)).save(file, "PNG")
    return {"path": None, "bytes": file.getvalue()}


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve people: half of them men, one child, one of unknown age."""
    folder = tmp_path_factory.mktemp("faces")
    rows = {
        "image": [picture(person) for person in range(PEOPLE)],
        "age": [3, -1, *[40] * (PEOPLE - 2)],
        "gender": [0, 1] * (PEOPLE // 2),
        "race": [0] * PEOPLE,
    }
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data.to_parquet(str(folder / "train-00000.parquet"))
    data.to_parquet(str(folder / "val-00000.parquet"))
    return folder


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _command, "load_recogniser", lambda name: Recogniser.of(name, ToyEncoder(seed=int(name[-1])))
    )
    monkeypatch.setattr(adaptive, "FaceDetector", lambda device: toy.detect)


@pytest.fixture
def attack(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    # pure colours are so unlike each other that everybody else resembles them: say that one person does
    monkeypatch.setattr(_faces, "resembles_gallery", lambda people, *_: np.arange(len(people)) == 0)
    data = toy.write_experiment(tmp_path / "e.parquet", ["red", "green", "blue"], ["red", "green", "blue"])

    def call(*words: str) -> tuple[dict, Swap]:
        pipe = Swap()
        paths = ["--data", data, "--people-data", faces, "--cache", tmp_path / "cache"]
        short = ["--probes", "3", "--people", "12", "--steps", "2", "--head-steps", "2"]
        adaptive.main([*map(str, paths), *short, *words], load_pipeline=lambda: pipe)
        return json.loads(capsys.readouterr().out), pipe

    return call


def test_the_attack_prints_one_json_object(attack, tmp_path: Path) -> None:
    results, pipe = attack(
        *("--black-box", "toy1", "--method", "dedim:paper", "--attackers", "plain"),
        *("--json", str(tmp_path / "r.json")),
    )
    assert (results["probes"], results["gallery"], results["method"]) == (3, 3, "dedim:paper")
    assert (results["people"], results["people_left_out_as_lookalikes"]) == (11, 1)
    assert results["attackers"] == {"plain": {"faces": 11, "reached_threshold": 1}}
    rows = {(row["recogniser"], row["attack"]): row for row in results["rows"]}
    assert list(rows) == [
        *(("white", "none"), ("toy1", "none")),
        *(("white", "full"), ("white", "head"), ("toy1", "head")),
    ]
    assert {row["method"] for row in results["rows"]} == {"dedim:paper"}
    assert rows["toy1", "none"]["rank1_original"]["mean"] == 1
    outcome = rows["white", "full"]
    assert outcome["attacker"] == "plain"
    for rate in ("rank1", "rank1_plain_gallery", "rank1_original"):
        assert set(outcome[rate]) == {"mean", "low", "high"}
        assert 0 <= outcome[rate]["low"] <= outcome[rate]["mean"] <= outcome[rate]["high"] <= 1
    assert outcome["held_out"]["people"] == 2
    assert outcome["held_out"]["similarity_adapted"] > outcome["held_out"]["similarity_plain"]
    assert rows["toy1", "head"]["steps"] == 2
    assert results["command"].startswith("python -m benchmarks.adaptive --data ")
    assert {"seed", "commit", "torch", "threads"} <= set(results)
    assert json.loads((tmp_path / "r.json").read_text()) == results
    # the attacker's own photos are crops, and no noise is shared with the victims'
    photos, taught = pipe.calls[:1], pipe.calls[1:]
    assert all(call["preset"] == "paper" for call in pipe.calls)
    assert {face.box for call in taught for found in call["found"] for face in found} == {WHOLE.box}
    assert {len(found) for call in photos for found in call["found"]} == {2}  # found in the photo
    seeds = [{g.initial_seed() for call in calls for g in call["generator"]} for calls in (taught, photos)]
    assert seeds[0].isdisjoint(seeds[1])
    entries = read_adaptive(tmp_path / "r.json")
    assert [entry.attack for entry in entries] == ["none", "none", "full", "head", "head"]
    assert entries[2].relinked == outcome["held_out"]["relinked_adapted"]
    assert entries[0].relinked is None


def test_other_files_are_no_attack(tmp_path: Path) -> None:
    for content in ("{}", "[1]", '{"rows": [{}]}', "no json"):
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(DeDiMError, match=r"r\.json is no result of python -m benchmarks\.adaptive"):
            read_adaptive(tmp_path / "r.json")


def test_every_way_of_protecting_is_learned_from(attack, monkeypatch: pytest.MonkeyPatch) -> None:
    guides = EncoderEnsemble([ToyEncoder(), ToyEncoder(seed=3)])
    monkeypatch.setattr(Swap, "guide", guides)
    results, pipe = attack("--black-box", "toy1")
    assert list(results["attackers"]) == ["plain", "settings", "guides", "album"]
    # an album of eleven people's photos: six of them and another view of each
    assert [each["faces"] for each in results["attackers"].values()] == [11, 11, 11, 12]
    rows = [(row["attacker"], row["recogniser"]) for row in results["rows"] if row["attack"] == "head"]
    assert rows == [(way, who) for way in results["attackers"] for who in ("white1", "white2", "toy1")]
    thresholds = {getattr(call.get("preset"), "threshold", None) for call in pipe.calls}
    assert {0.46, 0.5, 0.54, 0.58, 0.62} & thresholds
    albums = [call["album"] for call in pipe.calls if "album" in call]
    assert len({id(each) for each in albums}) == len(albums) == 2
    assert pipe.face_encoder is guides  # as it was
    assert {call["guide"] for call in pipe.calls} == {id(guides), *map(id, guides.encoders)}
    found, _ = attack("--black-box", "toy1", "--victims", "drawn")
    assert list(found["attackers"]) == ["drawn"]
    assert {row["method"] for row in found["rows"]} == {"dedim:fast, drawn"}
    found, pipe = attack("--black-box", "toy1", "--victims", "album", "--attackers", "plain")
    (victims,) = [call for call in pipe.calls if "album" in call]
    assert victims["photos"] == 6  # gallery photo and probe in turns
    assert {row["method"] for row in found["rows"]} == {"dedim:fast, album"}


def test_a_way_that_the_method_does_not_know_is_refused(attack) -> None:
    with pytest.raises(ValueError, match="guides: expected a pipeline of several guides, this one has one"):
        attack("--black-box", "toy1", "--attackers", "guides")
    with pytest.raises(ValueError, match="album: only 'dedim' knows it, got 'tip-im'"):
        attack("--black-box", "toy1", "--method", "tip-im", "--attackers", "album")
    with pytest.raises(ValueError, match=r"settings: expected a method of \['dedim', 'tip-im'\], got 'fgsm'"):
        attack("--black-box", "toy1", "--method", "fgsm", "--attackers", "settings")


def test_a_guide_is_drawn_for_each_face_and_round() -> None:
    pipe = SimpleNamespace(face_encoder=EncoderEnsemble([ToyEncoder(), ToyEncoder(seed=3)]))
    like = EstimateGuidance(stop_similarity=-1.0, views=1)
    drawn = DrawnGuide(like, torch.Generator().manual_seed(0))
    faces = torch.rand(16, 3, 112, 112) * 2 - 1
    reference = pipe.face_encoder(faces)
    pushed = []
    for step in (0, 1, 0):  # two steps of a round, and the next round
        _, weights, _ = drawn._similarity_gradients(pipe.face_encoder, faces, reference, step)
        pushed.append(torch.stack(weights) > 0)
        assert (pushed[-1].sum(0) == 1).all()
    assert 0 < pushed[0][0].sum() < 16
    assert torch.equal(pushed[0], pushed[1])
    assert not torch.equal(pushed[1], pushed[2])
    away = DrawnGuide(EstimateGuidance(stop_similarity=0.99), torch.Generator().manual_seed(0))
    reference[:, 1] = -reference[:, 1]  # the second is left behind: who drew it is pushed by the first
    _, weights, _ = away._similarity_gradients(pipe.face_encoder, faces, reference, 0)
    assert (torch.stack(weights) > 0).tolist() == [[True] * 16, [False] * 16]


def test_tip_im_gets_targets_who_are_not_the_attackers_people(
    attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def make_method(name: str, pipe: Swap, *, seed: int, first: int, targets: Any) -> Any:
        given.append((name, targets, seed, first))
        return lambda photos: pipe(photos, generator=[])

    monkeypatch.setattr(crops, "make_method", make_method)
    monkeypatch.setattr(adaptive, "TARGETS", 3)
    words = ("--black-box", "toy1", "--method", "tip-im", "--people", "6")
    results, _ = attack(*words)
    assert list(results["attackers"]) == ["plain", "settings"]
    assert results["people"] == 9 - 1 - 3  # drawn, less a lookalike, less the targets
    drawn = {f"tip-im@epsilon={number}" for number in (6, 9, 12, 15, 18)}
    assert {"tip-im"} < {name for name, *_ in given} <= {"tip-im", *drawn}
    assert {targets.shape for _, targets, *_ in given} == {(3, 3, 112, 112)}
    assert len({(seed, first) for *_, seed, first in given}) == len(given)  # no noise is shared


def test_all_weights_of_a_black_box_where_asked(attack) -> None:
    results, _ = attack("--black-box", "toy1", "--black-box-attacks", "head", "full", "--attackers", "plain")
    kinds = [row["attack"] for row in results["rows"] if row["recogniser"] == "toy1"]
    assert kinds == ["none", "head", "full"]


def test_a_recogniser_that_frames_faces_itself_is_refused(attack, monkeypatch: pytest.MonkeyPatch) -> None:
    class Framing(ToyEncoder):
        def embed_photo(self, photo: np.ndarray, face: Face) -> None:
            raise NotImplementedError

    monkeypatch.setattr(_command, "load_recogniser", lambda name: Recogniser.of(name, Framing()))
    with pytest.raises(ValueError, match=r"--black-box: \['dlib'\] frame faces in whole photos"):
        attack("--black-box", "dlib")


def test_too_few_people_are_named(attack) -> None:
    with pytest.raises(
        ValueError, match=r"2 of 3 training faces resemble nobody in the gallery; .* needs at least 4"
    ):
        attack("--black-box", "toy1", "--people", "3")


def test_somebody_of_the_gallery_is_recognised_among_the_people() -> None:
    def probe(colour: tuple[int, int, int]) -> Probe:
        photo = np.full((112, 112, 3), colour, np.uint8)
        return Probe("?", photo, WHOLE)

    gallery = Gallery(
        ("red", "red", "green", "blue"),
        {"toy": np.array([[1, 0, 0], [1, 0, 0], [0.6, 0.8, 0], [np.nan] * 3], np.float32)},
        undetected=1,
    )
    judge = Recogniser("toy", toy.MeanColour(), "toy")
    # red and green are alike by 0.6: a red face is somebody, one at 45 degrees to red and blue may be, blue is not
    people = [probe((255, 128, 128)), probe((255, 128, 255)), probe((128, 128, 255))]
    assert _faces.resembles_gallery(people, judge, gallery).tolist() == [True, True, False]


def test_protected_photos_are_kept_for_the_same_code_and_settings_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, cache = Swap(), ArrayCache(tmp_path)
    photos = [toy.photo_of("red"), toy.photo_of("blue")[:100]]
    probes = [Probe("?", photo, toy.CENTRAL) for photo in photos]

    def protect(code: str = "abc", **settings: Any) -> tuple[crops.Protected, int]:
        monkeypatch.setattr(crops, "method_code", lambda: code)
        before = len(pipe.calls)
        settings = {"method": "dedim:fast", "seed": 0, "batch_size": 1, **settings}
        done = crops.protect_once(pipe, probes, cache, **settings)
        return done, len(pipe.calls) - before

    first, calls = protect()
    again, more = protect()
    assert (calls, more) == (2, 0)
    for a, b, photo in zip(first.photos, again.photos, photos, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, np.roll(photo, 1, axis=2))
    assert again.reached.tolist() == [True, True]
    assert [protect("def")[1], protect(seed=1)[1], protect(method="dedim:strong")[1]] == [2, 2, 2]
    pipe.scheduler = "another one"
    assert protect()[1] == 2
    pipe.face_encoder = ToyEncoder(seed=5)
    assert protect()[1] == 2
    assert protect()[1] == 0


def test_a_run_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    class Killed(Swap):
        def __call__(self, photos: list[np.ndarray], **settings: Any) -> SimpleNamespace:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().__call__(photos, **settings)

    probes = [Probe("?", np.roll(toy.photo_of("red"), place), toy.CENTRAL) for place in range(3)]
    settings = {"cache": ArrayCache(tmp_path), "method": "dedim:fast", "seed": 0, "batch_size": 1}
    with pytest.raises(KeyboardInterrupt):
        crops.protect_once(Killed(), probes, **settings)
    pipe = Swap()
    assert len(crops.protect_once(pipe, probes, **settings).photos) == 3
    (call,) = pipe.calls
    whole = Swap()
    crops.protect_once(whole, probes, **{**settings, "cache": ArrayCache(tmp_path / "other")})
    assert call["generator"][0].initial_seed() == whole.calls[2]["generator"][0].initial_seed()


def test_a_method_of_photos_takes_crops_whole(pipe: DeDiMPipeline, crop: np.ndarray, tmp_path: Path) -> None:
    detector = pipe.face_detector
    done = crops.protect_once(
        pipe,
        [Probe("?", crop, WHOLE)] * 2,
        ArrayCache(tmp_path),
        method="fgsm",
        seed=0,
        batch_size=2,
        aligned=True,
    )
    assert len(done.reached) == 2  # one face a crop, in which MTCNN would find none
    for photo in done.photos:
        change = np.abs(photo.astype(int) - crop)
        assert 1 <= change.max() <= 12
        assert (change[0] > 0).any()  # up to the edge
    assert pipe.face_detector is detector


def test_fairness_prints_one_json_object(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = Swap()
    words = [
        "--data",
        faces,
        "--faces",
        12,
        "--min-group",
        2,
        "--black-box",
        "toy1",
        "--cache",
        tmp_path / "c",
    ]
    fairness.main(list(map(str, [*words, "--json", tmp_path / "r.json"])), load_pipeline=lambda: pipe)
    results = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "r.json").read_text()) == results
    assert results["faces"] == 12
    assert set(results["groups"]) == {"age", "gender", "race"}
    assert {group: row["faces"] for group, row in results["groups"]["gender"].items()} == {
        "male": 6,
        "female": 6,
    }
    assert set(results["groups"]["age"]) == {"35-54"}  # one child alone, one of unknown age
    female = results["groups"]["gender"]["female"]
    assert female["reached_threshold"] == {"mean": 1, "low": 1, "high": 1}
    assert female["psnr"]["low"] < female["psnr"]["mean"] < female["psnr"]["high"]
    assert female["ssim"]["mean"] < 1
    assert -1 <= female["similarity_toy1"]["mean"] < 1
    assert -1 <= female["similarity_white"]["mean"] < 1
    assert results["overall"]["changed"]["mean"] == 1
    assert results["largest_difference"]["gender"]["reached_threshold"] == 0
    assert results["largest_difference"]["race"]["psnr"] is None  # one group
    assert {face.box for call in pipe.calls for found in call["found"] for face in found} == {WHOLE.box}
    assert pipe.face_detector is toy.detect  # as it was
    assert results["command"].startswith("python -m benchmarks.fairness --data ")


def test_too_few_faces_of_a_group_are_told_before_any_is_protected(faces: Path) -> None:
    words = ["--data", str(faces), "--faces", "12", "--black-box", "toy1"]
    pipe = Swap()
    with pytest.raises(ValueError, match=r"no face is in a known group of at least 11; got .*'35-54': 10"):
        fairness.main([*words, "--min-group", "11"], load_pipeline=lambda: pipe)
    assert pipe.calls == []


def test_matches_are_counted_at_the_strangers_threshold() -> None:
    rng = np.random.default_rng(0)
    faces = rng.normal(size=(46, 64))
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    pairs = np.sort((faces @ faces.T)[np.triu_indices(46, 1)])  # 1,035: one may pass
    similarity = np.array([pairs[-1], pairs[-2], *[0.0] * 44])
    assert fairness.find_matches(faces, similarity).tolist() == [1.0] + [0.0] * 45
    assert fairness.find_matches(faces[:45], similarity[:45]) is None  # 990 pairs


def test_faces_that_did_not_change_have_no_psnr() -> None:
    photo = toy.photo_of("red")[:112, :112]
    probes = [Probe(str(index), photo, WHOLE) for index in range(2)]
    done = crops.Protected((photo, photo[::-1].copy()), np.array([False, True]), 1.0)
    values = fairness.measure(probes, done, [])
    assert values["changed"].tolist() == [0, 1]
    assert np.isnan(values["psnr"][0])
    assert np.isfinite(values["psnr"][1])


def test_settings_are_compared_on_the_same_adults(
    faces: Path, tmp_path: Path, pipe: DeDiMPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["dedim@num_inference_steps=2+L=1", "dedim@num_inference_steps=2+L=2"]
    words = [*names, "--data", faces, "--faces", 4, "--black-box", "toy1", "--panel", tmp_path / "p"]
    detector = pipe.face_detector
    settings.main(list(map(str, [*words, "--json", tmp_path / "r.json"])), load_pipeline=lambda: pipe)
    results = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "r.json").read_text()) == results
    assert [method["method"] for method in results["methods"]] == names
    for method, rounds in zip(results["methods"], (1, 2), strict=True):
        assert set(method["similarity"]) == {"white", "toy1"}
        # two steps a round, the original beside the face
        assert method["unet_calls_per_face"] <= 2 * 2 * rounds
        assert method["ssim"] < 1
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [f"{name}.png" for name in names]
    assert pipe.face_detector is detector
    assert results["command"].startswith("python -m benchmarks.settings dedim@")


def test_another_white_box_guides_and_is_the_white_one_of_the_results(
    faces: Path, tmp_path: Path, pipe: DeDiMPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = write_model(tmp_path / "guide.onnx")
    words = [
        "dedim@num_inference_steps=2+L=1",
        "--data",
        faces,
        "--faces",
        2,
        "--black-box",
        "toy1",
        "--panel",
        tmp_path,
    ]
    found = []
    for more in ([], ["--white-box", guide], ["--white-box", "own", guide]):
        settings.main(list(map(str, [*words, *more])), load_pipeline=lambda: pipe)
        found.append(json.loads(capsys.readouterr().out)["methods"][0]["similarity"])
    own, other, both = found
    assert set(own) == set(other) == {"white", "toy1"}
    assert set(both) == {"white1", "white2", "toy1"}
    assert own["white"] != other["white"]
    assert -1 <= min(both.values()) <= max(both.values()) <= 1.001  # rounded to three places


def test_settings_take_adults_alone_and_say_when_there_are_too_few(faces: Path) -> None:
    adults = list(range(2, PEOPLE))  # row 0 is a child, row 1 of unknown age
    assert settings.choose_faces(faces, PEOPLE - 2) == adults
    with pytest.raises(ValueError, match=r"--faces: .* has 10 filled crops of adults, too few for 11"):
        settings.choose_faces(faces, PEOPLE - 1)
