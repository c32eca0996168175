"""Distil the face encoder (MobileFaceNet) from a teacher's embeddings; no identity labels needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_dedim.models.mobilefacenet import MobileFaceNet
from diffusers_dedim.training.augment import add_noise, augment, fill_unknown
from diffusers_dedim.training.checkpoint import check_run
from diffusers_dedim.training.config import EncoderConfig
from diffusers_dedim.training.data import FaceCrops, check_batch_size
from diffusers_dedim.training.loop import Batch, FaceTask
from diffusers_dedim.training.teacher import (
    Targets,
    Teacher,
    agreement,
    check_width,
    embed,
    fit_targets,
    teacher_embeddings,
    teacher_fingerprint,
)


class EncoderTask(FaceTask[FaceCrops]):
    """Let the student answer as the teacher does to the same augmented crops (function matching, Beyer et al. 2022).

    The teacher's embedding is reduced to the student's dimension by PCA: the leading directions keep the
    cosines almost unchanged, so a student of 128 dimensions can follow a teacher of 512. Beside the
    embedding, its cosines within the batch are matched, which is what recognition compares, and the feature
    maps (FitNets, Romero et al. 2015), which say at every place of the face what to look for.

    Args:
        train_data, val_data: see `FaceCrops`.
        teacher: gives embedding and feature maps (`Teacher`).
        teacher_train, teacher_val: its unit embeddings ``[N, D]`` of the plain crops (`teacher_embeddings`).
        config: the settings. ``max_noise`` is the standard deviation, in [-1, 1] units, up to which noise is
            added to half of the student's crops; the paper's guidance feeds it images at t <= 100, whose noise
            goes up to 0.167. ``relation_weight`` and ``feature_weight`` are the weights of the second and third term.
        student: network to train, a new one by default. Where ``config.initial_weights`` says that it was trained
            before, the directions of PCA are turned to those that it answers in (`fit_targets`).
        targets: those that the training began with, where it is gone on with; fitted by default.

    Raises:
        ValueError: the student's embedding is wider than the teacher's, or the batch larger than the data.
    """

    model: MobileFaceNet

    def __init__(
        self,
        train_data: FaceCrops,
        val_data: FaceCrops,
        teacher: Teacher,
        teacher_train: Tensor,
        teacher_val: Tensor,
        config: EncoderConfig,
        *,
        student: MobileFaceNet | None = None,
        targets: Targets | None = None,
    ) -> None:
        self.model = student or MobileFaceNet()
        super().__init__(train_data, val_data, config)
        self.config = config
        self.teacher_val = teacher_val
        self.teacher: Teacher = teacher.to(memory_format=torch.channels_last)
        self.targets: Targets = targets or fit_targets(
            teacher, self.model, train_data, teacher_train, trained=config.initial_weights is not None
        )
        self.val_targets: Tensor = nn.functional.normalize(teacher_val @ self.targets.basis)
        pieces = self.teacher.batch is not None  # a loop, which compiling would write out piece by piece
        self._ask = torch.compile(self.teacher) if config.compile and not pieces else self.teacher
        self._answer = torch.compile(self.model.embed_with_stages) if config.compile else None

    def identity(self) -> dict[str, Any]:
        """Fingerprints of the training faces and the teacher; the validation faces are looked through too."""
        return {**super().identity(), "teacher": self.teacher.fingerprint}

    def loss(self, model: Callable[..., Any], batch: Batch, generator: torch.Generator) -> Tensor:
        """1 - cosine to the target, squared error of the batch's cosines, unexplained share of the maps."""
        images = fill_unknown(batch["image"], batch["known"], generator)
        images = augment(images, generator).contiguous(memory_format=torch.channels_last)
        embedding, stages = (self._answer or self.model.embed_with_stages)(
            add_noise(images, generator, self.config.max_noise)
        )
        self.teacher.to(images.device)  # the loop moves the student only
        with torch.no_grad():
            teacher, teacher_stages = self._ask(images)
            target = nn.functional.normalize(teacher.float() @ self.targets.basis.to(teacher.device))
        direct: Tensor = 1 - (embedding * target).sum(1).mean()
        relation: Tensor = (embedding @ embedding.T - target @ target.T).square().mean()
        loss = direct + self.config.relation_weight * math.sqrt(len(target)) * relation
        by_size = {stage.shape[-1]: stage for stage in stages}
        for (size, weight, bias), stage in zip(self.targets.projections, teacher_stages, strict=True):
            goal = nn.functional.conv2d(stage, weight.to(stage), bias.to(stage))
            ours = by_size[size][:, : goal.shape[1]]  # all, unless the teacher is the narrower of the two
            error = nn.functional.mse_loss(ours.float(), goal.float())
            loss = loss + self.config.feature_weight / len(self.targets.projections) * error
        return loss

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Compare with the teacher on validation faces: cosine to the target, correlation of the cosines."""
        count = min(512, len(self.val_data))
        student = embed(model, self.val_data, count)
        return agreement(student, self.val_targets[:count], self.teacher_val[:count])


def make_encoder_task(
    train_data: FaceCrops, val_data: FaceCrops, config: EncoderConfig, student: MobileFaceNet, *, resume: bool
) -> EncoderTask:
    """Let the teacher embed all crops, or read what it said, and set the distillation up.

    Embedding takes minutes: what would bar the training afterwards is refused before it. The targets are kept in
    ``teacher-targets.npz`` in the output folder, and a training that is gone on with takes them from there.

    Raises:
        ValueError: the checkpoint in the output folder cannot be gone on from, the teacher not be used, or the
            data not be trained on.
    """
    path, output = str(config.teacher), Path(config.output_dir)
    identity = {"data": train_data.fingerprint, "teacher": teacher_fingerprint(path)}
    check_run(config, EncoderTask.__name__, student, identity, resume=resume)
    _ = val_data.fingerprint
    check_batch_size(config.batch_size, len(train_data))
    teacher = Teacher(path)
    check_width(student.config.embedding_dim, teacher.embedding_dim)
    train_plain = teacher_embeddings(path, train_data, output / "teacher-train.npz")
    val_plain = teacher_embeddings(path, val_data, output / "teacher-val.npz")
    kept, goes_on = output / "teacher-targets.npz", (output / "checkpoint").is_dir()
    if goes_on and kept.is_file():
        targets = Targets.load(kept)
    else:  # a checkpoint without the file is of an earlier version, which turned nothing
        trained = config.initial_weights is not None and not goes_on
        targets = fit_targets(teacher, student, train_data, train_plain, trained=trained)
        targets.save(kept)
    return EncoderTask(
        train_data, val_data, teacher, train_plain, val_plain, config, student=student, targets=targets
    )
