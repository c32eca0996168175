from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_purifier import METHOD, write
from test_train_tasks import SETTINGS, one_step
from torch import Tensor, nn
from typer.testing import CliRunner

from diffusers_dedim import DeDiMPipeline
from diffusers_dedim.cli import common
from diffusers_dedim.cli.train import app
from diffusers_dedim.models.discriminator import PatchDiscriminator
from diffusers_dedim.training import discriminator as module
from diffusers_dedim.training.config import DiscriminatorConfig
from diffusers_dedim.training.discriminator import DiscriminatorTask, discriminator_figures, where_changed
from diffusers_dedim.training.pairs import FacePairs

FIGURES = [f"{name}_{level}" for name in ("accuracy", "auc", "paired") for level in ("002", "005", "010")]


def toy_pairs(folder: Path, count: int = 20) -> Path:
    """Pairs in which protection draws stripes on the middle of the face."""
    rng = np.random.default_rng(0)
    smooth = torch.from_numpy(rng.uniform(60, 190, (count, 3, 7, 7)))
    photos = nn.functional.interpolate(smooth, size=112, mode="bilinear").permute(0, 2, 3, 1).numpy()
    original = photos.astype(np.uint8)
    protected = original.copy()
    protected[:, 40:80:4, 40:80] += 50
    write(folder / "original.parquet", list(original))
    write(folder / "protected.parquet", list(protected))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return toy_pairs(tmp_path / "pairs")


def task_of(folder: Path, *, new: bool = False, **changes: Any) -> DiscriminatorTask:
    torch.manual_seed(0)
    config = DiscriminatorConfig(**{**SETTINGS, "batch_size": 6, **changes})
    model = None if new else PatchDiscriminator(0.2)
    return DiscriminatorTask(FacePairs(folder), FacePairs(folder, "val"), config, model=model)


