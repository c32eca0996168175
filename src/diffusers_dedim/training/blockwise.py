"""Distil a MobileFaceNet block by block from a recogniser of the same plan, then all blocks together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from diffusers_dedim.models.mobilefacenet import MobileFaceNet
from diffusers_dedim.training.augment import change_mildly, fill_unknown
from diffusers_dedim.training.config import EncoderConfig
from diffusers_dedim.training.data import FaceCrops, to_model_range
from diffusers_dedim.training.loop import Batch, FaceTask, cosine_decay
from diffusers_dedim.training.plan import BlockTeacher
from diffusers_dedim.training.teacher import agreement, embed

_VAL_FACES = 512
_MAP_WEIGHT, _COSINE_WEIGHT = 0.25, 5.0  # of each map's error and of 1 - cosine, when all learn together
_JOINT_RATE = 0.4  # of the peak learning rate, for all together
_BLOCKS_LAST = 0.2  # what the rate of the blocks falls to: they are trained on afterwards
_WARMUP = 0.02  # share of the second part over which its rate rises


def block_errors(student: MobileFaceNet, images: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """What each part leaves unexplained when it is fed what the teacher's part is fed.

    Args:
        student: the network.
        images: ``[N, 3, 112, 112]`` in [-1, 1].
        maps: the teacher's: after the stem, after each bottleneck, and the head's last one ``[N, D, 1, 1]``.

    Returns:
        Squared errors over the variance of what the part adds, ``[2 + bottlenecks]``: stem, bottlenecks, head.
    """
    *inputs, head = maps
    errors = [_error(student.stem(images), inputs[0])]
    for block, before, after in zip(student.bottlenecks, inputs, inputs[1:], strict=False):
        added = after.float() - before.float() if block.is_residual else after
        errors.append(_error(block(before), after, added))
    errors.append(_error(student.head(inputs[-1]), head))
    return torch.stack(errors)


def joint_errors(student: MobileFaceNet, images: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """What each part leaves unexplained when it is fed by the student's own parts.

    Args:
        student, images, maps: as for `block_errors`.

    Returns:
        Squared errors of the maps after stem and bottlenecks over their variance, then 1 - cosine of the embeddings.
    """
    *goals, head = maps
    features = student.stem(images)
    errors = [_error(features, goals[0])]
    for block, goal in zip(student.bottlenecks, goals[1:], strict=True):
        features = block(features)
        errors.append(_error(features, goal))
    ours, theirs = student.head(features).flatten(1).float(), head.flatten(1).float()
    errors.append(1 - nn.functional.cosine_similarity(ours, theirs).mean())
    return torch.stack(errors)


def _error(ours: Tensor, goal: Tensor, scale: Tensor | None = None) -> Tensor:
    """Mean squared error over the variance of ``scale``, the goal itself by default."""
    spread = (goal if scale is None else scale).float().var()
    return nn.functional.mse_loss(ours.float(), goal.float()) / spread.clamp_min(1e-12)


class BlockwiseTask(FaceTask[FaceCrops]):
    """Let each block do what the teacher's block does, first to the teacher's input of it, then to the student's.

    Block by block a deep network is as many shallow ones, each of which sees thousands of places a face: what is
    learnt comes fast and does not hang on how many people the data holds. The second part, all together, takes
    away the errors that add up from block to block, and is what the embedding is made of in the end: the sum of the
    maps' errors over four plus five times 1 - cosine.

    The changes to the crops lessen towards the end (``config.final_augmentation``), which brings the gradients
    nearer to those of other recognisers.

    Args:
        train_data, val_data: see `FaceCrops`.
        teacher: gives the maps of its blocks.
        config: the settings; ``blocks_share`` of the budget is spent on the first part.
        student: network to train; a new one of the teacher's plan by default.

    Raises:
        ValueError: the student's plan is not the teacher's, or the batch is larger than the data.
    """

    model: MobileFaceNet

    def __init__(
        self,
        train_data: FaceCrops,
        val_data: FaceCrops,
        teacher: BlockTeacher,
        config: EncoderConfig,
        *,
        student: MobileFaceNet | None = None,
    ) -> None:
        self.model = student or MobileFaceNet(**teacher.settings)
        found = {name: self.model.config[name] for name in teacher.settings}
        if found != teacher.settings:
            raise ValueError(
                f"initial_weights: the network has {_words(found)}, expected {_words(teacher.settings)} as the "
                "teacher; leave --initial-weights out, or take a network that was trained from this teacher."
            )
        super().__init__(train_data, val_data, config)
        self.config: EncoderConfig = config
        self.teacher: BlockTeacher = teacher.to(memory_format=torch.channels_last)
        self._share = 0.0
        self._ask: Callable[..., Any] = self.teacher
        self._embed: Callable[[Tensor], Tensor] = self.model
        self._errors: dict[str, Callable[..., Tensor]] = {"blocks": block_errors, "joint": joint_errors}
        if config.compile:
            self._errors = {name: torch.compile(errors) for name, errors in self._errors.items()}
            self._embed = torch.compile(self.model)
            if self.teacher.batch is None:  # else a loop, which compiling would write out piece by piece
                self._ask = torch.compile(self.teacher)

    def identity(self) -> dict[str, Any]:
        """Fingerprints of the training faces and the teacher; the validation faces are looked through too."""
        return {**super().identity(), "teacher": self.teacher.fingerprint}

    def begin_step(self, share: float) -> float:
        """Follow one cosine for the blocks, and a lower one, after a second warm-up, for all together."""
        self._share, blocks = share, self.config.blocks_share
        if share < blocks:
            return cosine_decay(share / blocks, _BLOCKS_LAST)
        done = (share - blocks) / (1 - blocks) if blocks < 1 else 1.0
        rise = min(1.0, 0.1 + done / _WARMUP) if blocks > 0 else 1.0
        return _JOINT_RATE * rise * cosine_decay(done)

    def loss(self, model: Callable[..., Any], batch: Batch, generator: torch.Generator) -> Tensor:
        """Sum of the blocks' errors; in the second part with the weights that the class describes."""
        strength = 1 - (1 - self.config.final_augmentation) * self._share
        images = fill_unknown(batch["image"], batch["known"], generator, share=0.8 * strength)
        images = change_mildly(images, generator, strength=strength, max_noise=self.config.max_noise)
        images = images.contiguous(memory_format=torch.channels_last)
        self.teacher.to(images.device)  # the loop moves the student only
        with torch.no_grad():
            _, maps = self._ask(images)
        if self._share < self.config.blocks_share:
            return self._errors["blocks"](self.model, images, maps).sum()
        if self.config.adversarial_radius > 0 and torch.is_grad_enabled():  # else the batch norms are settled
            images = self._against(images, maps[-1], generator)
        errors = self._errors["joint"](self.model, images, maps)
        return _MAP_WEIGHT * errors[:-1].sum() + _COSINE_WEIGHT * errors[-1]

    def _against(self, images: Tensor, goal: Tensor, generator: torch.Generator) -> Tensor:
        """Move each crop by ``adversarial_radius`` to where the student's embedding is furthest from the goal's.

        One step along the gradient from a random start within the radius (arXiv 2001.03994, in L2). A network that
        holds on to the teacher's answer there has smoother gradients, which more recognisers share (arXiv 2106.02105).
        """
        radius = self.config.adversarial_radius
        start = torch.randn(images.shape, generator=generator).to(images)
        moved = (images + _of_norm(start, radius / 2)).requires_grad_()
        ours = self._embed(moved)
        theirs = goal.flatten(1).float()
        similarity = nn.functional.cosine_similarity(ours.flatten(1).float(), theirs).sum()
        (gradient,) = torch.autograd.grad(similarity, moved)
        change = _of_norm(moved.detach() - images - _of_norm(gradient, radius), radius)
        return (images + change).contiguous(memory_format=torch.channels_last)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Compare with the teacher on validation faces: cosine, and correlation of the faces' cosines."""
        teacher = self._teacher_answers
        return agreement(embed(model, self.val_data, len(teacher)), teacher, teacher)

    @cached_property
    def _teacher_answers(self) -> Tensor:
        """The teacher's unit embeddings of the first validation faces."""
        images = [self.val_data[index]["image"] for index in range(min(_VAL_FACES, len(self.val_data)))]
        device = next(self.model.parameters()).device
        self.teacher.to(device)
        with torch.no_grad():
            pieces = [
                self.teacher(to_model_range(piece).to(device))[0]
                for piece in torch.split(torch.stack(images), 32)
            ]
        return torch.cat(pieces).cpu()


def _of_norm(x: Tensor, norm: float) -> Tensor:
    """Each of the batch scaled to this L2 norm."""
    scaled: Tensor = norm * nn.functional.normalize(x.float().flatten(1)).reshape(x.shape)
    return scaled.to(x.dtype)


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())
