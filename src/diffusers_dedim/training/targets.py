"""What a student is to answer: the teacher's embedding and feature maps, brought to the student's widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from diffusers_dedim.encoders.mobilefacenet import MobileFaceNet
from diffusers_dedim.training.data import FaceCrops, to_model_range
from diffusers_dedim.training.teacher import STAGE_SIZES, Teacher

_CROPS = 6000  # that a trained student embeds, to see in which directions it answers; with 1,000 the turn is too vague
_MAP_CROPS = 256


@dataclass(frozen=True)
class Targets:
    """How the teacher's answers become the student's.

    Principal directions have arbitrary signs, and arbitrary places within nearly equal variances: other data, or
    another machine's LAPACK, gives other ones. A training must therefore keep the first.

    Attributes:
        basis: ``[D, d]`` with orthonormal columns: teacher's embedding -> student's.
        projections: size, weight ``[c, C, 1, 1]`` and bias ``[c]`` of the 1x1 convolution of each feature map.
    """

    basis: Tensor
    projections: tuple[tuple[int, Tensor, Tensor], ...]

    def save(self, path: Path) -> None:
        """Write a .npz file in one move."""
        arrays = {"basis": self.basis.numpy()}
        for size, weight, bias in self.projections:
            arrays |= {f"weight_{size}": weight.numpy(), f"bias_{size}": bias.numpy()}
        fresh = path.with_suffix(".new.npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(fresh, **arrays)  # type: ignore[arg-type]  # its second parameter is not among the arrays
        fresh.replace(path)

    @classmethod
    def load(cls, path: Path) -> Targets:
        """Read what `save` wrote."""
        with np.load(path) as kept:
            arrays = {name: torch.from_numpy(kept[name]) for name in kept.files}
        sizes = [int(name.removeprefix("weight_")) for name in arrays if name.startswith("weight_")]
        return cls(arrays["basis"], tuple((s, arrays[f"weight_{s}"], arrays[f"bias_{s}"]) for s in sizes))


def fit_targets(
    teacher: Teacher, student: MobileFaceNet, data: FaceCrops, embeddings: Tensor, *, trained: bool
) -> Targets:
    """Take the principal directions of the teacher's answers, and turn them to a trained student's.

    A student that was trained on other data learnt other directions of the same space. Turned by the orthogonal
    Procrustes solution (Schönemann 1966) they are kept, and with them what it knows; cosines stay as they are.

    Args:
        teacher: gives the feature maps.
        student: gives the widths and, where ``trained``, the directions.
        data: the training faces, of which the first 256 (maps) and 6,000 spread over all (embeddings) are shown.
        embeddings: the teacher's unit embeddings ``[N, D]`` of the plain crops.
        trained: whether the student was trained before.

    Returns:
        The targets.

    Raises:
        ValueError: the student's embedding is wider than the teacher's.
    """
    student.eval()
    basis = principal_directions(embeddings, student.config.embedding_dim)
    if trained:
        places = np.linspace(0, len(data) - 1, min(_CROPS, len(data))).astype(int).tolist()
        answers = embed(student, Subset(data, places), len(places))
        basis = basis @ _rotation(nn.functional.normalize(embeddings[places] @ basis), answers)
    images = torch.stack([data[index]["image"] for index in range(min(_MAP_CROPS, len(data)))])
    theirs = _maps(teacher, images)
    ours = _maps(student.embed_with_stages, images if trained else images[:2])
    projections = []
    for size, maps in theirs.items():
        weight, bias = projection(maps, ours[size].shape[1])
        if trained:
            weight, bias = _turned(weight, bias, maps, ours[size])
        projections.append((size, weight, bias))
    return Targets(basis, tuple(projections))


def principal_directions(embeddings: Tensor, dimensions: int) -> Tensor:
    """Leading directions ``[D, dimensions]`` of the uncentred embeddings, which keep cosines best.

    Raises:
        ValueError: there are fewer than ``dimensions``.
    """
    check_width(dimensions, embeddings.shape[1])
    vectors: Tensor = torch.linalg.eigh(embeddings.T.double() @ embeddings.double())[1]
    return vectors.flip(1)[:, :dimensions].float()


def check_width(dimensions: int, teachers: int) -> None:
    """Refuse a student whose embedding is wider than the teacher's.

    Raises:
        ValueError: it is.
    """
    if dimensions > teachers:
        raise ValueError(f"embedding_dim: {dimensions} exceeds the teacher's {teachers}.")


def projection(maps: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Weight ``[width, C, 1, 1]`` and bias that give the leading principal components, at a mean variance of 1."""
    values = maps.float().transpose(0, 1).flatten(1)
    mean = values.mean(1)
    vectors = torch.linalg.eigh(torch.cov(values.double()))[1].flip(1)[:, :width].float()
    scale = (vectors.T @ (values - mean[:, None])).std()
    weight = vectors.T / scale
    return weight[:, :, None, None], -weight @ mean


def _maps(answer: Callable[..., Any], images: Tensor) -> dict[int, Tensor]:
    """Feature maps of uint8 crops by their size, of the sizes that are compared."""
    with torch.no_grad():
        parts = [
            [maps for maps in answer(to_model_range(part))[1] if maps.shape[-1] in STAGE_SIZES]
            for part in torch.split(images, 32)
        ]
    return {stage[0].shape[-1]: torch.cat(stage) for stage in zip(*parts, strict=True)}


def _rotation(rows: Tensor, wanted: Tensor) -> Tensor:
    """The orthogonal matrix that brings ``rows`` ``[N, d]`` nearest to ``wanted``, in the sum of squares."""
    left, _, right = torch.linalg.svd(rows.T.double() @ wanted.double())
    rotation: Tensor = (left @ right).float()
    return rotation


def _turned(weight: Tensor, bias: Tensor, maps: Tensor, ours: Tensor) -> tuple[Tensor, Tensor]:
    """The projection turned within its width to the student's maps (its first channels, if it has more)."""
    goal = nn.functional.conv2d(maps.float(), weight, bias)
    ours = ours[:, : goal.shape[1]].float()
    rotation = _rotation(*(values.transpose(0, 1).flatten(1).T for values in (goal, ours)))
    return (rotation.T @ weight[:, :, 0, 0])[:, :, None, None], rotation.T @ bias


def embed(model: nn.Module, data: Dataset[dict[str, Tensor]], count: int, batch_size: int = 64) -> Tensor:
    """Embed the first ``count`` crops; unit vectors ``[count, D]``."""
    device = next(model.parameters()).device
    rows = []
    with torch.no_grad():
        for start in range(0, count, batch_size):
            items = [data[index]["image"] for index in range(start, min(start + batch_size, count))]
            rows.append(model(to_model_range(torch.stack(items)).to(device)).cpu())
    return torch.cat(rows)
