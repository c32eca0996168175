"""The noise of a face's rounds: new in each of them, or a few draws in turns, under which the original is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class KnownDraw:
    """A draw of noise, and what the denoiser makes of the original under it.

    Attributes:
        state: of the face's generator before it.
        errors: ``[S, 3, H, W]``, the denoiser's error in each step of a round (`CorrectedDenoiser`).
    """

    state: Tensor
    errors: Tensor


class NoiseDraws:
    """What one face remembers from round to round, so that its original need not be denoised again and again.

    A round may begin with the noise of an earlier one: what the denoiser loses of the original under it is known
    then, and half of the round's denoiser calls are saved. A round that was not kept has its noise forgotten, for
    under the same noise it would go wrong again. With ``most`` of 0 each round draws its own, as in the paper.

    Args:
        most: draws that are taken in turns, 0 or more.

    Raises:
        ValueError: ``most`` is negative.

    Example:
        >>> draws, generator, errors = NoiseDraws(1), torch.Generator().manual_seed(0), torch.zeros(5, 3, 8, 8)
        >>> draws.begin(generator) is None, float(torch.rand(1, generator=generator))
        (True, 0.4962565302848816)
        >>> draws.end(generator, errors, kept=True)
        >>> draws.begin(generator) is errors, float(torch.rand(1, generator=generator))
        (True, 0.4962565302848816)
    """

    def __init__(self, most: int = 0) -> None:
        if most < 0:
            raise ValueError(f"most: expected 0 draws or more, got {most}.")
        self._most = most
        self._round = 0
        self._known: dict[int, KnownDraw] = {}
        self._before: Tensor | None = None

    def begin(self, generator: torch.Generator) -> Tensor | None:
        """Make ready for a round.

        Args:
            generator: the face's own; set back where the round is to draw the noise of an earlier one.

        Returns:
            The denoiser's errors on the original under the noise that is going to be drawn, if they are known.
        """
        self._before = generator.get_state()
        known = self._turn
        if known is None:
            return None
        generator.set_state(known.state)
        return known.errors

    def end(self, generator: torch.Generator, errors: Tensor | None, *, kept: bool) -> None:
        """Remember what a round has shown; a round that failed is begun again without this.

        Args:
            generator: the face's own, as for `begin`.
            errors: ``[S, 3, H, W]``; None where they were not looked at.
            kept: whether the round brought the face on.
        """
        if self._most == 0 or self._before is None:
            return
        known, before, place = self._turn, self._before, self._round % self._most
        if known is not None:
            generator.set_state(before)  # what an earlier round drew is not to be drawn by a later one
        if not kept or errors is None:
            self._known.pop(place, None)
        elif known is None:
            self._known[place] = KnownDraw(before, errors)
        self._round += 1

    def forget(self) -> None:
        """Let go of what is kept of the face, which is done."""
        self._known.clear()

    @property
    def _turn(self) -> KnownDraw | None:
        """The draw whose turn it is, if it was had before."""
        return self._known.get(self._round % self._most) if self._most else None
