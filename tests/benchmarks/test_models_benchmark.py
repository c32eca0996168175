from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from toys import MEAN_FACE, ToyEncoder, tiny_unet

from benchmarks import models
from benchmarks._faces import spread
from benchmarks._pairs import VerificationPairs, read_pairs
from diffusers_dedim import DeDiMPipeline, EncoderEnsemble, make_scheduler
from diffusers_dedim.encoders import Recogniser
from diffusers_dedim.evaluation import robustness
from diffusers_dedim.models.landmarks import LandmarkRegressor
from diffusers_dedim.models.mobilefacenet import MobileFaceNet

PEOPLE = 10


def picture(person: int, photo: int) -> dict[str, object]:
    """Blocks of the person's own colours, a little noisier in each photo; named as LFW names its files."""
    blocks = np.random.default_rng(person).integers(60, 196, (14, 14, 3)).repeat(8, 0).repeat(8, 1)
    noise = np.random.default_rng((person, photo)).integers(-20, 21, blocks.shape)
    file = io.BytesIO()
    Image.fromarray((blocks + noise).astype(np.uint8)).save(file, "PNG")
    return {"path": f"Person_{person}_{photo:04d}.jpg", "bytes": file.getvalue()}


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One pair of each person with itself and one with the next, in turn; 2 photos a person."""
    folder = tmp_path_factory.mktemp("pairs")
    images = [picture(person, photo) for person in range(PEOPLE) for photo in (1, 2)]
    data = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    data.to_parquet(str(folder / "lfw_pairs_crops.parquet"))
    rows = []
    for person in range(PEOPLE):
        name, other = f"Person_{person}", f"Person_{(person + 1) % PEOPLE}"
        rows += [(f"{name}_0001.jpg", f"{name}_0002.jpg", 1), (f"{name}_0001.jpg", f"{other}_0001.jpg", 0)]
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("a", "b", "same"), *rows])
    return folder


@pytest.fixture(scope="module")
def pairs(pairs_folder: Path) -> VerificationPairs:
    return read_pairs(pairs_folder)


@pytest.fixture(scope="module")
def faces_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    points = np.concatenate([np.zeros((17, 2)), MEAN_FACE.numpy()]).flatten().tolist()
    rows = {"image": [picture(person, 1) for person in range(3)], "landmarks_68": [points] * 3}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data.to_parquet(str(folder / "val-00000.parquet"))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    landmarker = LandmarkRegressor()
    landmarker.mean_shape.copy_(MEAN_FACE)
    both = EncoderEnsemble([MobileFaceNet(128), MobileFaceNet(64)])
    DeDiMPipeline(tiny_unet(), make_scheduler(), both, landmarker).save_pretrained(folder)
    return folder


def toy_of_width(spec: str) -> Recogniser:
    """Named by the width of its embedding, 16 where the name is no number."""
    return Recogniser(spec, ToyEncoder(dim=int(spec) if spec.isdigit() else 16), spec)


def test_prints_one_json_object(
    weights: Path,
    faces_folder: Path,
    pairs_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(models, "load_recogniser", toy_of_width)
    for count in ("SDEDIT_FACES", "GRADIENT_PAIRS"):
        monkeypatch.setattr(models, count, 4)
    words = ["--weights", weights, "--faces", faces_folder, "--pairs", pairs_folder]
    words += [
        "--black-box",
        "toy",
        "--teacher",
        "128",
        "64",
        "--sdedit-steps",
        2,
        "--json",
        tmp_path / "out" / "models.json",
    ]
    models.main(list(map(str, words)))
    results = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "models.json").read_text()) == results
    assert set(results["unet_psnr"]) == {"25", "50", "99", "200"}
    assert results["unet_psnr"]["25"] > results["unet_psnr"]["200"]
    assert 0 < results["sdedit_psnr"] < 40
    assert 0 < results["sdedit_ssim"] < 1
    assert -1 <= results["sdedit_similarity_min"] <= results["sdedit_similarity"] <= 1
    assert (results["sdedit_start_timestep"], results["sdedit_steps"], results["sdedit_faces"]) == (100, 2, 4)
    assert list(results["encoders"]) == ["white1", "white2", "together"]
    encoder = results["encoders"]["white2"]
    assert -1 <= encoder["cosine_with_teacher"] <= 1
    assert 0 <= encoder["lfw_accuracy"] <= 1
    assert encoder["lfw_accuracy_std"] >= 0
    assert encoder["tar_at_fmr_1e3"] is None  # ten impostors cannot resolve it
    assert (encoder["pairs"], encoder["images"]) == (2 * PEOPLE, 2 * PEOPLE)
    assert set(encoder["correlation"]) == {"toy"}
    by_timestep = results["gradient_agreement_by_timestep"]
    assert list(by_timestep) == [str(t) for t in range(9, 100, 10)]
    # each is rounded to four digits
    assert results["gradient_agreement"] == pytest.approx(np.mean(list(by_timestep.values())), abs=1e-4)
    assert {
        "unet_psnr",
        "sdedit_psnr",
        "sdedit_similarity",
        "encoders",
        "landmarks_error_iod",
        "landmarks_flip_iod",
        "parameters",
    } <= set(results)
    assert results["landmarks_error_iod"] == results["landmarks_flip_iod"] == 0  # untrained: the mean face
    assert set(results["parameters"]) == {"unet", "face_encoder", "landmarker"}
    assert results["weights_mib"] > 4  # MobileFaceNet has 1.0 M parameters in float32
    assert results["command"].startswith("python -m benchmarks.models --weights ")
    assert {"seed", "commit", "torch", "threads", "seconds", "limit"} <= set(results)


def test_pairs_keep_the_order_of_their_file(pairs: VerificationPairs) -> None:
    assert pairs.same.tolist() == [True, False] * PEOPLE
    assert ((pairs.persons[pairs.first] == pairs.persons[pairs.second]) == pairs.same).all()
    crops = pairs.crops(pairs.one_per_person(4))
    assert crops.shape == (4, 3, 112, 112)
    assert -1 <= crops.min() < crops.max() <= 1
    assert len(set(pairs.persons[pairs.one_per_person(100)])) == PEOPLE


def test_a_limit_spreads_over_the_pairs(pairs_folder: Path) -> None:
    few = read_pairs(pairs_folder, 4)
    assert few.persons[few.first].tolist() == ["Person_0", "Person_2", "Person_5", "Person_7"]
    assert spread(6000, 20).tolist() == list(
        range(0, 6000, 300)
    )  # one of each block of LFW's folds and labels


def test_a_missing_crop_is_named(pairs_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "lfw_pairs_crops.parquet").symlink_to(pairs_folder / "lfw_pairs_crops.parquet")
    (tmp_path / "pairs.csv").write_text("a,b,same\nPerson_0_0001.jpg,Nobody_0001.jpg,0\n")
    with pytest.raises(ValueError, match=r"has no crop of \['Nobody_0001.jpg'\] \(1 missing\)"):
        read_pairs(tmp_path)


def test_an_encoder_that_sees_the_person_is_right(pairs: VerificationPairs) -> None:
    encoder = models.measure_encoder(ToyEncoder(), pairs)
    assert encoder["lfw_accuracy"] == 1
    assert encoder["lfw_accuracy_std"] == 0


def test_rates_all_against_all_count_each_pair_once(
    pairs: VerificationPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(
        models, "_tar", lambda genuine, impostor, fmr: seen.append((len(genuine), len(impostor)))
    )
    models.measure_encoder(ToyEncoder(), pairs)
    assert seen == [
        *[(PEOPLE, PEOPLE)] * 2,  # without and with the mirror image
        *[(PEOPLE, 190 - PEOPLE)] * 2,
    ]  # 20 images: 190 pairs, 10 of them genuine


def test_correlation_with_itself_is_one(pairs: VerificationPairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        models, "load_recogniser", lambda name: Recogniser(name, ToyEncoder(seed=int(name)), name)
    )
    encoder = models.measure_correlation(ToyEncoder(seed=0), pairs, PEOPLE, ["0", "1"])
    assert encoder["correlation"]["0"] == 1
    assert encoder["correlation"]["1"] < 0.99


def test_noise_turns_the_gradient(
    pipe: DeDiMPipeline, pairs: VerificationPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "NOISY_TIMESTEPS", (0, 50, 900))  # noise of std 0.006, 0.09 and 0.99
    # not seed 0: from it the toy encoder has its weights, and the noise would be one of their rows
    cosine = models.measure_noisy_gradient(pipe, pairs, 4, seed=1)["gradient_agreement_by_timestep"]
    assert 1 > cosine["0"] > 0.99
    assert cosine["0"] > cosine["50"] > cosine["900"]


def test_there_and_back_depends_on_the_seed_and_not_on_the_batch(
    pipe: DeDiMPipeline, pairs: VerificationPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = pairs.crops(pairs.one_per_person(3))
    first = models.there_and_back(pipe, crops, steps=2, seed=0)
    assert first.abs().max() <= 1
    assert not torch.equal(models.there_and_back(pipe, crops, steps=2, seed=1), first)
    monkeypatch.setattr(robustness, "_CROPS_AT_ONCE", 1)
    # float32 sums of another order
    torch.testing.assert_close(models.there_and_back(pipe, crops, steps=2, seed=0), first, atol=1e-4, rtol=0)


def test_a_limit_below_the_blocks_of_the_pairs_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        models.main(["--limit", "5"])
    assert "argument --limit: expected at least 20, got 5" in capsys.readouterr().err
