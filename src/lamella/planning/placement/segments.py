"""What a segment costs at least, for every node and every range of layers at once, at a price on loss.

A segment is a multiple-choice knapsack: one precision for each layer, at least cost + price * loss, within the node's
memory.  Its linear relaxation is the largest, over all prices mu on memory, of

    sum over the layers of  min over p (cost + price * loss + mu * bytes)   -   mu * memory

For one mu that sum over a range is a difference of two prefix sums, so a table [L + 1, L + 1] costs a few
additions for each mu.  Any set of prices gives a valid bound; the relaxation's own prices are slopes between two
options of a layer, so that a few dozen quantiles of all slopes come within a small part of a percent of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lamella.planning.placement.arrays import NO_BYTES, Arc, Arrays, Floats, Ints, Mask

N_PRICES = 64
"""Memory prices tried for each node."""
_SECONDS_TOLERANCE = 1e-9
_CACHE_ENTRIES = 2**14
"""Numbers worked on at once: larger arrays fall out of the processor's cache."""
ROUNDING = 1e-13
"""Share of the summed numbers that is taken off each bound, so that it holds in floating-point arithmetic too."""


@dataclass(frozen=True, slots=True)
class SegmentTable:
    """Lower bounds on segments, at one price on loss.

    Attributes:
        bound: [N, L + 1, L + 1] for node, first layer and end: cost + price * loss of its layers, opening and the way
            of the hidden state that does not depend on neighbours; infinite where the node cannot hold them.
        memory_prices: [N, prices] tried, from 0.
        loss_price: seconds for a unit of loss.
    """

    bound: Floats
    memory_prices: Floats
    loss_price: float


@dataclass(frozen=True, slots=True)
class Relaxed:
    """A segment's relaxed knapsack.

    Attributes:
        picks: precision of each layer of a choice that keeps the memory: the relaxed one, rounded to fewer bytes.
        loss: of the relaxed choice.
    """

    picks: Ints
    loss: float


def segment_table(arrays: Arrays, loss_price: float, n_prices: int = N_PRICES) -> SegmentTable:
    """Bound every segment of every node.

    Args:
        n_prices: memory prices tried for each node; fewer are faster, and bound less.
    """
    n_layers = arrays.n_layers
    bound = np.full((arrays.n_nodes, n_layers + 1, n_layers + 1), np.inf)
    prices = np.zeros((arrays.n_nodes, n_prices))
    for n in range(arrays.n_nodes):
        charged = charged_cost(arrays, n, loss_price)
        usable = usable_bytes(arrays, charged)
        prices[n] = _memory_prices(charged, arrays.n_bytes, n_prices)
        bound[n] = _range_bounds(charged, usable, prices[n], int(arrays.capacity[n]))
        bound[n][_too_slow(arrays, n, charged)] = np.inf
        bound[n] += arrays.opening[n] + arrays.entering[n][:, None] + arrays.leaving[n][None, :]
    return SegmentTable(bound, prices, loss_price)


def charged_cost(arrays: Arrays, node: int, loss_price: float) -> Floats:
    """[L, P] cost + price * loss of each layer on a node; infinite where it cannot run."""
    possible = np.isfinite(arrays.cost[:, node]) & np.isfinite(arrays.loss)
    priced = arrays.cost[:, node] + loss_price * np.where(possible, arrays.loss, 0.0)
    return np.where(possible, priced, np.inf)


