from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusers_dedim import MobileFaceNet
from diffusers_dedim.training import encoder as encoder_module
from diffusers_dedim.training.config import EncoderConfig
from diffusers_dedim.training.data import FaceCrops
from diffusers_dedim.training.encoder import EncoderTask, make_encoder_task
from diffusers_dedim.training.teacher import (
    Targets,
    Teacher,
    fit_targets,
    principal_directions,
    projection,
    teacher_embeddings,
)


def test_principal_directions_keep_the_cosines() -> None:
    """Embeddings that lie in a plane keep their cosines in two dimensions, to float32."""
    generator = torch.Generator().manual_seed(0)
    plane, _ = torch.linalg.qr(torch.randn(8, 2, generator=generator))
    embeddings = nn.functional.normalize(torch.randn(20, 2, generator=generator)) @ plane.T
    reduced = embeddings @ principal_directions(embeddings, 2)
    torch.testing.assert_close(reduced @ reduced.T, embeddings @ embeddings.T, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"embedding_dim: 9 exceeds the teacher's 8\."):
        principal_directions(embeddings, 9)


def test_projected_maps_have_the_students_width_and_unit_variance() -> None:
    maps = torch.randn(6, 5, 7, 7, generator=torch.Generator().manual_seed(0)) * 3 + 2
    weight, bias = projection(maps, 4)
    projected = nn.functional.conv2d(maps, weight, bias)
    assert projected.shape == (6, 4, 7, 7)
    assert projected.mean((0, 2, 3)).abs().max().item() < 1e-4  # float32 of sums of 294 values
    assert projected.std().item() == pytest.approx(1, abs=1e-3)


class Trained(MobileFaceNet):
    """Answers as the toy teacher does, in other directions: what was learnt on other data."""

    def __init__(self, directions: Tensor) -> None:
        super().__init__(3)
        self.directions = directions

    def forward(self, crops: Tensor) -> Tensor:
        return nn.functional.normalize(crops.mean((2, 3)) @ self.directions)


def settings(teacher: Path, folder: Path, **changes: Any) -> EncoderConfig:
    return EncoderConfig(str(folder), data="faces", teacher=str(teacher), batch_size=2, **changes)


def test_a_trained_student_goes_on_in_the_directions_that_it_learnt(
    data: FaceCrops, teacher: Path, tmp_path: Path
) -> None:
    directions = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    plain = teacher_embeddings(teacher, data, tmp_path / "plain.npz")
    cosine = {}
    for start in (None, "folder"):
        config = settings(teacher, tmp_path, initial_weights=start)
        task = EncoderTask(data, data, Teacher(teacher), plain, plain, config, student=Trained(directions))
        cosine[start] = task.validate(task.model)["cosine_to_teacher"]
        basis = task.targets.basis
        torch.testing.assert_close(basis.T @ basis, torch.eye(3), rtol=0, atol=1e-5)  # cosines are kept
    assert cosine["folder"] > 0.999  # the mean colours of float32 sums in another order
    assert cosine[None] < 0.9


def test_maps_are_turned_to_a_trained_student_too(data: FaceCrops, teacher: Path, tmp_path: Path) -> None:
    network, student = Teacher(teacher), MobileFaceNet(2).eval()
    directions = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    plain = teacher_embeddings(teacher, data, tmp_path / "plain.npz")

    def answers(crops: Tensor) -> tuple[Tensor, list[Tensor]]:
        embedding, maps = MobileFaceNet.embed_with_stages(student, crops)
        with torch.no_grad():
            turned = [torch.einsum("nchw,cd->ndhw", stage, directions) for stage in network(crops)[1]]
        return embedding, [maps[0], turned[0], maps[2], turned[1]]

    student.embed_with_stages = answers  # type: ignore[method-assign]
    images = torch.stack([data[index]["image"] for index in range(6)]).float() / 127.5 - 1
    errors = {}
    for trained in (False, True):
        targets = fit_targets(network, student, data, plain, trained=trained)
        theirs, ours = network(images)[1], dict(zip((56, 28, 14, 7), answers(images)[1], strict=True))
        errors[trained] = 0.0
        for (size, weight, bias), stage in zip(targets.projections, theirs, strict=True):
            goal = nn.functional.conv2d(stage, weight, bias)
            own = ours[size] - ours[size].mean((0, 2, 3), keepdim=True)
            errors[trained] += float(1 - nn.functional.cosine_similarity(goal, own, dim=1).mean())
    assert errors[True] < 0.01
    assert errors[False] > 0.5


def test_a_resumed_run_keeps_the_targets_of_the_first(data: FaceCrops, teacher: Path, tmp_path: Path) -> None:
    config = settings(teacher, tmp_path / "run")
    student = MobileFaceNet(2)
    first = make_encoder_task(data, data, config, student, resume=False).targets
    turned = Targets(-first.basis, tuple((size, -weight, -bias) for size, weight, bias in first.projections))
    turned.save(tmp_path / "run" / "teacher-targets.npz")  # as another machine's LAPACK would give them
    anew = make_encoder_task(data, data, config, student, resume=True).targets
    assert torch.equal(anew.basis, first.basis)  # there was no checkpoint: the run starts anew
    turned.save(tmp_path / "run" / "teacher-targets.npz")
    (tmp_path / "run" / "checkpoint").mkdir()
    kept = make_encoder_task(data, data, config, student, resume=True).targets
    assert torch.equal(kept.basis, turned.basis)
    assert [size for size, _, _ in kept.projections] == [28, 7]
    for one, other in zip(kept.projections, turned.projections, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one[1:], other[1:], strict=True))


def test_a_checkpoint_without_targets_goes_on_unturned(
    data: FaceCrops, teacher: Path, tmp_path: Path
) -> None:
    """Earlier versions turned nothing; the middle of a training is no place to begin."""
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    config = settings(teacher, tmp_path / "run", initial_weights="folder")
    task = make_encoder_task(data, data, config, Trained(-torch.eye(3)), resume=True)
    plain = teacher_embeddings(teacher, data, tmp_path / "run" / "teacher-train.npz")
    assert torch.equal(task.targets.basis, principal_directions(plain, 3))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("validation", "data: image 1 of "),
        ("teacher", "notes.txt cannot be converted to torch modules ("),
        ("width", "embedding_dim: 128 exceeds the teacher's 3."),
        ("batch", "batch_size: 9 is more than the 6 images of the data."),
    ],
)
def test_what_bars_the_training_is_refused_before_the_teacher_looks_at_all_faces(
    data: FaceCrops, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, text: str
) -> None:
    monkeypatch.setattr(encoder_module, "teacher_embeddings", lambda *_: pytest.fail("the teacher was asked"))
    validation = FaceCrops(data.source)
    if wrong == "validation":
        monkeypatch.setattr(validation, "_check_size", refuse_the_second)
    if wrong == "teacher":
        teacher = tmp_path / "notes.txt"
        teacher.write_text("not a network")
    config = EncoderConfig(
        str(tmp_path / "run"), data="faces", teacher=str(teacher), batch_size=9 if wrong == "batch" else 2
    )
    student = MobileFaceNet(128 if wrong == "width" else 2)
    with pytest.raises(ValueError, match=re.escape(text)):
        make_encoder_task(data, validation, config, student, resume=False)
    assert not (tmp_path / "run").exists()


def refuse_the_second(index: int, image: Any) -> None:
    if index == 1:
        raise ValueError("data: image 1 of the validation faces is 64x64")
