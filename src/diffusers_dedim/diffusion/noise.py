"""The noise of a face's rounds: new in each, or each twice, the second time with the original known under it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class _Known:
    """What the first of two rounds leaves to the second: its generator's state before it, and the errors in it."""

    state: Tensor
    errors: Tensor


class FaceNoise:
    """What one face remembers from round to round, so that its original need not be denoised in each of them.

    With ``twice`` every other round begins with the noise of the one before it: what the denoiser loses of the original
    under it is known then, and half of that round's denoiser calls are saved. A round that did not bring the face on
    is not repeated, for under the same noise it would go wrong again.

    Args:
        twice: whether noise serves two rounds; without it each round draws its own, as in the paper.

    Source:
        Ours, not the paper's: D27 in docs/paper.md.

    Example:
        >>> noise, generator, errors = FaceNoise(twice=True), torch.Generator().manual_seed(0), torch.zeros(5, 3, 8, 8)
        >>> noise.begin(generator) is None, round(float(torch.rand(1, generator=generator)), 3)
        (True, 0.496)
        >>> noise.end(generator, errors, kept=True)
        >>> torch.equal(noise.begin(generator), errors), round(float(torch.rand(1, generator=generator)), 3)
        (True, 0.496)
    """

    def __init__(self, twice: bool = False) -> None:
        self._twice = twice
        self._known: _Known | None = None
        self._before: Tensor | None = None

    def begin(self, generator: torch.Generator) -> Tensor | None:
        """Make ready for a round.

        Args:
            generator: the face's own; set back where the round is to draw the noise of the one before it.

        Returns:
            The denoiser's errors on the original under the noise that is going to be drawn, ``[S, 3, H, W]`` for the
            S steps, if they are known.
        """
        self._before = generator.get_state()
        if self._known is None:
            return None
        generator.set_state(self._known.state)
        return self._known.errors

    def end(self, generator: torch.Generator, errors: Tensor | None, *, kept: bool) -> None:
        """Remember what a round has shown; one that failed is simply begun again, without this.

        Args:
            generator: the face's own, as for `begin`.
            errors: ``[S, 3, H, W]``; None where nobody looked at them.
            kept: whether the round brought the face on.
        """
        if self._before is None:
            return
        if self._known is not None:
            generator.set_state(self._before)  # what was drawn twice is not to be drawn a third time
            self._known = None
        elif self._twice and kept and errors is not None:
            self._known = _Known(self._before, errors.clone())  # a view would keep those of its whole batch

    def forget(self) -> None:
        """Let go of what is kept of the face, which is done."""
        self._known = None
