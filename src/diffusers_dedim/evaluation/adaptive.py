"""An attacker who knows the method: teach a recogniser, on other people, to see through the protection.

The attacker protects photos of people who are at hand, and fits a recogniser so that a protected face lies where
its original does. Then the victims' protected photos are searched with it. Nothing of a victim is needed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from diffusers_dedim.encoders.types import PhotoEncoder
from diffusers_dedim.errors import DeDiMError
from diffusers_dedim.evaluation.results import AdaptiveEntry
from diffusers_dedim.metrics.intervals import Estimate
from diffusers_dedim.models.blocks import check_crops
from diffusers_dedim.training.augment import random_similarity
from diffusers_dedim.training.data import ResumableBatches

_HEAD_WIDTH = 4  # hidden units of the head for each number of the embedding

_TEMPERATURE = 0.1  # of the softmax over the batch: cosines 0.1 apart differ by a factor e
_EMBED_BATCH = 64
_WEIGHT_DECAY = 1e-4

Views = Callable[[Tensor, torch.Generator], Tensor]


class AdaptedEncoder(nn.Module):
    """A recogniser and a head over its embeddings: crops ``[N, 3, 112, 112]`` -> unit embeddings ``[N, D]``.

    Args:
        encoder: fine-tuned or left as it was.
        head: embeddings ``[N, D]`` -> ``[N, D]``, any length; ``nn.Identity()`` for none.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder: nn.Module = encoder
        self.head: nn.Module = head

    def forward(self, crops: Tensor) -> Tensor:
        """Embed aligned crops."""
        return functional.normalize(self.head(self.encoder(crops)))


class CorrectionHead(nn.Module):
    """Add to an embedding a linear and a nonlinear function of it; untrained it changes nothing.

    Args:
        dim: length D of the embedding.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear: nn.Linear = nn.Linear(dim, dim)
        self.hidden: nn.Linear = nn.Linear(dim, _HEAD_WIDTH * dim)
        self.output: nn.Linear = nn.Linear(_HEAD_WIDTH * dim, dim)
        for layer in (self.linear, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Correct embeddings ``[N, D]``; the result has any length."""
        correction: Tensor = self.linear(embeddings) + self.output(functional.gelu(self.hidden(embeddings)))
        return embeddings + correction


