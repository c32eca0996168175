"""Train the face encoder on labelled faces with ArcFace (Deng et al. 2019).

pytorch-metric-learning has this loss too, but brings scikit-learn and scipy for one formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusers_dedim.metrics.verification import tar_at_fmr
from diffusers_dedim.models.mobilefacenet import MobileFaceNet
from diffusers_dedim.training.augment import add_noise, augment
from diffusers_dedim.training.config import EncoderConfig
from diffusers_dedim.training.data import FaceCrops
from diffusers_dedim.training.loop import Batch, FaceTask
from diffusers_dedim.training.teacher import embed

_VAL_FACES = 1024


def arcface_logits(
    embeddings: Tensor, centres: Tensor, labels: Tensor, *, margin: float = 0.5, scale: float = 64.0
) -> Tensor:
    """Logits whose cross entropy is the ArcFace loss: equation 3 of Deng et al. 2019.

    The angle between an embedding and the centre of its own identity counts as ``margin`` larger. Where that
    would pass 180 degrees, and the cosine rise again, ``cos - margin * sin(margin)`` goes on falling, as in the
    authors' code.

    Args:
        embeddings: ``[N, D]``, of any length.
        centres: ``[C, D]``, one row per identity, of any length.
        labels: int64 ``[N]`` in 0..C-1.
        margin: radians, in [0, pi).
        scale: factor of all cosines.

    Returns:
        ``[N, C]`` in float32, or float64 where the embeddings are.

    Example:
        >>> import torch
        >>> arcface_logits(torch.eye(2), torch.eye(2), torch.arange(2), margin=0.5, scale=1.0).round(decimals=3)
        tensor([[0.8780, 0.0000],
                [0.0000, 0.8780]])
    """
    dtype = torch.promote_types(embeddings.dtype, torch.float32)  # bfloat16 has no digits for cosines near 1
    unit, centres = nn.functional.normalize(embeddings.to(dtype)), nn.functional.normalize(centres.to(dtype))
    cosines = unit @ centres.T
    own = cosines.gather(1, labels[:, None])
    sine = (1 - own.square()).clamp(min=1e-12).sqrt()  # the square root has no finite slope at 0
    moved = own * math.cos(margin) - sine * math.sin(margin)
    moved = torch.where(own > -math.cos(margin), moved, own - margin * math.sin(margin))
    return scale * cosines.scatter(1, labels[:, None], moved)


class ArcFaceNet(nn.Module):
    """An encoder and the centres of the identities that it learns to tell apart; the encoder alone is saved."""

    def __init__(self, encoder: MobileFaceNet, identities: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.centres: nn.Parameter = nn.Parameter(
            0.01 * torch.randn(identities, encoder.config.embedding_dim)
        )

    @property
    def config(self) -> dict[str, Any]:
        """What a resumed training compares: the encoder's settings and the number of identities."""
        return {**self.encoder.config, "identities": len(self.centres)}

    def forward(self, crops: Tensor) -> Tensor:
        """Embed ``[N, 3, 112, 112]`` as the encoder does."""
        embedding: Tensor = self.encoder(crops)
        return embedding

    def save_pretrained(self, folder: str, **options: Any) -> None:
        """Save the encoder."""
        self.encoder.save_pretrained(folder, **options)


class ArcFaceTask(FaceTask[FaceCrops]):
    """Tell the identities of the training faces apart by a margin of the angle.

    Args:
        train_data, val_data: labelled crops, see `FaceCrops`; the identities of the two need not be the same.
        config: the settings.
        student: network to train, a new one by default.
    """

    model: ArcFaceNet

    def __init__(
        self,
        train_data: FaceCrops,
        val_data: FaceCrops,
        config: EncoderConfig,
        *,
        student: MobileFaceNet | None = None,
    ) -> None:
        self.model = ArcFaceNet(student or MobileFaceNet(), int(train_data.labels.max()) + 1)
        super().__init__(train_data, val_data, config)
        self.config = config

    def loss(self, model: Callable[..., Any], batch: Batch, generator: torch.Generator) -> Tensor:
        """Cross entropy of the ArcFace logits."""
        images = augment(batch["image"], generator, mix_share=0.0)  # a mixture of two people has no one label
        images = add_noise(images, generator, self.config.max_noise).contiguous(
            memory_format=torch.channels_last
        )
        embeddings = model(images)
        with torch.autocast(images.device.type, enabled=False):
            logits = arcface_logits(
                embeddings,
                self.model.centres,
                batch["label"],
                margin=self.config.margin,
                scale=self.config.scale,
            )
            return nn.functional.cross_entropy(logits, batch["label"])

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Compare validation faces with each other: mean similarities, and TAR where the impostors allow it."""
        count = min(_VAL_FACES, len(self.val_data))
        embeddings = embed(model, self.val_data, count).numpy()
        rows, columns = np.triu_indices(count, 1)
        scores = (embeddings @ embeddings.T)[rows, columns]
        same = self.val_data.labels[rows] == self.val_data.labels[columns]
        groups = {"impostor_similarity": scores[~same], "genuine_similarity": scores[same]}
        figures = {name: float(group.mean()) for name, group in groups.items() if len(group)}
        if same.any() and (~same).sum() >= 1000:
            figures["tar_at_fmr_1e3"] = tar_at_fmr(scores[same], scores[~same], 1e-3)
        return figures
