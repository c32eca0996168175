"""Random generators: one for each face, so that a face's result does not depend on its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def photo_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> list[torch.Generator | None]:
    """One generator a photo; a single one serves all photos in turn.

    Raises:
        ValueError: the list has another length than there are photos.
        TypeError: it is neither a generator nor a list of them.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * count
    if not isinstance(generator, Sequence) or not all(isinstance(g, torch.Generator) for g in generator):
        raise TypeError(
            f"generator: expected a torch.Generator or a list of them, got {type(generator).__name__}; for a "
            "seed write torch.Generator().manual_seed(seed)."
        )
    if len(generator) != count:
        raise ValueError(f"generator: expected one, or {count} (one a photo), got {len(generator)}.")
    return list(generator)


def child_generator(parent: torch.Generator | None) -> torch.Generator:
    """Seed a CPU generator from ``parent`` (from torch's global one if None)."""
    device = parent.device if parent is not None else "cpu"
    seed = torch.randint(2**62, (1,), generator=parent, device=device).item()
    return torch.Generator().manual_seed(int(seed))
