"""The recogniser of an attacker who learned to see through the protection; see `adaptive`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

_HEAD_WIDTH = 4  # hidden units of the head for each number of the embedding


class AdaptedEncoder(nn.Module):
    """A recogniser and a head over its embeddings: crops ``[N, 3, 112, 112]`` -> unit embeddings ``[N, D]``.

    Args:
        encoder: fine-tuned or left as it was.
        head: embeddings ``[N, D]`` -> ``[N, D]``, any length; ``nn.Identity()`` for none.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

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
        self.linear = nn.Linear(dim, dim)
        self.hidden = nn.Linear(dim, _HEAD_WIDTH * dim)
        self.output = nn.Linear(_HEAD_WIDTH * dim, dim)
        for layer in (self.linear, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Correct embeddings ``[N, D]``; the result has any length."""
        correction: Tensor = self.linear(embeddings) + self.output(functional.gelu(self.hidden(embeddings)))
        return embeddings + correction
