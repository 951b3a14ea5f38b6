"""Steps towards the prices that bound most, for many questions at once (Polyak 1969)."""

from __future__ import annotations

import numpy as np

from lamella.planning.placement.arrays import Floats, Mask

_PATIENCE = 4
"""Steps without a better bound until less is hoped for."""
_HOPE, _LEAST_HOPE = 0.3, 0.01
"""Share of the first bound that it is hoped to rise by where nothing is known, and least share of the cutoff."""
_OVER = 1.0001
"""Times what is worth finding: bounds need not rise above."""


class Ascent:
    """Steps of Polyak's length towards the best prices, for many questions at once.

    Attributes:
        prices: [C, limits] to evaluate next.
        best, at_best: [C] bounds, and the prices that gave them.
    """

    def __init__(self, start: Floats, cutoff: float) -> None:
        """Begin.

        Args:
            start: [C, limits] prices.
            cutoff: bounds above it are as good as any.
        """
        self.prices, self.at_best = start.copy(), start.copy()
        self.best = np.full(len(start), -np.inf)
        self._cutoff, self._waited = cutoff, np.zeros(len(start), dtype=np.int64)
        self._hope: Floats | None = None

    def step(self, bounds: Floats, excess: Floats) -> None:
        """Take the bounds at the prices, and by how much each limit is exceeded there, to the next prices."""
        better = bounds > self.best
        self.best = np.where(better, bounds, self.best)
        self.at_best[better] = self.prices[better]
        self._waited = np.where(better, 0, self._waited + 1)
        if self._hope is None:
            missing = np.maximum(self._cutoff - bounds, _LEAST_HOPE * self._cutoff)
            self._hope = np.where(np.isfinite(self._cutoff), missing, _HOPE * abs(bounds))
        tired = self._waited >= _PATIENCE
        self._hope, self._waited = np.where(tired, self._hope / 2, self._hope), np.where(tired, 0, self._waited)
        excess = np.where((self.prices == 0) & (excess < 0), 0.0, excess)
        square = (excess * excess).sum(axis=1)
        rise = np.minimum(self.best + self._hope, _OVER * self._cutoff) - bounds
        length = np.where(square > 0, rise / np.where(square > 0, square, 1.0), 0.0)
        base = np.where(tired[:, None], self.at_best, self.prices)
        self.prices = np.maximum(0.0, base + length[:, None] * excess)

    def keep(self, mask: Mask) -> None:
        """Go on with some of the questions."""
        self.prices, self.at_best, self.best = self.prices[mask], self.at_best[mask], self.best[mask]
        self._waited = self._waited[mask]
        self._hope = None if self._hope is None else self._hope[mask]
