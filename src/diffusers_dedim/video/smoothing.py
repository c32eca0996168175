"""The one-euro filter (Casiez, Roussel and Vogel, CHI 2012): still where a thing rests, without lag where it moves."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


class OneEuro:
    """Smooth points that come one after another.

    A first-order low pass whose cut-off rises with the speed.

    Args:
        cutoff: Hz, above 0, of what rests; lower is stiller.
        beta: Hz of cut-off for each unit a second of speed; higher lags less.
        speed_cutoff: Hz of the low pass on the speed.

    Raises:
        ValueError: a cut-off is not above 0, or ``beta`` below 0.

    Source:
        Casiez et al. 2012, algorithm 1, on the speed at which the points move, turn and grow together: all are
        smoothed alike, so that their shape does not shear. Ours is that of what is left out of the newest points a
        part is made up for by that speed, the more the faster they go: what moves evenly has hardly a lag.

    Example:
        >>> smooth = OneEuro()
        >>> first = smooth(np.array([[0.0, 0.0], [1.0, 0.0]]), 1 / 25)
        >>> bool(smooth(np.array([[0.1, 0.0], [1.1, 0.0]]), 1 / 25)[0, 0] < 0.1)
        True
    """

    def __init__(self, cutoff: float = 0.5, beta: float = 10.0, speed_cutoff: float = 3.0) -> None:
        if not (cutoff > 0 and speed_cutoff > 0 and beta >= 0):
            raise ValueError(
                "cutoff, speed_cutoff, beta: expected Hz above 0 and a beta of 0 or more, got "
                f"{cutoff}, {speed_cutoff}, {beta}."
            )
        self.cutoff: float = cutoff
        self.beta: float = beta
        self.speed_cutoff: float = speed_cutoff
        self._points: NDArray[np.float64] | None = None
        self._speed: NDArray[np.float64] | None = None

    def __call__(self, points: NDArray[np.float64], seconds: float, unit: float = 1.0) -> NDArray[np.float64]:
        """Smooth the next points.

        Args:
            points: ``[K, 2]``.
            seconds: since the last ones, above 0.
            unit: length that speeds are told in, above 0, such as the size of a face in px.

        Returns:
            ``[K, 2]``; the first points as they are.
        """
        last = self._points
        if last is None or last.shape != points.shape:
            self._points, self._speed = points.copy(), None
            return self._points
        speed = _common(last, points - last) / (unit * seconds)
        known = speed if self._speed is None else self._speed
        self._speed = known + _share(self.speed_cutoff, seconds) * (speed - known)
        share = _share(self.cutoff + self.beta * float(np.linalg.norm(self._speed)), seconds)
        onwards = _onwards(last, self._speed * unit * seconds)
        self._points = last + share * (points - last) + (1 - share) * share * onwards
        return self._points


def _common(points: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """What steps of points ``[K, 2]`` have in common, ``[4]``: the shift, and growth and turn at the points' spread."""
    about, shift = points - points.mean(axis=0), steps.mean(axis=0)
    spread = float(np.sqrt((about**2).sum(axis=1).mean()))
    growth = (about * steps).sum(axis=1).mean()
    turn = (about[:, 0] * steps[:, 1] - about[:, 1] * steps[:, 0]).mean()
    return np.array([*shift, growth / max(spread, 1e-9), turn / max(spread, 1e-9)])


def _onwards(points: NDArray[np.float64], common: NDArray[np.float64]) -> NDArray[np.float64]:
    """The steps of points ``[K, 2]`` that have this in common: the inverse of `_common`."""
    about = points - points.mean(axis=0)
    spread = max(float(np.sqrt((about**2).sum(axis=1).mean())), 1e-9)
    across = np.stack([-about[:, 1], about[:, 0]], axis=1)
    steps: NDArray[np.float64] = common[:2] + (common[2] * about + common[3] * across) / spread
    return steps


def _share(cutoff: float, seconds: float) -> float:
    """How much of the new value a low pass takes."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * seconds))
