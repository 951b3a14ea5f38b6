"""What a segment costs at least, for every node and every range of layers at once, at a price on loss.

A segment is a multiple-choice knapsack: one precision for each layer, at least cost + price * loss, within the node's
memory.  Its linear relaxation is the largest, over all prices mu on memory, of

    sum over the layers of  min over p (cost + price * loss + mu * bytes)   -   mu * memory

For one mu that sum over a range is a difference of two prefix sums, so a table [L + 1, L + 1] costs a few
additions for each mu.  Any set of prices gives a valid bound; the relaxation's own prices are slopes between two
options of a layer, so that a few dozen quantiles of all slopes come within a small part of a percent of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    charged = charged_costs(arrays, loss_price)
    usable = usable_bytes(charged, arrays.n_bytes)
    prices = _memory_prices(charged, arrays.n_bytes, n_prices)
    bound = np.full((arrays.n_nodes, arrays.n_layers + 1, arrays.n_layers + 1), np.inf)
    fitting = _fitting(usable, arrays.capacity)
    for part in _parts(fitting, prices):
        bound[part] = _range_bounds(charged[part], usable[part], prices[part], arrays.capacity[part], fitting[part])
    bound[_too_slow(arrays, charged)] = np.inf
    bound += arrays.opening[:, None, None] + arrays.entering[:, :, None] + arrays.leaving[:, None, :]
    return SegmentTable(bound, prices, loss_price)


def _fitting(usable: Ints, capacity: Ints) -> Mask:
    """[N, L + 1, L + 1] ranges of layers that fit on the node at the fewest bytes."""
    fewest = _sums(usable.min(axis=2))
    fits = fewest[:, None, :] - fewest[:, :, None] <= capacity[:, None, None]
    return np.asarray(fits & np.triu(np.ones(fits.shape[1:], dtype=bool), 1))


def _parts(fitting: Mask, prices: Floats) -> Iterator[Ints]:
    """Nodes worked on at once, of alike work: the number of different prices, and the longest range."""
    widths = np.arange(fitting.shape[1])
    longest = np.where(fitting, widths[None, :] - widths[:, None], 0).max(axis=(1, 2))
    order = np.lexsort((longest, (np.diff(prices, axis=1) > 0).sum(axis=1)))
    step = max(1, _CACHE_ENTRIES // (fitting.shape[1] * max(1, int(longest.max()))))
    return (order[at : at + step] for at in range(0, len(order), step))


def charged_costs(arrays: Arrays, loss_price: float) -> Floats:
    """[N, L, P] cost + price * loss of each layer on each node; infinite where it cannot run."""
    possible = np.isfinite(arrays.cost) & np.isfinite(arrays.loss)[:, None]
    priced = arrays.cost + loss_price * np.where(np.isfinite(arrays.loss), arrays.loss, 0.0)[:, None]
    return np.where(possible, priced, np.inf).swapaxes(0, 1)


def charged_cost(arrays: Arrays, node: int, loss_price: float, layers: slice = slice(None)) -> Floats:
    """[L, P] the same on one node."""
    cost, loss = arrays.cost[layers, node], arrays.loss[layers]
    possible = np.isfinite(loss)
    return np.where(possible, cost + loss_price * np.where(possible, loss, 0.0), np.inf)


def relax(arrays: Arrays, arc: Arc, table: SegmentTable) -> Relaxed:
    """The relaxed choice of one segment that the table bounds.

    It lies between the choices at two neighbouring memory prices: too many bytes at the lower, few enough at the upper.
    """
    layers = slice(arc.first, arc.end)
    charged = charged_cost(arrays, arc.node, table.loss_price, layers)
    n_bytes, capacity = usable_bytes(charged, arrays.n_bytes[layers]), int(arrays.capacity[arc.node])
    rows, prices = np.arange(arc.end - arc.first), table.memory_prices[arc.node]

    def at(number: int) -> tuple[Ints, int]:
        picks = _picks(charged, n_bytes, float(prices[number]) if number < len(prices) else np.inf)
        return picks, int(n_bytes[rows, picks].sum())

    number = bisect_left(range(len(prices)), -capacity, key=lambda n: -at(n)[1])  # bytes fall as the price rises
    picks, used = at(number)
    loss = float(arrays.loss[layers][rows, picks].sum())
    if number == 0:
        return Relaxed(picks, loss)
    heavier, too_much = at(number - 1)
    share = (too_much - capacity) / max(1, too_much - used)  # of the way from the heavier to the lighter choice
    dearer = float(arrays.loss[layers][rows, heavier].sum())
    return Relaxed(picks, dearer + share * (loss - dearer))


def _picks(charged: Floats, n_bytes: Ints, price: float) -> Ints:
    if np.isinf(price):  # fewest bytes, and of those the cheapest
        fewest = n_bytes == n_bytes.min(axis=1, keepdims=True)
        return np.asarray(np.where(fewest, charged, np.inf).argmin(axis=1))
    return np.asarray((charged + price * n_bytes).argmin(axis=1))


def usable_bytes(charged: Floats, n_bytes: Ints) -> Ints:
    """[..., L, P] bytes where the layer can run; elsewhere so many that no node holds them."""
    return np.where(np.isfinite(charged), n_bytes, NO_BYTES)


def _memory_prices(charged: Floats, n_bytes: Ints, n_prices: int) -> Floats:
    """[N, prices] quantiles of what a byte saves between two options of a layer; the first is 0."""
    one, other = np.triu_indices(charged.shape[2], 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        slopes = (charged[:, :, one] - charged[:, :, other]) / (n_bytes[:, other] - n_bytes[:, one])
    slopes = np.where(np.isfinite(slopes) & (slopes > 0), slopes, np.inf).reshape(len(charged), -1)
    slopes = np.pad(slopes, ((0, 0), (0, 1)), constant_values=np.inf)  # one at least, where there is one precision
    slopes.sort(axis=1)
    n_slopes = np.isfinite(slopes).sum(axis=1)
    which = np.linspace(0, np.maximum(n_slopes - 1, 0), n_prices - 1, axis=1).astype(np.int64)
    known = np.where(n_slopes[:, None] > 0, np.take_along_axis(slopes, which, axis=1), 0.0)
    return np.concatenate((np.zeros((len(charged), 1)), known), axis=1)


def _too_slow(arrays: Arrays, charged: Floats) -> Mask:
    """[N, L + 1, L + 1] ranges that take a node longer than a request may."""
    if not np.isfinite(arrays.seconds_limit).any():
        return np.zeros((arrays.n_nodes, arrays.n_layers + 1, arrays.n_layers + 1), dtype=bool)
    least = np.where(np.isfinite(charged), arrays.seconds.swapaxes(0, 1), np.inf).min(axis=2)
    sums = _sums(np.where(np.isfinite(least), least, 0.0))
    limit = arrays.seconds_limit
    tolerance = _SECONDS_TOLERANCE * (sums[:, -1] + np.where(np.isfinite(limit), abs(limit), 0.0))
    return np.asarray(sums[:, None, :] - sums[:, :, None] > (limit + tolerance)[:, None, None])


def _range_bounds(charged: Floats, usable: Ints, prices: Floats, capacity: Ints, fitting: Mask) -> Floats:
    """[nodes, L + 1, L + 1] the relaxation's value of the ranges that fit, for first layer and end; infinite else."""
    bound = np.full(fitting.shape, np.inf)
    nodes, firsts, ends = np.nonzero(fitting)
    if not nodes.size:
        return bound
    n_layers, longest = charged.shape[1], int((ends - firsts).max())
    runs = np.asarray(np.isfinite(charged).any(axis=2))[:, None]
    ending = np.minimum(np.arange(n_layers)[:, None] + np.arange(1, longest + 1), n_layers)
    best = np.full((len(charged), n_layers, longest), -np.inf)  # by first layer, and number of layers less one
    prices = prices[:, np.concatenate(([True], (np.diff(prices, axis=1) > 0).any(axis=0)))]
    block = max(1, _CACHE_ENTRIES // best.size)
    for at in range(0, prices.shape[1], block):
        price = prices[:, at : at + block]
        sums = _sums(np.where(runs, _least(charged, usable, price), 0.0))
        held = capacity[:, None]
        paid = price * held + ROUNDING * (abs(sums[:, :, -1]) + price * abs(held))
        ranges = sums[:, :, ending] - (sums + paid[:, :, None])[:, :, :-1, None]
        np.maximum(best, ranges.max(axis=1), out=best)
    bound[nodes, firsts, ends] = best[nodes, firsts, ends - firsts - 1]
    return bound


def _least(charged: Floats, usable: Ints, price: Floats) -> Floats:
    """[nodes, prices, L] what each layer costs at least at each price on memory."""
    least = charged[:, None, :, 0] + price[:, :, None] * usable[:, None, :, 0]
    for p in range(1, charged.shape[2]):
        np.minimum(least, charged[:, None, :, p] + price[:, :, None] * usable[:, None, :, p], out=least)
    return least


def _sums(values: NDArray[Any]) -> NDArray[Any]:
    """Of the first none, one, two, ... layers, which stand along the last axis."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1), dtype=values.dtype)
    np.cumsum(values, axis=-1, out=sums[..., 1:])
    return sums
