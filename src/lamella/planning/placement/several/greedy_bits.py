"""Precisions on a settled route, one change at a time: first until all limits are kept, then while something is gained.

``bits`` finds the best ones by an integer program in tens of milliseconds; this takes one.
"""

from __future__ import annotations

import numpy as np

from lamella.planning.placement.arrays import Arrays, Floats, Ints, Route, nodes_of, route_cost

_MOST_CHANGES = 200
_LEAST_GAIN = 1e-9
"""Share of the cost of all layers."""


def greedy_bits(arrays: Arrays, route: Route, picks: Ints, loss_price: float) -> tuple[float, Ints] | None:
    """Cost, and the precision of each layer; None where the changes tried keep not all limits.

    Args:
        picks: to begin with; they keep the memory, but not always the other limits.
        loss_price: what a unit of loss is worth while time is repaired.
    """
    state = _State(arrays, route, picks.copy())
    for _ in range(_MOST_CHANGES):
        if state.kept:
            break
        if not state.repair(loss_price):
            return None
    for _ in range(_MOST_CHANGES):
        if not state.gain():
            break
    return (state.cost, state.picks) if state.kept else None


class _State:
    """Precisions, and what they leave of each limit; changes are [L, P] arrays, for each layer to each precision."""

    def __init__(self, arrays: Arrays, route: Route, picks: Ints) -> None:
        self.picks = picks
        self._rows, self._nodes = np.arange(arrays.n_layers), nodes_of(route)
        self._costs = np.where(np.isfinite(arrays.loss), arrays.cost[self._rows, self._nodes], np.inf)
        self._seconds, self._bytes = arrays.seconds[self._rows, self._nodes], arrays.n_bytes
        self._loss, self._arrays, self._beside = arrays.loss, arrays, route_cost(arrays, route)
        self._count()

    @property
    def kept(self) -> bool:
        return self._loss_left >= 0 and bool((self._time_left[self._nodes] >= 0).all())

    @property
    def cost(self) -> float:
        return float(self._costs[self._rows, self.picks].sum()) + self._beside

    def repair(self, loss_price: float) -> bool:
        """The cheapest change for what it repairs, of the loss and then of the nodes' time, that breaks no limit."""
        cost, n_bytes, seconds, loss = self._changes()
        allowed = n_bytes <= self._memory_left[self._nodes][:, None]
        time_left = self._time_left[self._nodes][:, None]
        if self._loss_left < 0:
            allowed &= seconds <= np.maximum(time_left, 0)
            repaired = np.minimum(-loss, -self._loss_left)
        else:
            allowed &= (loss <= self._loss_left) & (time_left < 0)
            repaired = np.minimum(-seconds, -time_left)
            cost = cost + loss_price * np.where(np.isfinite(loss), loss, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._take(np.where(allowed & (repaired > 0) & np.isfinite(cost), cost / repaired, np.inf))

    def gain(self) -> bool:
        """The change that saves most, within all limits."""
        cost, n_bytes, seconds, loss = self._changes()
        fits = (n_bytes <= self._memory_left[self._nodes][:, None]) & (loss <= self._loss_left)
        fits &= seconds <= self._time_left[self._nodes][:, None]
        least = -_LEAST_GAIN * abs(float(self._costs[self._rows, self.picks].sum()))
        return self._take(np.where(fits & (cost < least), cost, np.inf))

    def _changes(self) -> tuple[Floats, Ints, Floats, Floats]:
        here = self._rows, self.picks
        with np.errstate(invalid="ignore"):
            return (
                self._costs - self._costs[here][:, None],
                self._bytes - self._bytes[here][:, None],
                self._seconds - self._seconds[here][:, None],
                self._loss - self._loss[here][:, None],
            )

    def _take(self, worth: Floats) -> bool:
        layer, precision = np.unravel_index(int(worth.argmin()), worth.shape)
        if not np.isfinite(worth[layer, precision]):
            return False
        self.picks[layer] = precision
        self._count()
        return True

    def _count(self) -> None:
        here, arrays = (self._rows, self.picks), self._arrays
        self._memory_left, self._time_left = arrays.capacity.copy(), arrays.seconds_limit.copy()
        np.subtract.at(self._memory_left, self._nodes, self._bytes[here])
        np.subtract.at(self._time_left, self._nodes, self._seconds[here])
        self._loss_left = arrays.loss_budget - float(self._loss[here].sum())
