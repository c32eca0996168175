"""Distil the face encoder (MobileFaceNet) from a teacher's embeddings; no identity labels needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffusers_dedim.encoders.mobilefacenet import MobileFaceNet
from diffusers_dedim.training.data import FaceCrops, batches, random_similarity, to_model_range
from diffusers_dedim.training.loop import Batch, LoopConfig


class EncoderTask:
    """Let the student answer as the teacher does to the same augmented crops (function matching, Beyer et al. 2022).

    The teacher's embedding is reduced to the student's dimension by PCA: the leading directions keep the
    cosines almost unchanged, so a student of 128 dimensions can follow a teacher of 512. Beside the
    embedding, its cosines within the batch are matched, which is what recognition compares, and the feature
    maps (FitNets, Romero et al. 2015), which say at every place of the face what to look for.

    Args:
        train_data, val_data: see `FaceCrops`.
        teacher: gives embedding and feature maps (`Teacher`).
        teacher_train, teacher_val: its unit embeddings ``[N, D]`` of the plain crops (`teacher_embeddings`).
        loop: settings of the loop.
        student: network to train, a new one by default.
        max_noise: standard deviation, in [-1, 1] units, up to which noise is added to half of the student's
            crops; guidance feeds it images at t <= 100, whose noise goes up to 0.167.
        relation_weight, feature_weight: weights of the second and third term.
    """

    def __init__(
        self, train_data: FaceCrops, val_data: FaceCrops, teacher: nn.Module, teacher_train: Tensor,
        teacher_val: Tensor, loop: LoopConfig, *, student: MobileFaceNet | None = None, max_noise: float = 0.1,
        relation_weight: float = 1.0, feature_weight: float = 1.0,
    ) -> None:  # fmt: skip
        self.model = student or MobileFaceNet()
        self.train_data, self.val_data, self.loop = train_data, val_data, loop
        self.basis = _principal_directions(teacher_train, self.model.config.embedding_dim)
        self.val_targets = nn.functional.normalize(teacher_val @ self.basis)
        self.teacher_val = teacher_val
        self.max_noise = max_noise
        self.relation_weight, self.feature_weight = relation_weight, feature_weight
        self.teacher = teacher.to(memory_format=torch.channels_last)
        self.projections = self._fit_projections()
        self._ask = torch.compile(self.teacher) if loop.compile else self.teacher
        self._answer = torch.compile(self.model.embed_with_stages) if loop.compile else None

    def _fit_projections(self) -> list[tuple[int, Tensor, Tensor]]:
        """Size, weight and bias of the 1x1 convolution that brings each map to the student's width."""
        count = min(256, len(self.train_data))
        images = torch.stack([self.train_data[index]["image"] for index in range(count)])
        with torch.no_grad():
            answers = [self.teacher(to_model_range(part))[1] for part in torch.split(images, 32)]
            widths = {
                m.shape[-1]: m.shape[1] for m in self.model.embed_with_stages(to_model_range(images[:2]))[1]
            }
        maps = [torch.cat(stage) for stage in zip(*answers, strict=True)]
        return [(m.shape[-1], *_projection(m, widths[m.shape[-1]])) for m in maps]

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Yield crops."""
        loop = self.loop
        return batches(self.train_data, loop.batch_size, loop.seed, start_step, loop.num_workers)

    def loss(self, model: Callable[..., Any], batch: Batch, generator: torch.Generator) -> Tensor:
        """1 - cosine to the target, squared error of the batch's cosines, unexplained share of the maps."""
        images = augment(batch["image"], generator).contiguous(memory_format=torch.channels_last)
        embedding, stages = (self._answer or self.model.embed_with_stages)(
            add_noise(images, generator, self.max_noise)
        )
        with torch.no_grad():
            teacher, teacher_stages = self._ask(images)
            target = nn.functional.normalize(teacher.float() @ self.basis.to(teacher.device))
        direct: Tensor = 1 - (embedding * target).sum(1).mean()
        relation: Tensor = (embedding @ embedding.T - target @ target.T).square().mean()
        loss = direct + self.relation_weight * math.sqrt(len(target)) * relation
        by_size = {stage.shape[-1]: stage for stage in stages}
        for (size, weight, bias), stage in zip(self.projections, teacher_stages, strict=True):
            goal = nn.functional.conv2d(stage, weight.to(stage), bias.to(stage))
            ours = by_size[size][:, : goal.shape[1]]  # all, unless the teacher is the narrower of the two
            error = nn.functional.mse_loss(ours.float(), goal.float())
            loss = loss + self.feature_weight / len(self.projections) * error
        return loss

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


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror, move, mix, recolour, blur, compress and cover: faces and photos that the data does not hold.

    Rarely and little: the student is far from knowing the training faces by heart (measured: 160 steps with
    the strong changes that are usual gave less than the same steps with weak ones).

    Args:
        images: uint8 ``[N, 3, 112, 112]``.
        generator: source of the randomness.

    Returns:
        Changed images, float32 ``[N, 3, 112, 112]`` about [-1, 1]; not clipped.
    """
    count = len(images)

    def uniform(low: float, high: float) -> Tensor:
        draw = torch.rand(count, 1, 1, 1, generator=generator)
        return (low + (high - low) * draw).to(images.device)

    def chance(share: float) -> Tensor:
        return uniform(0, 1) < share

    images = _compress(images, generator, share=0.05)
    images = to_model_range(images)
    images = torch.where(chance(0.5), images.flip(3), images)
    images, _ = random_similarity(
        images, images.new_zeros(count, 0, 2), generator, max_shift=2, max_scale=0.03, max_degrees=3
    )
    images = torch.lerp(images, images.roll(1, 0), torch.where(chance(0.1), uniform(0, 0.5), 0.0))
    images = images * uniform(0.85, 1.15) + uniform(-0.1, 0.1)
    grey = images.mean(1, keepdim=True).expand_as(images)
    images = torch.where(chance(0.05), grey, images)
    half = nn.functional.interpolate(images, scale_factor=0.5, mode="area")
    soft = nn.functional.interpolate(half, size=images.shape[-2:], mode="bilinear", align_corners=False)
    images = torch.where(chance(0.08), soft, images)
    place = torch.arange(images.shape[-1], device=images.device)
    rows, columns = (((place - uniform(0, 112)[..., 0]).abs() < uniform(6, 24)[..., 0]) for _ in range(2))
    covered = (rows[:, :, :, None] & columns[:, :, None, :]) & chance(0.05)
    return torch.where(covered, uniform(-1, 1), images)


def add_noise(images: Tensor, generator: torch.Generator, max_noise: float) -> Tensor:
    """Add noise of a standard deviation up to ``max_noise`` to half of the images, as x_t carries it."""
    shape = (len(images), 1, 1, 1)
    strength = torch.rand(shape, generator=generator) * max_noise
    strength = strength * (torch.rand(shape, generator=generator) < 0.5)
    noise = torch.randn(images.shape, generator=generator).to(images)
    return images + strength.to(images) * noise


def _compress(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Save and open a share of the uint8 images as JPEG of quality 30 to 95."""
    images = images.clone()
    for index in range(len(images)):
        draw, quality = torch.rand(2, generator=generator).tolist()
        if draw < share:
            file = BytesIO()
            picture = Image.fromarray(images[index].permute(1, 2, 0).cpu().numpy())
            picture.save(file, format="JPEG", quality=30 + int(65 * quality))
            images[index] = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).to(images.device)
    return images


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


def _projection(maps: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Weight ``[width, C, 1, 1]`` and bias that give the leading principal components, at a mean variance of 1."""
    values = maps.float().transpose(0, 1).flatten(1)
    mean = values.mean(1)
    vectors = torch.linalg.eigh(torch.cov(values.double()))[1].flip(1)[:, :width].float()
    scale = (vectors.T @ (values - mean[:, None])).std()
    weight = vectors.T / scale
    return weight[:, :, None, None], -weight @ mean


def embed(model: nn.Module, data: FaceCrops, count: int, batch_size: int = 64) -> Tensor:
    """Embed the first ``count`` crops; unit vectors ``[count, D]``."""
    device = next(model.parameters()).device
    rows = []
    with torch.no_grad():
        for start in range(0, count, batch_size):
            items = [data[index]["image"] for index in range(start, min(start + batch_size, count))]
            rows.append(model(to_model_range(torch.stack(items)).to(device)).cpu())
    return torch.cat(rows)
