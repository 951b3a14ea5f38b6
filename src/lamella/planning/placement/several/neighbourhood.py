"""Two or three models placed anew together, on what the others leave.

Placed one after another, each takes what is best for itself.  Here routes of all of them are looked at in combination,
with precisions chosen for each combination:

1. Each model has a pool of promising routes (``route_pools``).
2. With three models, the search parts by the route of the one that has fewest, the most promising routes first.
3. Prices on memory, time and losses bound every combination of the others' routes from below: what each route costs at
   these prices is a vector, and all pairs are their sum.  Each step towards the best prices gives another bound.
4. The most promising pairs get prices of their own (``batch_bits``), which mostly shows that they are not worth finding;
   those that remain get precisions, by single changes, and the best few by an integer program (``joint_bits``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lamella.planning.placement.arrays import Floats, Ints
from lamella.planning.placement.several.batch_bits import EXACT, Ascent, Combinations, Layers
from lamella.planning.placement.several.joint_bits import joint_bits
from lamella.planning.placement.several.quick import Choice, QuickPlanner
from lamella.planning.placement.several.route_pools import Pool

_STEPS, _STEPS_OF_BRANCH = 60, 30
"""Towards the best prices, for all routes, and for those of one branch."""
_COMBINATIONS, _PAIRS = 60_000, (300, 3000)
"""Of routes that get prices of their own, in all branches together, and in each one."""
_HOPELESS = 4.0
"""Times the bound on all combinations: dearer ones are not looked for where nothing is known."""
_PROVEN = 4
"""Combinations in each branch that get precisions by the integer program."""
_LEAST_GAIN = 1e-4
"""Share of what all cost: less is not looked for."""


def place_together(
    planners: Mapping[int, QuickPlanner],
    pools: Mapping[int, Pool],
    memory: Ints,
    busy: Floats,
    known: float,
    branches: int,
) -> dict[int, Choice] | None:
    """Placements of two or three models that cost less together; None where none were found.

    Args:
        planners, pools: of these models, by number.
        memory, busy: [N] bytes and share of the time that they may take.
        known: what they cost now; infinite where not all have a place.
        branches: routes of the third model, at most.
    """
    numbers = sorted(planners, key=lambda k: len(pools[k].routes), reverse=True)
    if not all(pools[k].routes for k in numbers):
        return None
    group = _Group([planners[k] for k in numbers], [pools[k] for k in numbers], memory, busy)
    best: list[Choice] | None = None
    everything = group.everything(known)
    known = min(known, _HOPELESS * everything.bound)
    parts = group.parts(everything, known * (1 - _LEAST_GAIN), branches)
    pairs = int(np.clip(_COMBINATIONS // max(1, len(parts)), *_PAIRS))
    for branch in parts:
        found = group.search(branch, known * (1 - _LEAST_GAIN), pairs) if branch.bound < known else None
        if found is not None:
            best, known = found, sum(choice.cost for choice in found)
    return best and dict(zip(numbers, best, strict=True))


@dataclass(frozen=True, slots=True)
class _Screen:
    """What routes cost at some prices: a combination costs no less than the sum of its routes', less the constant."""

    of_routes: tuple[Floats, ...]
    constant: float


@dataclass(frozen=True, slots=True)
class _Branch:
    """Combinations of some routes.

    Attributes:
        bound: no combination costs less.
        prices: that prove it.
        screens: at these prices and those tried before.
    """

    pools: tuple[Pool, ...]
    bound: float
    prices: Floats
    screens: tuple[_Screen, ...]


