"""Distil the face encoder (MobileFaceNet) from a teacher's embeddings; no identity labels needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from diffusers_dedim.encoders.mobilefacenet import MobileFaceNet
from diffusers_dedim.training.data import FaceCrops, batches, random_similarity, to_model_range
from diffusers_dedim.training.loop import Batch, LoopConfig


class EncoderTask:
    """Regress the teacher's embedding, reduced to the student's dimension by PCA.

    The leading principal directions keep the teacher's cosines almost unchanged, so a student of 128
    dimensions can follow a teacher of 512. A second term matches the cosines within the batch, which
    is what recognition compares.

    Args:
        train_data, val_data: see `FaceCrops`.
        teacher_train, teacher_val: unit embeddings ``[N, D]`` of the same crops (`teacher_embeddings`).
        loop: settings of the loop.
        embedding_dim: the student's dimension.
        max_noise: standard deviation, in [-1, 1] units, of the noise added to half of the crops;
            guidance feeds the encoder images at t <= 100, whose noise goes up to 0.167.
        relation_weight: weight of the second term.
    """

    def __init__(
        self, train_data: FaceCrops, val_data: FaceCrops, teacher_train: Tensor, teacher_val: Tensor,
        loop: LoopConfig, *, embedding_dim: int = 128, max_noise: float = 0.05, relation_weight: float = 1.0,
    ) -> None:  # fmt: skip
        self.model = MobileFaceNet(embedding_dim)
        self.train_data, self.val_data, self.loop = train_data, val_data, loop
        basis = _principal_directions(teacher_train, embedding_dim)
        self.targets = nn.functional.normalize(teacher_train @ basis)
        self.val_targets = nn.functional.normalize(teacher_val @ basis)
        self.teacher_val = teacher_val
        self.max_noise, self.relation_weight = max_noise, relation_weight

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Yield crops with their targets."""
        data = _WithTargets(self.train_data, self.targets)
        loop = self.loop
        return batches(data, loop.batch_size, loop.seed, start_step, loop.num_workers)

    def loss(self, model: Callable[..., Any], batch: Batch, generator: torch.Generator) -> Tensor:
        """1 - cosine to the target, plus the squared error of the batch's cosine matrix."""
        images = augment(to_model_range(batch["image"]), generator, self.max_noise)
        student: Tensor = model(images)
        target = batch["target"]
        direct: Tensor = 1 - (student * target).sum(1).mean()
        relation: Tensor = (student @ student.T - target @ target.T).square().mean()
        return direct + self.relation_weight * math.sqrt(len(target)) * relation

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Compare with the teacher on validation faces: cosine to the target, correlation of the cosines."""
        count = min(512, len(self.val_data))
        student = embed(model, self.val_data, count)
        rows, columns = torch.triu_indices(count, count, offset=1)
        ours = (student @ student.T)[rows, columns]
        teacher = self.teacher_val[:count]
        theirs = (teacher @ teacher.T)[rows, columns]
        correlation = torch.corrcoef(torch.stack([ours, theirs]))[0, 1]
        cosine = (student * self.val_targets[:count]).sum(1).mean()
        return {"cosine_to_teacher": float(cosine), "impostor_correlation": float(correlation)}


class _WithTargets(Dataset[dict[str, Tensor]]):
    """Crops with the teacher's embedding beside each."""

    def __init__(self, crops: FaceCrops, targets: Tensor) -> None:
        self.crops, self.targets = crops, targets

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.crops[index]["image"], "target": self.targets[index]}


def augment(images: Tensor, generator: torch.Generator, max_noise: float) -> Tensor:
    """Mirror, move, recolour, blur and add noise: what photos and x_t do to a face without changing whose it is.

    Args:
        images: ``[N, 3, 112, 112]`` in [-1, 1].
        generator: source of the randomness.
        max_noise: largest standard deviation of the noise, which half of the images get.

    Returns:
        Changed images of the same shape; not clipped, as x_t is not.
    """
    count = len(images)

    def chance(share: float) -> Tensor:
        return (torch.rand(count, 1, 1, 1, generator=generator) < share).to(images.device)

    images = torch.where(chance(0.5), images.flip(3), images)
    images, _ = random_similarity(
        images, images.new_zeros(count, 0, 2), generator, max_shift=3, max_scale=0.05, max_degrees=4
    )
    gain = 1 + 0.25 * (torch.rand(count, 1, 1, 1, generator=generator) * 2 - 1)
    bias = 0.2 * (torch.rand(count, 1, 1, 1, generator=generator) * 2 - 1)
    images = images * gain.to(images) + bias.to(images)
    grey = images.mean(1, keepdim=True).expand_as(images)
    images = torch.where(chance(0.1), grey, images)
    half = nn.functional.interpolate(images, scale_factor=0.5, mode="area")
    soft = nn.functional.interpolate(half, size=images.shape[-2:], mode="bilinear", align_corners=False)
    images = torch.where(chance(0.15), soft, images)
    noise = torch.randn(images.shape, generator=generator).to(images)
    strength = torch.rand(count, 1, 1, 1, generator=generator).to(images) * max_noise * chance(0.5)
    return images + strength * noise


def teacher_embeddings(
    teacher: str | Path, data: FaceCrops, cache: str | Path, batch_size: int = 32
) -> Tensor:
    """Embed every crop once with an ONNX teacher, and keep the result in ``cache`` (a .npy file).

    Returns:
        Unit embeddings ``[N, D]``, float32, in the order of ``data``.

    Raises:
        ValueError: the teacher file is missing, or the cache was made for other data.
    """
    cache, teacher = Path(cache), Path(teacher)
    if not cache.is_file():
        if not teacher.is_file():
            raise ValueError(f"teacher: no such file {teacher}; expected an ONNX face recogniser.")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(teacher), options)
        name, rows = session.get_inputs()[0].name, []
        for start in tqdm(range(0, len(data), batch_size), desc="teacher", unit="batch"):
            items = [data[index]["image"] for index in range(start, min(start + batch_size, len(data)))]
            rows.append(session.run(None, {name: to_model_range(torch.stack(items)).numpy()})[0])
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.save(cache, np.concatenate(rows))
    embeddings = torch.from_numpy(np.load(cache)).float()
    if len(embeddings) != len(data):
        raise ValueError(
            f"teacher: {cache} holds {len(embeddings)} rows but the data {len(data)}; delete it."
        )
    return nn.functional.normalize(embeddings)


def _principal_directions(embeddings: Tensor, dimensions: int) -> Tensor:
    """Leading directions ``[D, dimensions]`` of the uncentred embeddings, which keep cosines best."""
    if dimensions > embeddings.shape[1]:
        raise ValueError(f"embedding_dim: {dimensions} exceeds the teacher's {embeddings.shape[1]}.")
    vectors: Tensor = torch.linalg.eigh(embeddings.T.double() @ embeddings.double())[1]
    return vectors.flip(1)[:, :dimensions].float()


def embed(model: nn.Module, data: FaceCrops, count: int, batch_size: int = 64) -> Tensor:
    """Embed the first ``count`` crops; unit vectors ``[count, D]``."""
    device = next(model.parameters()).device
    rows = []
    with torch.no_grad():
        for start in range(0, count, batch_size):
            items = [data[index]["image"] for index in range(start, min(start + batch_size, count))]
            rows.append(model(to_model_range(torch.stack(items)).to(device)).cpu())
    return torch.cat(rows)
