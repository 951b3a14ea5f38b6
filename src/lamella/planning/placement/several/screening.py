"""All combinations of a few models' routes, bounded from below at once.

At prices on memory, time and losses each route costs something by itself, and a combination costs no less than the sum
of its routes', less the price of all there is.  So bounds on all pairs of two models are one sum of two vectors, and
each step towards the best prices gives another one; a combination is bounded by the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lamella.planning.placement.arrays import Floats, Ints
from lamella.planning.placement.several.ascent import Ascent
from lamella.planning.placement.several.batch_bits import EXACT, Layers
from lamella.planning.placement.several.route_pools import Pool


@dataclass(frozen=True, slots=True)
class Screen:
    """Bounds at some prices.

    Attributes:
        of_routes: for each model, [R] what its routes cost and pay.
        constant: price of all there is.
    """

    of_routes: tuple[Floats, ...]
    constant: float

    @property
    def bound(self) -> float:
        """No combination costs less."""
        return sum(float(costs.min()) for costs in self.of_routes) - self.constant

    def with_each(self, model: int) -> Floats:
        """[R] what a combination with each of the model's routes costs at least."""
        costs = self.of_routes[model]
        return costs + (self.bound - float(costs.min()))


@dataclass(frozen=True, slots=True)
class Screened:
    """Combinations of routes, one of each pool.

    Attributes:
        bound: no combination costs less.
        prices: that prove it.
        screens: at these prices and those tried before.
    """

    pools: tuple[Pool, ...]
    bound: float
    prices: Floats
    screens: tuple[Screen, ...]

    def with_each(self, model: int) -> Floats:
        """[R] what a combination with each of the model's routes costs at least."""
        return np.asarray(np.max([screen.with_each(model) for screen in self.screens], axis=0))


def screen_all(layers: Layers, pools: Sequence[Pool], start: Floats, cutoff: float, steps: int) -> Screened:
    """Bound all combinations.

    Args:
        pools: of the models whose layers these are, in order.
        start: [limits] prices to begin with.
        cutoff: larger bounds are as good as any.
    """
    beside, screens = [layers.beside(pool) for pool in pools], list[Screen]()
    ascent = Ascent(start[None], cutoff)
    for _ in range(steps):
        screen, excess = _screen(layers, pools, beside, ascent.prices[0])
        screens.append(screen)
        ascent.step(np.array([screen.bound]), excess[None])
        if ascent.best[0] >= cutoff:
            break
    return Screened(tuple(pools), float(ascent.best[0]), ascent.at_best[0], tuple(screens))


def promising_pairs(layers: Layers, screened: Screened, cutoff: float) -> Ints:
    """[C, M] routes of the first two models, with the first one of others, that may cost less than the cutoff.

    Those of least bound come first.  What does not fit with each layer at its fewest bytes, or at its quickest, is left
    out.
    """
    first, second, *others = screened.pools
    bounds = np.full((len(first.routes), len(second.routes)), -np.inf)
    for screen in screened.screens:
        constant = screen.constant - sum(float(costs[0]) for costs in screen.of_routes[2:])
        np.maximum(bounds, np.add.outer(screen.of_routes[0] - constant, screen.of_routes[1]), out=bounds)
    rows, columns = np.nonzero(bounds < cutoff)
    left = layers.limits - sum(_least(layers, k + 2, pool)[0] for k, pool in enumerate(others))
    fits = np.all(_least(layers, 0, first)[rows] + _least(layers, 1, second)[columns] <= left + EXACT, axis=1)
    rows, columns = rows[fits], columns[fits]
    best = np.argsort(bounds[rows, columns], kind="stable")
    return np.stack([rows[best], columns[best], *(np.zeros_like(best) for _ in others)], axis=1)


def _screen(layers: Layers, pools: Sequence[Pool], beside: Sequence[Floats], prices: Floats) -> tuple[Screen, Floats]:
    """What routes cost at these prices, and by what the cheapest ones together exceed the limits."""
    priced, picks = _cheapest(layers, prices)
    used, costs = -layers.limits, list[Floats]()
    for k, (pool, taken) in enumerate(zip(pools, beside, strict=True)):
        rows = layers.of(k)
        costs.append(pool.cost + taken @ prices + priced[rows, pool.nodes].sum(axis=1))
        best = int(costs[-1].argmin())
        used = used + taken[best] + _used(layers, rows, pool.nodes[best], picks)
    return Screen(tuple(costs), float(prices @ layers.limits)), used


def _cheapest(layers: Layers, prices: Floats) -> tuple[Floats, Ints]:
    """[L, N] what each layer costs at least on each node at these prices, and its precision there."""
    n = layers.n_nodes
    of_loss = prices[2 * n + layers.owner][:, None] * layers.loss
    paid = prices[:n, None] * layers.n_bytes + prices[n : 2 * n, None] * layers.busy + of_loss[:, None]
    priced = layers.cost + paid
    picks = priced.argmin(axis=2)
    return np.take_along_axis(priced, picks[..., None], axis=2)[..., 0], picks


def _used(layers: Layers, rows: Ints, nodes: Ints, picks: Ints) -> Floats:
    """[limits] that one model's layers take."""
    n, precisions = layers.n_nodes, picks[rows, nodes]
    used = np.zeros_like(layers.limits)
    np.add.at(used, nodes, layers.n_bytes[rows, nodes, precisions])
    np.add.at(used, n + nodes, layers.busy[rows, nodes, precisions])
    np.add.at(used, 2 * n + layers.owner[rows], layers.loss[rows, precisions])
    return used


def _least(layers: Layers, model: int, pool: Pool) -> Floats:
    """[R, limits] that routes take at least, of each limit for itself."""
    least, each = layers.beside(pool), np.arange(len(pool.routes))
    for layer, nodes in zip(layers.of(model), pool.nodes.T, strict=True):
        least[each, nodes] += layers.fewest[layer, nodes]
        least[each, layers.n_nodes + nodes] += layers.quickest[layer, nodes]
    return least
