"""Distillation block by block: what is compared, when, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_block_teacher import block_teacher
from toy_teacher import mean_colour_teacher
from typer.testing import CliRunner

from diffusers_dedim import MobileFaceNet
from diffusers_dedim.cli.main import app as dedim
from diffusers_dedim.training import loop
from diffusers_dedim.training.augment import change_mildly
from diffusers_dedim.training.blockwise import BlockwiseTask, block_errors, joint_errors
from diffusers_dedim.training.config import EncoderConfig
from diffusers_dedim.training.data import FaceCrops
from diffusers_dedim.training.plan import BlockTeacher

SETTINGS: dict[str, Any] = {
    "output_dir": "out",
    "data": "faces",
    "batch_size": 3,
    "precision": "no",
    "method": "blockwise",
    "teacher": "teacher.onnx",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "teacher.onnx"
    block_teacher(path, embedding_dim=16)
    return path


@pytest.fixture(scope="module")
def teacher(path: Path) -> BlockTeacher:
    return BlockTeacher(path)


def task_of(data: FaceCrops, teacher: BlockTeacher, **changes: Any) -> BlockwiseTask:
    torch.manual_seed(1)
    return BlockwiseTask(data, data, teacher, EncoderConfig(**{**SETTINGS, **changes}))


def test_the_teachers_own_network_has_nothing_to_learn(path: Path, teacher: BlockTeacher) -> None:
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    twin = block_teacher(path.with_name("twin.onnx"), embedding_dim=16)
    other = MobileFaceNet(16).eval()
    with torch.no_grad():
        _, maps = teacher(images)
        for errors, count in ((block_errors, 17), (joint_errors, 17)):
            assert errors(twin, images, maps).shape == (count,)
            # float32, by another library
            torch.testing.assert_close(errors(twin, images, maps), torch.zeros(count), rtol=0, atol=1e-5)
            assert float(errors(other, images, maps).min()) > 1e-2


def test_each_block_learns_from_its_own_error_alone(teacher: BlockTeacher) -> None:
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    student = MobileFaceNet(16).train()
    with torch.no_grad():
        _, maps = teacher(images)
    block_errors(student, images, maps)[3].backward()
    touched = {name for name, weight in student.named_parameters() if weight.grad.any()}
    assert touched == {name for name, _ in student.named_parameters() if name.startswith("bottlenecks.2.")}


def test_both_parts_learn(data: FaceCrops, teacher: BlockTeacher) -> None:
    task = task_of(data, teacher)
    batch = next(task.batches(0))
    optimizer = torch.optim.SGD(task.model.parameters(), lr=1e-3)
    losses = {}
    for share in (0.0, 0.5):
        task.begin_step(share)
        for turn in range(2):
            loss = task.loss(task.model.train(), batch, torch.Generator().manual_seed(0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[share, turn] = loss.item()
    assert losses[0.0, 1] < losses[0.0, 0]
    assert losses[0.5, 1] < losses[0.5, 0]
    figures = task.validate(task.model.eval())
    assert sorted(figures) == ["cosine_to_teacher", "impostor_correlation"]
    assert all(-1 <= value <= 1 for value in figures.values())


def test_crops_are_moved_against_the_student_by_the_radius(data: FaceCrops, teacher: BlockTeacher) -> None:
    task = task_of(data, teacher, adversarial_radius=0.5)
    images = torch.rand(3, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        goal = task.model.eval()(images) + 0.1  # not the student's own: its cosine has a slope here
    moved = task._against(images, goal, torch.Generator().manual_seed(0))
    assert not moved.requires_grad
    torch.testing.assert_close((moved - images).flatten(1).norm(dim=1), torch.full((3,), 0.5))
    chance = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    chance = images + 0.5 * torch.nn.functional.normalize(chance.flatten(1)).reshape_as(images)
    with torch.no_grad():
        similarities = [
            torch.nn.functional.cosine_similarity(task.model(x), goal) for x in (images, chance, moved)
        ]
    assert bool((similarities[2] < similarities[0]).all())
    assert bool((similarities[2] < similarities[1]).all())


def test_moved_crops_change_what_all_together_learn_only(data: FaceCrops, teacher: BlockTeacher) -> None:
    losses = {}
    for radius in (0.0, 2.0):
        task = task_of(data, teacher, adversarial_radius=radius)
        for share in (0.0, 0.5):
            task.begin_step(share)
            loss = task.loss(task.model.train(), next(task.batches(0)), torch.Generator().manual_seed(0))
            losses[radius, share] = loss.item()
    assert losses[2.0, 0.0] == losses[0.0, 0.0]
    assert losses[2.0, 0.5] > losses[0.0, 0.5]


def test_batch_norms_are_settled_on_crops_that_are_not_moved(data: FaceCrops, teacher: BlockTeacher) -> None:
    losses = []
    for radius in (0.0, 2.0):
        task = task_of(data, teacher, adversarial_radius=radius)
        task.begin_step(1.0)
        with torch.no_grad():  # as `settle_batch_norm` runs it at the end of a training
            batch = next(task.batches(0))
            losses.append(task.loss(task.model.train(), batch, torch.Generator().manual_seed(0)).item())
    assert losses[0] == losses[1]


def test_the_rate_falls_over_each_part(data: FaceCrops, teacher: BlockTeacher) -> None:
    task = task_of(data, teacher, blocks_share=0.5)
    rates = [task.begin_step(share / 100) for share in range(101)]
    assert rates[0] == 1
    assert rates[49] == pytest.approx(0.2, abs=0.01)
    assert max(rates[50:]) == pytest.approx(0.4, abs=0.01)
    assert rates[50] < 0.1  # a second warm-up
    assert rates[100] == pytest.approx(0.004)
    assert task_of(data, teacher, blocks_share=0.0).begin_step(0) == pytest.approx(0.4)
    assert task_of(data, teacher, blocks_share=1.0).begin_step(1) == pytest.approx(0.004)


def test_changes_lessen_towards_the_end() -> None:
    images = torch.randint(0, 256, (40, 3, 112, 112), generator=torch.Generator().manual_seed(0)).byte()
    plain = images.float() / 127.5 - 1
    distance = []
    for strength in (0.0, 0.5, 1.0):
        changed = change_mildly(images, torch.Generator().manual_seed(1), strength=strength, max_noise=0.1)
        assert changed.shape == plain.shape
        assert changed.dtype == torch.float32
        assert float(changed.abs().max()) <= 1
        nearer = torch.minimum(
            *((changed - other).square().mean((1, 2, 3)) for other in (plain, plain.flip(3)))
        )
        distance.append(float(nearer.mean()))
    assert distance[0] < 1e-9
    assert distance[0] < distance[1] < distance[2]


def test_a_student_of_another_plan_is_refused(data: FaceCrops, teacher: BlockTeacher) -> None:
    text = "initial_weights: the network has embedding_dim 128, stem_pointwise False, expected embedding_dim 16, "
    with pytest.raises(ValueError, match=re.escape(text)):
        BlockwiseTask(data, data, teacher, EncoderConfig(**SETTINGS), student=MobileFaceNet())


def invoke(faces: Path, run: Path, *words: Any) -> Any:
    begin = ["train", "encoder", "--data", faces, "-o", run, "--method", "blockwise", "--batch-size", 3]
    return CliRunner().invoke(dedim, list(map(str, [*begin, "--precision", "no", *words])))


@pytest.mark.filterwarnings("ignore:.*has no part 'val':UserWarning")
def test_the_command_trains_a_network_of_the_teachers_plan(
    faces: Path, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_SETTLING_BATCHES", 1)  # a hundred would be most of the time
    result = invoke(faces, tmp_path, "--teacher", path, "--max-steps", 2, "--blocks-share", 0.5)
    assert result.exit_code == 0, result.output
    assert "cosine_to_teacher: " in result.output
    assert MobileFaceNet.from_pretrained(tmp_path / "model").config.embedding_dim == 16
    again = tmp_path / "again"
    start = ["--initial-weights", tmp_path / "model", "--blocks-share", 0, "--learning-rate", 1e-12]
    result = invoke(faces, again, "--teacher", path, "--max-steps", 1, *start)
    assert result.exit_code == 0, result.output
    before, after = (MobileFaceNet.from_pretrained(folder / "model") for folder in (tmp_path, again))
    torch.testing.assert_close(after.head[0][0].weight, before.head[0][0].weight, rtol=0, atol=1e-9)


def test_the_command_refuses_a_teacher_of_another_plan_before_it_reads_the_data(tmp_path: Path) -> None:
    teacher = mean_colour_teacher(tmp_path / "other.onnx")
    result = invoke(tmp_path / "nowhere", tmp_path / "run", "--teacher", teacher)
    assert result.exit_code == 2, result.output
    message = result.output.splitlines()[-1]
    assert message.startswith(f"Error: teacher: {teacher} has another plan than MobileFaceNet")
    assert not (tmp_path / "run").exists()


def test_blockwise_without_a_teacher_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^teacher: --method blockwise needs one; give --teacher FILE\.onnx"
    ):
        EncoderConfig(**{**SETTINGS, "teacher": None})
