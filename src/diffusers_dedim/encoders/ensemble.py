"""Several recognisers as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class EncoderEnsemble(nn.Module):
    """Guide and judge by several recognisers at once.

    Each keeps its own embedding. `EstimateGuidance` adds up their hinges: a recogniser that a face has left behind
    pushes no further, the others do. A face counts as done, and is reported, by the recogniser that still
    matches it best. `IdentityGuidance` adds up their gradients, as for recognisers that err independently.

    It is saved with no pipeline; save its members.

    Args:
        encoders: modules from crops ``[N, 3, 112, 112]`` to unit embeddings ``[N, D]``; each may have its own D.

    Raises:
        ValueError: there is no encoder.

    Example:
        >>> from diffusers_dedim import MobileFaceNet
        >>> both = EncoderEnsemble([MobileFaceNet(), MobileFaceNet(64)]).eval()
        >>> both(torch.zeros(3, 3, 112, 112)).shape
        torch.Size([3, 2, 128])
    """

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        super().__init__()
        if not encoders:
            raise ValueError("encoders: expected at least one encoder, got none.")
        self.encoders = nn.ModuleList(encoders)

    def forward(self, crops: Tensor) -> Tensor:
        """Embed aligned crops by each of K recognisers.

        Args:
            crops: ``[N, 3, 112, 112]`` RGB in [-1, 1], aligned to the ArcFace template.

        Returns:
            Unit vectors ``[N, K, D]``; shorter embeddings end in zeros, which no cosine sees.

        Raises:
            ValueError: a member answers in another shape.
        """
        embeddings: list[Tensor] = []
        for encoder in self.encoders:
            embedding = encoder(crops)
            if embedding.ndim != 2 or len(embedding) != len(crops):
                raise ValueError(
                    f"encoders: expected embeddings [{len(crops)}, D] of {type(encoder).__name__}, got "
                    f"{list(embedding.shape)}."
                )
            embeddings.append(embedding)
        longest = max(embedding.shape[1] for embedding in embeddings)
        return torch.stack([nn.functional.pad(e, (0, longest - e.shape[1])) for e in embeddings], dim=1)