class _Group:
    """Models, the one with most routes first, and what they may take together."""

    def __init__(
        self, planners: Sequence[QuickPlanner], pools: Sequence[Pool], memory: Ints, busy: Floats
    ) -> None:
        self._planners, self._pools, self._memory, self._busy = planners, tuple(pools), memory, busy
        self._layers = Layers(planners, memory, busy)

    def everything(self, cutoff: float) -> _Branch:
        """All combinations."""
        return self._screened(self._pools, np.zeros_like(self._layers.limits), cutoff, _STEPS)

    def parts(self, everything: _Branch, cutoff: float, most: int) -> list[_Branch]:
        """What may hold something below the cutoff, the most promising first: all combinations with each third route."""
        if len(self._pools) == 2:
            return [everything]
        *others, third = self._pools
        bounds = np.max([_of_third(screen) for screen in everything.screens], axis=0)
        promising = [int(r) for r in np.argsort(bounds, kind="stable")[:most] if bounds[r] < cutoff]
        parts = (
            self._screened((*others, third.only(r)), everything.prices, cutoff, _STEPS_OF_BRANCH) for r in promising
        )
        return sorted(parts, key=lambda branch: branch.bound)

    def search(self, branch: _Branch, cutoff: float, pairs: int) -> list[Choice] | None:
        """The best placements found of a branch that cost less than the cutoff.

        Args:
            pairs: of routes that are looked at closely.
        """
        which = self._promising(branch, cutoff)[:pairs]
        if not len(which):
            return None
        combinations = Combinations(self._layers, branch.pools, which)
        combinations.bound(branch.prices, cutoff)
        if not len(combinations.which):
            return None
        best = self._settled(branch, combinations, cutoff)
        for c in np.argsort(combinations.bounds, kind="stable")[:_PROVEN]:
            cutoff = sum(choice.cost for choice in best) if best else cutoff
            if combinations.bounds[c] >= cutoff:
                break
            routes = {k: pool.routes[r] for k, (pool, r) in enumerate(self._of(branch, combinations, c))}
            found = joint_bits(dict(enumerate(self._planners)), routes, self._memory, self._busy, cutoff)
            best = best if found is None else [found[k] for k in range(len(found))]
        return best

    def _settled(self, branch: _Branch, combinations: Combinations, cutoff: float) -> list[Choice] | None:
        """The best placements by single changes of precisions."""
        costs = combinations.settle()
        c = int(costs.argmin())
        if not costs[c] < cutoff:
            return None
        picks = combinations.picks[c]
        of_models = enumerate(zip(self._planners, self._of(branch, combinations, c), strict=True))
        found = [p.choice(pool.routes[r], picks[self._layers.owner == k]) for k, (p, (pool, r)) in of_models]
        used, taken = sum(choice.n_bytes for choice in found), sum(choice.busy for choice in found)
        kept = bool(np.all(used <= self._memory) and np.all(taken <= self._busy))
        return found if kept and all(map(_keeps_loss, self._planners, found)) else None

    @staticmethod
    def _of(branch: _Branch, combinations: Combinations, number: int) -> list[tuple[Pool, int]]:
        return [(pool, int(r)) for pool, r in zip(branch.pools, combinations.which[number], strict=True)]

    def _screened(self, pools: tuple[Pool, ...], start: Floats, cutoff: float, steps: int) -> _Branch:
        """Bound all combinations of routes at once."""
        layers, screens = self._layers, list[_Screen]()
        beside = [layers.beside(pool) for pool in pools]
        ascent = Ascent(start[None], cutoff)
        for _ in range(steps):
            prices = ascent.prices[0]
            priced, picks = self._cheapest(prices)
            values = tuple(
                pool.cost + taken @ prices + priced[rows, pool.nodes].sum(axis=1)
                for pool, taken, rows in zip(pools, beside, self._rows(), strict=True)
            )
            screens.append(_Screen(values, float(prices @ layers.limits)))
            used = sum(
                taken[r] + self._used(rows, pool.nodes[r], picks)
                for pool, taken, rows, r in zip(
                    pools, beside, self._rows(), (int(v.argmin()) for v in values), strict=True
                )
            )
            bound = sum(float(v.min()) for v in values) - screens[-1].constant
            ascent.step(np.array([bound]), (used - layers.limits)[None])
            if ascent.best[0] >= cutoff:
                break
        return _Branch(pools, float(ascent.best[0]), ascent.at_best[0], tuple(screens))

    def _rows(self) -> list[Ints]:
        """Of each model's layers."""
        return [np.flatnonzero(self._layers.owner == k) for k in range(len(self._pools))]

    def _cheapest(self, prices: Floats) -> tuple[Floats, Ints]:
        """[L, N] what each layer costs at least on each node at these prices, and its precision there."""
        layers, n = self._layers, self._layers.n_nodes
        of_loss = prices[2 * n + layers.owner][:, None] * layers.loss
        paid = prices[:n, None] * layers.n_bytes + prices[n : 2 * n, None] * layers.busy + of_loss[:, None]
        priced = layers.cost + paid
        picks = priced.argmin(axis=2)
        return np.take_along_axis(priced, picks[..., None], axis=2)[..., 0], picks

    def _used(self, rows: Ints, nodes: Ints, picks: Ints) -> Floats:
        """[limits] that one model's layers take."""
        layers, n = self._layers, self._layers.n_nodes
        chosen = rows, nodes, picks[rows, nodes]
        used = np.zeros_like(layers.limits)
        np.add.at(used, nodes, layers.n_bytes[chosen])
        np.add.at(used, n + nodes, layers.busy[chosen])
        np.add.at(used, 2 * n + layers.owner[rows], layers.loss[rows, chosen[2]])
        return used

    def _least(self, number: int, pool: Pool) -> Floats:
        """[R, limits] that routes of a model take at least, of each limit for itself."""
        layers, n, rows = self._layers, self._layers.n_nodes, self._rows()[number]
        least, each = layers.beside(pool), np.arange(len(pool.routes))
        for i, layer in enumerate(rows):
            nodes = pool.nodes[:, i]
            least[each, nodes] += layers.fewest[layer, nodes]
            least[each, n + nodes] += layers.quickest[layer, nodes]
        return least

    def _promising(self, branch: _Branch, cutoff: float) -> Ints:
        """[C, M] the combinations of least bound, of those whose layers fit at their fewest bytes."""
        first, second, *third = branch.pools
        bounds = np.full((len(first.routes), len(second.routes)), -np.inf)
        for screen in branch.screens:
            constant = screen.constant - sum(float(values[0]) for values in screen.of_routes[2:])
            np.maximum(bounds, np.add.outer(screen.of_routes[0] - constant, screen.of_routes[1]), out=bounds)
        rows, columns = np.nonzero(bounds < cutoff)
        left = self._layers.limits - sum(self._least(k + 2, pool)[0] for k, pool in enumerate(third))
        fits = np.all(self._least(0, first)[rows] + self._least(1, second)[columns] <= left + EXACT, axis=1)
        rows, columns = rows[fits], columns[fits]
        best = np.argsort(bounds[rows, columns], kind="stable")
        which = np.zeros((len(best), len(branch.pools)), dtype=np.int64)
        which[:, 0], which[:, 1] = rows[best], columns[best]
        return which


def _of_third(screen: _Screen) -> Floats:
    """[R] what a combination with each of the third model's routes costs at least."""
    *others, third = screen.of_routes
    return third + (sum(float(values.min()) for values in others) - screen.constant)


def _keeps_loss(planner: QuickPlanner, choice: Choice) -> bool:
    lost = float(planner.arrays.loss[np.arange(planner.arrays.n_layers), choice.picks].sum())
    return lost <= planner.arrays.loss_budget
