"""Precisions for many combinations of routes at once: a bound for each, and a choice that keeps all limits.

A combination has one route for each of a few models.  At prices on the nodes' memory and time and on the models'
losses each layer has a cheapest precision, and what all pay, less the price of all there is, bounds the combination
from below (Lagrange).  All combinations take their steps towards the best prices together, in arrays, and those bounded
above what is worth finding drop out: a thousand combinations of twenty layers take some hundredths of a second, where
the integer program (``joint_bits``) takes as long for one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lamella.planning.placement.arrays import Floats, Ints, Mask
from lamella.planning.placement.several.ascent import Ascent
from lamella.planning.placement.several.quick import QuickPlanner
from lamella.planning.placement.several.route_pools import Pool

_STEPS, _CHECKED = 40, 5
"""Towards the best prices, and after how many those that are not worth finding drop out."""
_MOST_CHANGES = 80
EXACT = 1e-10
"""Shares of limits, and costs, differ by more where they differ at all."""


class Layers:
    """The layers of a few models, one model below the other, and what they take of each limit.

    Limits are the memory of N nodes, their time, and the loss budgets of M models, in this order; all are scaled to 1.

    Attributes:
        cost: [L, N, P] that a layer adds to the objective.
        n_bytes, busy: [L, N, P] shares of the node's memory and time.
        loss: [L, P] share of the loss budget.
        fewest, quickest: [L, N] least shares of the node's memory and time; infinite where the layer cannot run.
        owner: [L] number of the model.
        limits: [2 N + M].
        memory_scale, busy_scale: [N] bytes, and share of the time, that are 1.
    """

    def __init__(self, planners: Sequence[QuickPlanner], nodes: Ints, memory: Ints, busy: Floats) -> None:
        """Write models as arrays.

        Args:
            nodes: [N] that they may run on.
            memory, busy: [N] bytes and share of these nodes' time that the models may take.
        """
        arrays = [planner.arrays.on(nodes.tolist()) for planner in planners]
        self.n_nodes, self.n_models = len(memory), len(planners)
        self.memory_scale, self.busy_scale = np.maximum(1.0, memory), np.where(busy > 0, busy, 1.0)
        budgets = np.array([a.loss_budget for a in arrays])
        scales = np.where(budgets > 0, budgets, 1.0)
        possible = [np.isfinite(a.cost) & np.isfinite(a.loss)[:, None] for a in arrays]
        of_models = list(zip(planners, arrays, possible, scales, strict=True))
        self.cost = np.concatenate([np.where(ok, p.weight * a.cost, np.inf) for p, a, ok, _ in of_models])
        self.n_bytes = np.concatenate([a.n_bytes[:, None] / self.memory_scale[:, None] for a in arrays])
        seconds = np.concatenate([p.rate * np.where(ok, a.seconds, 0.0) for p, a, ok, _ in of_models])
        self.busy = seconds / self.busy_scale[:, None]
        runs = np.concatenate(possible)
        self.fewest = np.where(runs, self.n_bytes, np.inf).min(axis=2)
        self.quickest = np.where(runs, self.busy, np.inf).min(axis=2)
        self.loss = np.concatenate([np.where(ok.any(axis=1), a.loss, 0.0) / scale for _, a, ok, scale in of_models])
        self.owner = np.concatenate([np.full(a.n_layers, k) for k, a in enumerate(arrays)])
        self.limits = np.concatenate(
            [memory / self.memory_scale, np.maximum(busy, 0.0) / self.busy_scale, budgets / scales]
        )

    def of(self, model: int) -> Ints:
        """Rows of a model's layers."""
        return np.flatnonzero(self.owner == model)

    def beside(self, pool: Pool) -> Floats:
        """[R, 2 N + M] shares of the limits that routes take beside their layers."""
        none = np.zeros((len(pool.routes), self.n_models))
        return np.concatenate([pool.n_bytes / self.memory_scale, pool.busy / self.busy_scale, none], axis=1)


