"""Segments bounded by whole choices instead of shares of them, for the few segments that matter, at several prices.

``segments`` lets a knapsack split one layer between two precisions.  Here each layer takes one: a dynamic program over
memory, counted in parts of the node's capacity.  What a precision needs beyond the layer's smallest one is rounded
down, so that every real choice is among those counted: the least cost is a lower bound still, and mostly a higher one.

The least cost of a segment is concave in the price on loss, being a minimum of linear functions.  So between two
prices whose tables are known, their chord is a valid table: branching asks for many prices and pays for a few.
"""

from __future__ import annotations

import math

import numpy as np

from lamella.planning.placement.arrays import Arrays, Floats, Ints, Mask
from lamella.planning.placement.segments import charged_cost, segment_table, usable_bytes

PARTS = 1024
"""Of a node's capacity."""
STEP = 1.15
"""From one price with a table to the next."""


class TightTables:
    """Tables of the segments that are alive, made when a price near them is asked for."""

    def __init__(self, arrays: Arrays, alive: Mask, around: float) -> None:
        """Know the segments.

        Args:
            alive: [N, L + 1, L + 1] whether a segment counts.
            around: price that the known ones are placed around.
        """
        self._arrays, self._alive, self._around = arrays, alive, around
        self._tables: dict[int, Floats] = {}

    def at(self, price: float) -> tuple[Floats, Floats]:
        """[N, L + 1, L + 1] bounds at a price above 0, and how they grow with it."""
        step = math.floor(math.log(price / self._around, STEP))
        low, high = self._price(step), self._price(step + 1)
        below, above = self._table(step), self._table(step + 1)
        with np.errstate(invalid="ignore"):
            slope = np.where(np.isfinite(below), (above - below) / (high - low), 0.0)
        return below + slope * (price - low), slope

    def _price(self, step: int) -> float:
        return self._around * STEP**step

    def _table(self, step: int) -> Floats:
        if step not in self._tables:
            price = self._price(step)
            relaxed = np.where(self._alive, segment_table(self._arrays, price).bound, np.inf)
            self._tables[step] = tighten(self._arrays, price, relaxed)
        return self._tables[step]


def tighten(arrays: Arrays, price: float, bound: Floats) -> Floats:
    """Raise the bounds of the segments that are finite in a table."""
    tight = bound.copy()
    for node in range(arrays.n_nodes):
        starts = np.flatnonzero(np.isfinite(bound[node]).any(axis=1))
        if len(starts):
            _tighten_node(arrays, price, node, starts, tight[node])
    return tight


def _tighten_node(arrays: Arrays, price: float, node: int, starts: Ints, bound: Floats) -> None:
    """Go through the layers, and keep for each start the least cost by parts of the memory used so far."""
    capacity = int(arrays.capacity[node])
    charged = charged_cost(arrays, node, price)
    usable = usable_bytes(charged, arrays.n_bytes)
    fewest = usable.min(axis=1)
    sums = np.concatenate(([0], np.cumsum(fewest)))
    extra = np.minimum(usable - fewest[:, None], capacity + 1) * PARTS // max(1, capacity)
    ends = np.array([np.flatnonzero(np.isfinite(bound[first])).max() for first in starts])
    costs = np.zeros((len(starts), PARTS + 1))
    for layer in range(int(starts.min()), int(ends.max())):
        open_ = (starts <= layer) & (ends > layer)
        costs[open_] = _with_layer(costs[open_], charged[layer], extra[layer])
        spare = (capacity - (sums[layer + 1] - sums[starts])) * PARTS // max(1, capacity)
        for row in np.flatnonzero(open_ & (spare >= 0)):
            first, end = starts[row], layer + 1
            outside = arrays.opening[node] + arrays.entering[node, first] + arrays.leaving[node, end]
            if np.isfinite(bound[first, end]):
                bound[first, end] = max(bound[first, end], costs[row, spare[row]] + outside)


def _with_layer(costs: Floats, charged: Floats, extra: Ints) -> Floats:
    """Least costs by parts of memory, with one layer more: [starts, PARTS + 1]."""
    added = np.full_like(costs, np.inf)
    for cost, parts in zip(charged, extra, strict=True):
        if np.isfinite(cost) and parts <= PARTS:
            kept = added[:, parts:]
            np.minimum(kept, costs[:, : PARTS + 1 - parts] + cost, out=kept)
    return added