def penalised(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr(module, "_PENALISED", share)


def test_it_learns_what_protection_draws(folder: Path) -> None:
    task = task_of(folder)
    before = task.validate(task.model.eval())
    assert sorted(before) == sorted(FIGURES)
    assert before["accuracy_002"] == pytest.approx(0.5)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    batches = task.batches(0)
    losses = []
    for step in range(60):
        loss = task.loss(task.model, next(batches), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    after = task.validate(task.model.eval())
    assert after["paired_002"] == after["auc_002"] == 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_step_with_and_without_the_penalty(
    folder: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    penalised(monkeypatch, share)
    # untrained: log 2 for the pair, and 0.3 of twice that for its patches
    assert one_step(task_of(folder)) == pytest.approx(1.6 * np.log(2), abs=0.1)


def test_the_penalty_is_of_the_slope_at_originals(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_of(folder, penalty_weight=1.0)
    batch = next(task.batches(0))
    losses = []
    for share in (0.0, 1.0):
        penalised(monkeypatch, share)
        losses.append(task.loss(task.model, batch, torch.Generator().manual_seed(0)).item())
    assert losses[1] > losses[0]
    without = task_of(folder, penalty_weight=0.0)
    loss = without.loss(without.model, batch, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(losses[0])
    with torch.no_grad():  # as where norms are settled
        assert task.loss(task.model, batch, torch.Generator().manual_seed(0)).item() == pytest.approx(
            losses[0]
        )


def test_a_pair_shares_its_place_light_and_noise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not protected is the same to the last bit on both sides, and so is its noise."""
    penalised(monkeypatch, 0.0)
    seen: list[tuple[Tensor, Tensor]] = []

    def judge(crops: Tensor, level: Tensor) -> Tensor:
        seen.append((crops, level))
        return crops[:, :1, ::8, ::8]

    task = task_of(folder)
    task.loss(judge, next(task.batches(0)), torch.Generator().manual_seed(0))
    (original, level), (protected, same_level) = seen
    assert torch.equal(level, same_level)
    assert level.shape == (6,)
    assert 0.01 <= level.min() < level.max() <= 0.21
    assert torch.equal(original[:, :, :20], protected[:, :, :20])
    gap = (protected - original).abs()
    assert gap.amax() > 0.2
    steps = original.diff(dim=-1)
    assert (steps[:, 0] - steps[:, 1]).abs().mean() < 0.3 * steps.abs().mean()  # the noise is grey


def test_a_new_network_begins_with_little_noise(folder: Path) -> None:
    def noise_of(task: DiscriminatorTask, share: float) -> float:
        rate = task.begin_step(share)
        assert 0.02 <= rate <= 1
        return task._noise

    new, known = task_of(folder, new=True), task_of(folder)
    assert noise_of(new, 0.0) < noise_of(new, 0.1) == noise_of(known, 0.0)


def test_what_changed_is_marked_without_holes() -> None:
    original = torch.zeros(2, 3, 112, 112, dtype=torch.uint8)
    protected = original.clone()
    protected[0, 1, 40:60:4, 50] = 1  # one level in one channel
    marked = where_changed(protected, original)
    assert marked.shape == (2, 1, 112, 112)
    assert marked[0, 0, 38:59, 48:53].min() == 1
    assert marked.sum() == 21 * 5


def test_pairs_that_do_not_differ_weigh_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    penalised(monkeypatch, 1.0)
    task = task_of(folder, patch_weight=0.0)
    same = next(task.batches(0))
    same["protected"] = same["original"].clone()
    loss = task.loss(task.model, same, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss.item() == 0
    gradients = [value.grad for value in task.model.parameters() if value.grad is not None]
    assert all(gradient.abs().max() == 0 for gradient in gradients)
    mixed = next(task.batches(0))
    mixed["protected"][1:] = mixed["original"][1:]
    loss = task.loss(task.model, mixed, torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(np.log(2), abs=0.05)  # of the one that does


def test_held_out_pairs_must_differ(folder: Path) -> None:
    for name in ("protected", "original"):
        (folder / f"{name}.parquet").rename(folder / f"{name}.kept")
    (folder / "original.kept").rename(folder / "original.parquet")
    (folder / "protected.parquet").write_bytes((folder / "original.parquet").read_bytes())
    with pytest.raises(ValueError, match="data: none of the 2 held-out protected faces differs"):
        task_of(folder).identity()


def test_figures_of_who_knows_and_of_who_says_one_thing() -> None:
    original = torch.zeros(4, 3, 112, 112)
    weight = torch.full((4, 1, 14, 14), 1 / 196)

    class Light(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(factor), requires_grad=False)

        def forward(self, crops: Tensor, level: float) -> Tensor:
            return self.factor * (nn.functional.avg_pool2d(crops.mean(1, keepdim=True), 8) - 0.5)

    knows = discriminator_figures(Light(1.0), original + 1, original, weight, batch_size=3)
    assert set(knows) == set(FIGURES)
    assert set(knows.values()) == {1.0}
    wrong = discriminator_figures(Light(-1.0), original + 1, original, weight)
    assert set(wrong.values()) == {0.0}
    silent = discriminator_figures(Light(0.0), original + 1, original, weight)
    assert {name: value for name, value in silent.items() if name.endswith("002")} == {
        "accuracy_002": 0.5,
        "auc_002": 0.5,
        "paired_002": 0.0,
    }


def test_a_batch_that_the_pairs_cannot_fill(folder: Path) -> None:
    with pytest.raises(ValueError, match="batch_size: 24 is more than the 18 images"):
        task_of(folder, batch_size=24)


def run(*words: Any) -> str:
    result = CliRunner().invoke(app, [str(word) for word in ("discriminator", *words)])
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    return result.output


def test_the_command_takes_pairs_goes_on_and_starts_from_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "load_pipeline", lambda *_: pytest.fail("nothing is to be protected"))
    PatchDiscriminator(0.2).save_pretrained(tmp_path / "first")
    words = ["--data", folder, "-o", tmp_path / "out", "--batch-size", 4]
    words += ["--initial-weights", tmp_path / "first"]
    output = run(*words, "--max-steps", 2)
    assert all(name in output for name in FIGURES)
    once = PatchDiscriminator.from_pretrained(tmp_path / "out/model")
    assert once.config.width == 0.2
    run(*words, "--max-steps", 4, "--resume")
    again = PatchDiscriminator.from_pretrained(tmp_path / "out/model")
    assert not torch.equal(once.head.weight, again.head.weight)
    other = CliRunner().invoke(app, ["discriminator", *map(str, words), "--resume", "--batch-size", "5"])
    assert "made with other settings (batch_size)" in str(other.exception)


def test_the_command_protects_strangers_first(
    pipe: DeDiMPipeline, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "load_pipeline", lambda weights, device: pipe)
    words = ["--data", faces, "-o", tmp_path, "--max-steps", 1, "--batch-size", 2]
    run(*words, "--pairs", 4, "--method", METHOD)
    assert (tmp_path / "pairs/protected.parquet").is_file()
    assert PatchDiscriminator.from_pretrained(tmp_path / "model").config.width == 1.0


def test_a_folder_with_half_of_the_pairs_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "original.parquet").unlink()
    words = ["discriminator", "--data", folder, "-o", tmp_path / "out"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith("data: expected original.parquet, or a folder original of images")
