from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from diffusers_dedim import MobileFaceNet
from diffusers_dedim.cli.train import app
from diffusers_dedim.training.arcface import ArcFaceTask, arcface_logits
from diffusers_dedim.training.config import EncoderConfig
from diffusers_dedim.training.data import FaceCrops


def crop(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (112, 112, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photos of each of three people, as folders, for training and validation."""
    folder = tmp_path_factory.mktemp("people")
    for split in ("train", "val"):
        for person in ("cleo", "anna", "ben"):
            (folder / split / person).mkdir(parents=True)
            for photo in range(2):
                crop(photo).save(folder / split / person / f"{person}{photo}.png")
    return folder


def arcface_loss_as_printed(embeddings: Any, centres: Any, labels: Any, margin: float, scale: float) -> float:
    """Equation 3 of Deng et al. 2019, term by term, with the angle itself, in float64."""
    total = 0.0
    for x, label in zip(embeddings.astype(np.float64), labels, strict=True):
        terms = []
        for identity, w in enumerate(centres.astype(np.float64)):
            theta = math.acos(float(x @ w / np.linalg.norm(x) / np.linalg.norm(w)))
            terms.append(scale * math.cos(theta + margin if identity == label else theta))
        total -= terms[label] - math.log(math.fsum(math.exp(term) for term in terms))
    return total / len(labels)


@pytest.mark.parametrize(("margin", "scale"), [(0.5, 64.0), (0.0, 1.0), (0.3, 30.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_that_of_the_paper(margin: float, scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(7, 16, generator=generator, dtype=torch.float64)
    centres = torch.randn(5, 16, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    logits = arcface_logits(embeddings.to(dtype), centres.to(dtype), labels, margin=margin, scale=scale)
    expected = arcface_loss_as_printed(
        embeddings.numpy(), centres.numpy(), labels.tolist(), margin=margin, scale=scale
    )
    # float32 has seven digits, less those of 64 times a difference of cosines
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert nn.functional.cross_entropy(logits, labels).item() == pytest.approx(expected, rel=tolerance)


def test_the_own_logit_falls_with_the_angle_up_to_180_degrees() -> None:
    angles = torch.linspace(0, math.pi, 50, dtype=torch.float64)
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    logits = arcface_logits(embeddings, torch.eye(2, dtype=torch.float64), torch.zeros(50, dtype=torch.int64))
    assert (logits[1:, 0] < logits[:-1, 0]).all()


def test_gradients_are_finite_at_and_opposite_a_centre() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    logits = arcface_logits(embeddings, torch.eye(2), torch.zeros(2, dtype=torch.int64))
    nn.functional.cross_entropy(logits, torch.zeros(2, dtype=torch.int64)).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_bfloat16_embeddings_are_compared_in_float32() -> None:
    labels = torch.zeros(1, dtype=torch.int64)
    logits = arcface_logits(torch.ones(1, 4, dtype=torch.bfloat16), torch.ones(2, 4), labels)
    assert logits.dtype == torch.float32


def test_folders_are_identities(people: Path) -> None:
    data = FaceCrops(people, label_column="label")
    assert data.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data[5]["label"].item() == 2
    assert "label" not in FaceCrops(people)[0]


@pytest.mark.parametrize("names", [["b", "a", "b"], [7, 3, 7]])
def test_a_column_of_text_or_numbers_holds_identities(tmp_path: Path, names: list[Any]) -> None:
    rows = datasets.Dataset.from_dict({"image": [crop(i) for i in range(3)], "who": names})
    rows.cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "train.parquet"))
    data = FaceCrops(tmp_path / "train.parquet", label_column="who")
    assert data.labels.tolist() == [1, 0, 1]
    assert data.fingerprint != FaceCrops(tmp_path / "train.parquet").fingerprint


@pytest.mark.parametrize(
    ("names", "column", "text"),
    [
        (
            ["a", "b"],
            "label",
            r"has no column 'label'; its columns are \['image', 'who'\]\. Give --labels COLUMN",
        ),
        (["a", None], "who", r"labels: 1 rows of .* have no 'who'; drop them\."),
        ([0.5, 1.5], "who", r"holds double, expected text or whole numbers\."),
        (["a", "a"], "who", r"names one identity only, expected at least 2\."),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, names: list[Any], column: str, text: str) -> None:
    rows = datasets.Dataset.from_dict({"image": [crop(0), crop(1)], "who": names})
    rows.cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "train.parquet"))
    with pytest.raises(ValueError, match=text):
        FaceCrops(tmp_path / "train.parquet", label_column=column)


def test_the_task_learns(people: Path) -> None:
    torch.manual_seed(0)
    data = FaceCrops(people, label_column="label")
    config = EncoderConfig("out", data=str(people), method="arcface", batch_size=6)
    task = ArcFaceTask(data, data, config, student=MobileFaceNet(8))
    assert task.model.centres.shape == (3, 8)
    batch, losses = next(task.batches(0)), []
    optimizer = torch.optim.SGD(task.model.parameters(), lr=1e-6)  # the scale of 64 makes steep slopes
    for _ in range(2):
        loss = task.loss(task.model, batch, torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.model.parameters())
    figures = task.validate(task.model.eval())
    assert set(figures) == {"impostor_similarity", "genuine_similarity"}  # too few impostors for a rate


@pytest.mark.slow
def test_the_command_trains_from_folders_and_saves_the_encoder_alone(people: Path, tmp_path: Path) -> None:
    words = ["encoder", "--data", str(people), "-o", str(tmp_path), "--method", "arcface", "--max-steps", "1"]
    result = CliRunner().invoke(app, [*words, "--batch-size", "2", "--precision", "no"])
    assert result.exit_code == 0, result.output
    assert "genuine_similarity: " in result.output
    assert MobileFaceNet.from_pretrained(tmp_path / "model").config.embedding_dim == 128
    with pytest.raises(ValueError, match=r"made with other settings \(task, model, data, teacher\); use"):
        CliRunner().invoke(
            app, [*words[:5], "--teacher", __file__, "--batch-size", "2", "--resume"], catch_exceptions=False
        )