def relax(arrays: Arrays, arc: Arc, table: SegmentTable) -> Relaxed:
    """The relaxed choice of one segment that the table bounds.

    It lies between the choices at two neighbouring memory prices: too many bytes at the lower, few enough at the upper.
    """
    layers = slice(arc.first, arc.end)
    charged = charged_cost(arrays, arc.node, table.loss_price)[layers]
    n_bytes, capacity = usable_bytes(arrays, charged, layers), int(arrays.capacity[arc.node])
    rows = np.arange(arc.end - arc.first)
    heavier: Ints | None = None
    for price in (*table.memory_prices[arc.node], np.inf):
        picks = _picks(charged, n_bytes, float(price))
        used = int(n_bytes[rows, picks].sum())
        if used <= capacity:
            break
        heavier = picks
    loss = float(arrays.loss[layers][rows, picks].sum())
    if heavier is None:
        return Relaxed(picks, loss)
    too_much = int(n_bytes[rows, heavier].sum())
    share = (too_much - capacity) / max(1, too_much - used)  # of the way from the heavier to the lighter choice
    dearer = float(arrays.loss[layers][rows, heavier].sum())
    return Relaxed(picks, dearer + share * (loss - dearer))


def _picks(charged: Floats, n_bytes: Ints, price: float) -> Ints:
    if np.isinf(price):  # fewest bytes, and of those the cheapest
        fewest = n_bytes == n_bytes.min(axis=1, keepdims=True)
        return np.asarray(np.where(fewest, charged, np.inf).argmin(axis=1))
    return np.asarray((charged + price * n_bytes).argmin(axis=1))


def usable_bytes(arrays: Arrays, charged: Floats, layers: slice = slice(None)) -> Ints:
    """Bytes where the layer can run; elsewhere so many that no node holds them."""
    return np.where(np.isfinite(charged), arrays.n_bytes[layers], NO_BYTES)


def _memory_prices(charged: Floats, n_bytes: Ints, n_prices: int) -> Floats:
    """Quantiles of what a byte saves at most, between any two options of a layer; the first is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        dearer = charged[:, :, None] - charged[:, None, :]
        saved = (n_bytes[:, None, :] - n_bytes[:, :, None]).astype(np.float64)
        slopes = np.where(saved > 0, dearer / saved, 0.0)
    slopes = slopes[np.isfinite(slopes) & (slopes > 0)]
    if not slopes.size:
        return np.zeros(n_prices)
    slopes.sort()
    return np.concatenate(([0.0], slopes[np.linspace(0, slopes.size - 1, n_prices - 1).astype(np.int64)]))


def _too_slow(arrays: Arrays, node: int, charged: Floats) -> Mask:
    """[L + 1, L + 1] ranges that take a node longer than a request may."""
    least = np.where(np.isfinite(charged), arrays.seconds[:, node], np.inf).min(axis=1)
    sums = np.concatenate(([0.0], np.cumsum(np.where(np.isfinite(least), least, 0.0))))
    limit = float(arrays.seconds_limit[node])
    return sums[None, :] - sums[:, None] > limit + _SECONDS_TOLERANCE * (float(sums[-1]) + abs(limit))


def _range_bounds(charged: Floats, usable: Ints, prices: Floats, capacity: int) -> Floats:
    """[L + 1, L + 1] the relaxation's value for first layer (row) and end (column)."""
    runs = np.isfinite(charged).any(axis=1)
    n_layers = len(charged)
    best = np.full((n_layers + 1, n_layers + 1), -np.inf)
    different = np.unique(prices)
    block = max(1, _CACHE_ENTRIES // best.size)
    for at in range(0, len(different), block):
        price = different[at : at + block]
        least = np.where(runs, (charged + price[:, None, None] * usable).min(axis=2), 0.0)
        sums = np.concatenate((np.zeros((len(price), 1)), np.cumsum(least, axis=1)), axis=1)
        paid = price * capacity + ROUNDING * (abs(sums[:, -1]) + price * abs(capacity))
        ranges = sums[:, None, :] - sums[:, :, None] - paid[:, None, None]
        np.maximum(best, ranges.max(axis=0), out=best)
    fewest = np.concatenate(([0], np.cumsum(usable.min(axis=1))))
    fits = (fewest[None, :] - fewest[:, None] <= capacity) & np.triu(np.ones_like(best, dtype=bool), 1)
    return np.where(fits, best, np.inf)