class Combinations:
    """Combinations of routes, C of them, for whose layers precisions are sought.

    Attributes:
        which: [C, M] number of each model's route in its pool.
        bounds: [C] what they cost at least, after ``bound``.
        picks: [C, L] precisions, at first those at the best prices.
        exceeded: [C] shares of limits by which these are too much, after ``settle``.
    """

    def __init__(self, layers: Layers, pools: Sequence[Pool], which: Ints) -> None:
        """Look up what each layer costs and takes on its node."""
        of_models = [(pool, which[:, k]) for k, pool in enumerate(pools)]
        nodes = np.concatenate([pool.nodes[rows] for pool, rows in of_models], axis=1)
        each, n_layers = np.arange(nodes.shape[1]), nodes.shape[1]
        self.which, self.picks = which, np.zeros(nodes.shape, dtype=np.int64)
        self.bounds, self.exceeded = np.full(len(which), -np.inf), np.zeros(len(which))
        self._beside = sum((pool.cost[rows] for pool, rows in of_models), np.zeros(len(which)))
        taken = sum(layers.beside(pool)[rows] for pool, rows in of_models)
        self._limits = layers.limits - taken
        of_loss = np.broadcast_to(2 * layers.n_nodes + layers.owner, nodes.shape)
        self._rows = np.stack([nodes, layers.n_nodes + nodes, of_loss])
        self._cost = layers.cost[each, nodes]
        loss = np.broadcast_to(layers.loss, (len(which), n_layers, layers.loss.shape[1]))
        self._taken = np.stack([layers.n_bytes[each, nodes], layers.busy[each, nodes], loss])
        self._prices = np.zeros_like(self._limits)

    def bound(self, start: Floats, cutoff: float) -> None:
        """Bound each from below, and drop those that cost no less than the cutoff.

        Args:
            start: [limits] prices to begin with.
        """
        ascent = Ascent(np.tile(start, (len(self.which), 1)), cutoff)
        for number in range(1, _STEPS + 1):
            priced = self._priced(ascent.prices)
            picks = priced.argmin(axis=2)
            totals = _picked(priced, picks).sum(axis=1) + self._beside - (ascent.prices * self._limits).sum(axis=1)
            ascent.step(totals, self._used(picks) - self._limits)
            if number % _CHECKED == 0:
                worth_it = ascent.best < cutoff
                ascent.keep(worth_it)
                self._keep(worth_it)
            if not len(self.which):
                break
        self.bounds, self._prices = ascent.best, ascent.at_best
        self.picks = self._priced(self._prices).argmin(axis=2)

    def settle(self) -> Floats:
        """[C] costs with ``picks`` changed one by one, until all limits are kept and then while something is gained.

        Infinite where the changes tried keep not all limits.
        """
        left = self._limits - self._used(self.picks)
        open_ones = np.arange(len(self.which))
        for _ in range(_MOST_CHANGES):
            if not len(open_ones):
                break
            open_ones = self._change(open_ones, left)
        self.exceeded = np.where(left < -EXACT, -left, 0.0).sum(axis=1)
        costs = self._beside + _picked(self._cost, self.picks).sum(axis=1)
        return np.where(self.exceeded == 0, costs, np.inf)

    def _change(self, which: Ints, left: Floats) -> Ints:
        """One change for each of these combinations; returns those for which there was one."""
        picks, rows, taken = self.picks[which], self._rows[:, which], self._taken[:, which]
        more = taken - _picked(taken, np.broadcast_to(picks, rows.shape))[..., None]
        here = np.take_along_axis(left[which][None], rows, axis=2)[..., None]
        over = np.maximum(more - here, 0.0)
        mended = (np.maximum(-here, 0.0) - over).sum(axis=0)
        cost = self._cost[which]
        dearer = cost - _picked(cost, picks)[..., None]
        priced = self._priced(self._prices[which], which)
        dearer_priced = priced - _picked(priced, picks)[..., None]
        mends = np.isfinite(cost) & (mended > EXACT)
        repair = np.where(mends, dearer_priced / np.where(mends, mended, 1.0), np.inf)
        gain = np.where((over.sum(axis=0) <= EXACT) & (dearer < -EXACT), dearer, np.inf)
        broken: Mask = np.asarray((left[which] < -EXACT).any(axis=1))
        worth = np.where(broken[:, None, None], repair, gain).reshape(len(which), -1)
        best = worth.argmin(axis=1)
        changed = np.flatnonzero(np.isfinite(worth[np.arange(len(which)), best]))
        layer, precision = np.divmod(best[changed], cost.shape[2])
        for kind in range(len(rows)):
            np.subtract.at(left, (which[changed], rows[kind, changed, layer]), more[kind, changed, layer, precision])
        self.picks[which[changed], layer] = precision
        return which[changed]

    def _priced(self, prices: Floats, which: Ints | slice = slice(None)) -> Floats:
        """[C, L, P] what each precision costs, with what it pays."""
        paid = np.take_along_axis(prices[None], self._rows[:, which], axis=2)
        return np.asarray(self._cost[which] + (paid[..., None] * self._taken[:, which]).sum(axis=0))

    def _used(self, picks: Ints) -> Floats:
        """[C, limits] what the layers take."""
        taken = _picked(self._taken, np.broadcast_to(picks, self._rows.shape))
        shape = self._limits.shape
        cells = self._rows + (np.arange(shape[0]) * shape[1])[:, None]
        used: Floats = np.asarray(np.bincount(cells.ravel(), taken.ravel(), shape[0] * shape[1]), dtype=np.float64)
        return used.reshape(shape)

    def _keep(self, mask: Mask) -> None:
        self.which, self.picks, self._beside = self.which[mask], self.picks[mask], self._beside[mask]
        self._limits, self._cost, self._prices = self._limits[mask], self._cost[mask], self._prices[mask]
        self._rows, self._taken = self._rows[:, mask], self._taken[:, mask]


def _picked(values: Floats, picks: Ints) -> Floats:
    """[..., L, P] at the precisions picked."""
    return np.asarray(np.take_along_axis(values, picks[..., None], axis=-1)[..., 0])
