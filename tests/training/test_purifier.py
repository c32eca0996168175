from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from test_train_tasks import SETTINGS, one_step
from toy_faces import rows
from toys import ToyEncoder
from typer.testing import CliRunner

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.cli import common
from diffusers_dedim.cli.train import app
from diffusers_dedim.evaluation import crops
from diffusers_dedim.evaluation.crops import make_pairs
from diffusers_dedim.evaluation.purification import load_purifier, make_attacks
from diffusers_dedim.faces import ARCFACE_TEMPLATE, Face
from diffusers_dedim.training.config import PurifierConfig
from diffusers_dedim.training.pairs import FacePairs
from diffusers_dedim.training.purifier import PurifierNet, PurifierTask

METHOD = "dedim@num_inference_steps=2+L=1"


def write(path: Path, images: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = datasets.Dataset.from_dict({"image": images}).cast_column("image", datasets.Image())
    data.to_parquet(str(path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pairs in which the protection is to lose a third of the red."""
    images = rows()["image"]
    write(tmp_path / "original.parquet", images)
    read = datasets.load_dataset("parquet", data_files=str(tmp_path / "original.parquet"), split="train")
    protected = [np.array(row["image"].convert("RGB")) * [2 / 3, 1, 1] for row in read]
    write(tmp_path / "protected.parquet", [each.astype(np.uint8) for each in protected])
    return tmp_path


def test_the_network_is_small_and_changes_nothing_untrained() -> None:
    network = PurifierNet()
    assert round(sum(value.numel() for value in network.parameters()) / 1e6, 1) == 0.5
    images = torch.rand(2, 3, 112, 112) * 2 - 1
    assert torch.equal(network(images), images)
    with pytest.raises(ValueError, match=r"expected shape \[N, 3, 112, 112\]"):
        network(images[..., :64])


def test_pairs_stay_pairs_and_the_last_tenth_is_held_out(folder: Path) -> None:
    train, held_out = FacePairs(folder), FacePairs(folder, "val")
    assert len(held_out) == 1
    assert len(train) == len(rows()["image"]) - 1
    for item in (train[0], held_out[0]):
        lost = item["original"].float() - item["protected"].float()
        assert lost[0].mean() > 5
        assert lost[1:].abs().max() == 0
    assert train.fingerprint != held_out.fingerprint
    kept = FacePairs(folder, keep_in_memory=True)
    assert kept[0]["original"] is kept[0]["original"]


def test_pairs_that_are_none_are_named(folder: Path) -> None:
    write(folder / "protected.parquet", rows()["image"][:2])
    with pytest.raises(ValueError, match=r"expected as many protected as original faces in .*, got 2 and"):
        FacePairs(folder)
    (folder / "protected.parquet").unlink()
    with pytest.raises(
        ValueError, match=r"data: expected protected\.parquet, or a folder protected of images"
    ):
        FacePairs(folder)


def task_of(folder: Path, **changes: Any) -> PurifierTask:
    torch.manual_seed(0)
    config = PurifierConfig(**{**SETTINGS, "batch_size": 2, "width": 0.2, **changes})
    return PurifierTask(FacePairs(folder), FacePairs(folder, "val"), config, ToyEncoder())


def test_it_learns_what_was_taken(folder: Path) -> None:
    task = task_of(folder)
    before = task.validate(task.model.eval())
    assert before["psnr_protected"] == pytest.approx(before["psnr_restored"])
    assert before["cosine_protected"] == pytest.approx(before["cosine_restored"])
    # untrained: all of the protection's error, and what the encoder makes of it
    assert one_step(task) >= 0.99
    optimizer = torch.optim.Adam(task.model.parameters(), lr=3e-3)
    batches = task.batches(0)
    for step in range(60):
        loss = task.loss(task.model, next(batches), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        after = task.validate(task.model.eval())
    assert after["psnr_restored"] > before["psnr_restored"] + 1
    assert all(parameter.grad is None for parameter in task.encoder.parameters())


def test_a_new_network_is_as_wide_as_asked(folder: Path) -> None:
    narrow, wide = (
        sum(weights.numel() for weights in task_of(folder, width=width).model.parameters())
        for width in (0.5, 1.0)
    )
    assert 3 * narrow < wide
    with pytest.raises(ValueError, match="width: expected a positive number, got 0"):
        task_of(folder, width=0)


def test_without_the_guides_only_pixels_count(folder: Path) -> None:
    task = task_of(folder, identity_weight=0.0)
    batch = next(task.batches(0))
    loss = task.loss(task.model, batch, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(1, abs=0.05)  # clamped after it was moved


def test_strangers_are_protected_once(
    pipe: DeDiMPipeline, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    make = crops.make_method
    monkeypatch.setattr(
        crops, "make_method", lambda name, *_, **__: made.append(name) or make(name, *_, **__)
    )
    folder = make_pairs(pipe, str(faces), tmp_path / "pairs", count=3, method=METHOD)
    first = {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    make_pairs(pipe, str(faces), tmp_path / "pairs", count=3, method=METHOD)
    assert {path.name: path.read_bytes() for path in folder.glob("*.parquet")} == first
    assert made == [METHOD]
    item = FacePairs(folder)[0]
    assert (item["protected"] != item["original"]).any()
    with pytest.raises(ValueError, match="method: 'tip-im' needs target people"):
        make_pairs(pipe, str(faces), tmp_path, count=3, method="tip-im")


def test_the_command_protects_trains_and_leaves_a_purifier(
    pipe: DeDiMPipeline, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "load_pipeline", lambda weights, device: pipe)
    words = ["purifier", "--data", faces, "-o", tmp_path, "--max-steps", 1, "--batch-size", 2, "--pairs", 4]
    command = [str(word) for word in [*words, "--method", METHOD]]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "cosine_restored" in result.output
    again = CliRunner().invoke(app, [*command, "--resume", "--max-steps", "2"])
    assert again.exit_code == 0, again.output
    attacks = make_attacks(pipe, purifier=tmp_path)
    assert list(attacks)[-3:] == ["purify-100+jpeg-75", "purifier", "purifier+jpeg-75"]


def test_a_purifier_changes_faces_alone_and_says_who_it_is(
    pipe: DeDiMPipeline, crop: np.ndarray, tmp_path: Path
) -> None:
    photo = np.tile(crop, (2, 2, 1))[:151, :133]
    network = PurifierNet(0.2)
    torch.nn.init.constant_(network.head.bias, 0.2)
    network.save_pretrained(tmp_path / "model")
    purifier = load_purifier(tmp_path, pipe)
    assert purifier.fingerprint == load_purifier(tmp_path / "model", pipe).fingerprint
    pipe.face_detector = lambda _: [Face((4.0, 4.0, 116.0, 116.0), ARCFACE_TEMPLATE + 4, 1.0)]
    (result,) = purifier([photo])
    inside = result[8:112, 8:112].astype(int) - photo[8:112, 8:112]
    assert 20 < inside[photo[8:112, 8:112] < 200].mean() < 30  # 0.2 of [-1, 1] is 25.5 grey levels
    np.testing.assert_array_equal(result[118:], photo[118:])
    chained = make_attacks(pipe, purifier=tmp_path)["purifier+jpeg-75"]
    assert chained.fingerprint.strip() == purifier.fingerprint
    assert not np.array_equal(chained([photo])[0], result)
    pipe.face_detector = lambda _: []
    np.testing.assert_array_equal(purifier([photo])[0], photo)
    with pytest.raises(ValueError, match=r"purifier: .* has no config\.json"):
        load_purifier(tmp_path / "gone", pipe)