def read_adaptive(path: Path) -> tuple[AdaptiveEntry, ...]:
    """The table in a JSON object of `python -m benchmarks.adaptive`.

    Args:
        path: the file that its ``--json`` wrote.

    Raises:
        DeDiMError: there is no such file, or it holds something else.
    """
    try:
        return read_rows(json.loads(path.read_text())["rows"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeDiMError(
            f"adaptive: {path} is no result of python -m benchmarks.adaptive ({type(error).__name__}: {error}); give "
            "the file of its --json."
        ) from error


def read_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[AdaptiveEntry, ...]:
    """Rows of that object, as the evaluation holds them; those without an attack have no held-out people."""

    def estimate(found: Mapping[str, float | None]) -> Estimate:
        return Estimate(found["mean"], found["low"], found["high"])

    return tuple(
        AdaptiveEntry(
            str(row["method"]),
            str(row["attacker"]),
            str(row["recogniser"]),
            str(row["attack"]),
            estimate(row["rank1"]),
            estimate(row["rank1_original"]),
            row.get("held_out", {}).get("relinked_plain"),
            row.get("held_out", {}).get("relinked_adapted"),
        )
        for row in rows
    )


def fit_adaptive_encoder(
    encoder: nn.Module,
    originals: Tensor,
    protected: Tensor,
    *,
    steps: int = 300,
    learning_rate: float = 3e-4,
    seed: int = 0,
    batch_size: int = 16,
    mates: Mapping[int, Tensor] | None = None,
    keep_weight: float = 1.0,
    contrast_weight: float = 1.0,
) -> AdaptedEncoder:
    """Fine-tune every weight of a copy of the encoder.

    Per face the loss is 1 - cosine of the protected crop's new embedding to the original's by the unmodified
    encoder; the same to another photo's where there is one; the same for the original crop, times
    ``keep_weight``, so that the gallery may be embedded with the new encoder too; and, times
    ``contrast_weight``, the cross-entropy of picking the own original out of the batch's. Crops are mirrored,
    moved and brightened a little. Normalisation layers keep their statistics: batches that are half protected
    would move them away from clean photos.

    Args:
        encoder: crops -> unit embeddings, with gradients; not changed. For an ONNX file
            ``OnnxEncoder(path, differentiable=True)``.
        originals: ``[N, 3, 112, 112]`` in [-1, 1], one photo of each of N people.
        protected: the same photos, protected, in the same order.
        steps: optimiser steps (AdamW, the rate falling along a cosine to 0).
        learning_rate: of the first step.
        seed: of order and augmentation.
        batch_size: people a step; N where there are fewer.
        mates: row of ``originals`` -> ``[3, 112, 112]``, another photo of that person.
        keep_weight: how much clean photos must stay where they are.
        contrast_weight: how much embeddings of different people must stay apart.

    Returns:
        The adapted recogniser, frozen, on the encoder's device.

    Raises:
        ValueError: shapes disagree, a number is out of range, or the encoder has nothing to train.

    Example:
        >>> adapted = fit_adaptive_encoder(pipe.face_encoder, originals, protected, steps=300)  # doctest: +SKIP
        >>> Recogniser.of("adapted", adapted)  # doctest: +SKIP
    """
    _check(originals, protected, mates, steps, learning_rate, batch_size)
    pupil = copy.deepcopy(encoder).requires_grad_(True).eval()
    if next(pupil.parameters(), None) is None:
        raise ValueError(
            f"encoder: expected a module with weights to train, got {type(encoder).__name__} without; load an "
            "ONNX file with OnnxEncoder(path, differentiable=True), or use fit_adaptive_head."
        )
    targets, others = _embed(encoder, originals), _embed_mates(encoder, mates)
    lesson = _Lesson(protected.cpu(), originals.cpu(), targets, others)
    _train(
        pupil,
        lesson,
        _vary,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        batch_size=batch_size,
        keep_weight=keep_weight,
        contrast_weight=contrast_weight,
    )
    return AdaptedEncoder(pupil, nn.Identity()).eval().requires_grad_(False)


def fit_adaptive_head(
    encoder: nn.Module,
    originals: Tensor,
    protected: Tensor,
    *,
    steps: int = 2000,
    learning_rate: float = 1e-3,
    seed: int = 0,
    batch_size: int = 64,
    mates: Mapping[int, Tensor] | None = None,
    keep_weight: float = 1.0,
    contrast_weight: float = 1.0,
) -> AdaptedEncoder:
    """Fit a `CorrectionHead` over the frozen encoder, with the loss of `fit_adaptive_encoder`.

    Any recogniser will do, also one that gives no gradient: every crop is embedded once (and once mirrored),
    then a step takes milliseconds. It can only undo what the embedding still tells of the original.

    Args:
        encoder: crops -> unit embeddings; not changed and part of the result.
        originals: ``[N, 3, 112, 112]`` in [-1, 1], one photo of each of N people.
        protected: the same photos, protected, in the same order.
        steps: optimiser steps (AdamW, the rate falling along a cosine to 0).
        learning_rate: of the first step.
        seed: of the first weights, the order and the choice between a crop and its mirror image.
        batch_size: people a step; N where there are fewer.
        mates: row of ``originals`` -> ``[3, 112, 112]``, another photo of that person.
        keep_weight: how much clean photos must stay where they are.
        contrast_weight: how much embeddings of different people must stay apart.

    Returns:
        The encoder with its head; the head is frozen.

    Raises:
        ValueError: shapes disagree, a number is out of range, or the encoder frames faces in whole photos.

    Example:
        >>> adapted = fit_adaptive_head(OnnxEncoder("r.onnx"), originals, protected)  # doctest: +SKIP
    """
    _check(originals, protected, mates, steps, learning_rate, batch_size)
    if isinstance(encoder, PhotoEncoder):
        raise ValueError(
            f"encoder: expected one of aligned crops, got {type(encoder).__name__}, which frames the face in the "
            "photo by itself; a head fitted to its crops would not fit its photos."
        )
    targets = _embed(encoder, originals)
    both = (
        torch.stack([_embed(encoder, protected), _embed(encoder, protected.flip(3))], dim=1),
        torch.stack([targets, _embed(encoder, originals.flip(3))], dim=1),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = CorrectionHead(targets.shape[1])
    _train(
        head,
        _Lesson(*both, targets, _embed_mates(encoder, mates)),
        _one_of_two,
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        batch_size=batch_size,
        keep_weight=keep_weight,
        contrast_weight=contrast_weight,
    )
    # no .eval() and no freezing over all: the encoder stays the caller's
    return AdaptedEncoder(encoder, head.to(_device_of(encoder)).requires_grad_(False))


@dataclass(frozen=True)
class _Lesson:
    """What is to be learned.

    Attributes:
        protected, originals: inputs of the module that learns, row by row of one face; both on the CPU.
        targets: ``[N, D]`` embeddings of the originals by the unmodified encoder.
        mates: row -> embedding ``[D]`` of another photo of that person.
    """

    protected: Tensor
    originals: Tensor
    targets: Tensor
    mates: dict[int, Tensor]


@torch.inference_mode(False)
@torch.enable_grad()
def _train(
    pupil: nn.Module,
    lesson: _Lesson,
    views: Views,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    batch_size: int,
    keep_weight: float,
    contrast_weight: float,
) -> None:
    """Fit ``pupil`` in place; what it sees and in which order depends on the seed alone."""
    device = next(pupil.parameters()).device
    optimizer = torch.optim.AdamW(pupil.parameters(), lr=learning_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    count = len(lesson.targets)
    bar = tqdm(
        islice(ResumableBatches(count, min(batch_size, count), seed), steps),
        total=steps,
        desc="adapt",
        leave=False,
        mininterval=1,
    )
    for rows in bar:
        # the same views for both, or augmentation would be one more difference to undo
        state = generator.get_state()
        changed = functional.normalize(pupil(views(lesson.protected[rows], generator).to(device)))
        generator.set_state(state)
        clean = functional.normalize(pupil(views(lesson.originals[rows], generator).to(device)))
        targets = lesson.targets[rows].to(device)
        loss = _distance(changed, targets) + keep_weight * _distance(clean, targets)
        loss = loss + contrast_weight * _confusion(changed, targets)
        known = [place for place, row in enumerate(rows) if row in lesson.mates]
        if known:
            others = torch.stack([lesson.mates[rows[place]] for place in known]).to(device)
            loss = loss + _distance(changed[known], others)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{float(loss.detach()):.3f}", refresh=False)


def _distance(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Mean of 1 - cosine."""
    return 1 - (embeddings * targets).sum(1).mean()


def _confusion(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of finding each row's own target among the batch's."""
    own = torch.arange(len(targets), device=targets.device)
    return functional.cross_entropy(embeddings @ targets.T / _TEMPERATURE, own)


def _vary(crops: Tensor, generator: torch.Generator) -> Tensor:
    """Other views of the same faces; the encoder's own training also mixes and covers faces, which hides them."""
    count = len(crops)
    crops = torch.where(torch.rand(count, 1, 1, 1, generator=generator) < 0.5, crops.flip(3), crops)
    no_points = crops.new_zeros(count, 0, 2)
    crops, _ = random_similarity(crops, no_points, generator, max_shift=2, max_scale=0.03, max_degrees=3)
    return crops * (0.85 + 0.3 * torch.rand(count, 1, 1, 1, generator=generator))


def _one_of_two(pairs: Tensor, generator: torch.Generator) -> Tensor:
    """Choose between a crop's embedding and its mirror image's: ``[n, 2, D]`` -> ``[n, D]``."""
    return pairs[torch.arange(len(pairs)), torch.randint(2, (len(pairs),), generator=generator)]


def _device_of(encoder: nn.Module) -> torch.device:
    return next((value.device for value in encoder.parameters()), torch.device("cpu"))


@torch.no_grad()
def _embed(encoder: nn.Module, crops: Tensor) -> Tensor:
    device = _device_of(encoder)
    return torch.cat([encoder(piece.to(device)).float().cpu() for piece in torch.split(crops, _EMBED_BATCH)])


def _embed_mates(encoder: nn.Module, mates: Mapping[int, Tensor] | None) -> dict[int, Tensor]:
    if not mates:
        return {}
    return dict(zip(mates, _embed(encoder, torch.stack(list(mates.values()))), strict=True))


def _check(
    originals: Tensor,
    protected: Tensor,
    mates: Mapping[int, Tensor] | None,
    steps: int,
    learning_rate: float,
    batch_size: int,
) -> None:
    check_crops(originals)
    if protected.shape != originals.shape:
        raise ValueError(
            f"protected: expected the shape of originals {list(originals.shape)}, one protected crop for each, "
            f"got {list(protected.shape)}."
        )
    if len(originals) < 2:
        raise ValueError(f"originals: expected at least 2 people to tell apart, got {len(originals)}.")
    wrong = [row for row in mates or {} if not 0 <= row < len(originals)]
    if wrong:
        raise ValueError(f"mates: expected rows 0..{len(originals) - 1} of originals, got {wrong[:5]}.")
    if steps < 1 or batch_size < 2:
        raise ValueError(
            f"steps, batch_size: expected at least 1 step of 2 people, got {steps} and {batch_size}."
        )
    if not learning_rate > 0:
        raise ValueError(f"learning_rate: expected a number above 0, got {learning_rate}.")
