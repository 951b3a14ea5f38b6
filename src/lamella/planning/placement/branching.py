"""Branch and bound over routes, each branch with its own price on loss.

One price for all routes leaves a gap where two very different routes are equally good at it: one that loses too much
and one that loses less than it may.  Where they part, a branch is cut in two, so that each half holds one of them and
finds a better price of its own.  Where both are the same route, its precisions are settled by ``bits`` and the rest of
the branch is parted by its segments (Lawler 1972).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lamella.planning.placement.arrays import Arc, Arrays, Mask, Route, nodes_of
from lamella.planning.placement.routes import best_route
from lamella.planning.placement.tightening import TightTables

ROUNDS = 4
"""Prices tried in a branch."""
_RAISE = 1.3


@dataclass(frozen=True, slots=True)
class Branch:
    """Part of all routes.

    Attributes:
        allowed: segments that its routes are made of.
        price: the best one found.
        bound: on the objective of its placements.
        low, high: routes that lose too much, and not, at prices nearest to the best; None where none was seen.
        tracked: nodes that its routes would use twice (``star_routes.best``).
    """

    allowed: Mask
    price: float
    bound: float
    low: Route | None
    high: Route | None
    tracked: frozenset[int]


class Branching:
    """The search: ``run`` until nothing is left below the cutoff, or the branches allowed are used up."""

    def __init__(
        self, arrays: Arrays, tables: TightTables, try_route: Callable[[Route], float], cutoff: Callable[[], float]
    ) -> None:
        """Take what is known.

        Args:
            try_route: gives precisions to a route, and returns a bound on what it can cost.
            cutoff: what is worth finding costs less; it falls as placements are found.
        """
        self._arrays, self._tables, self._try, self._cutoff = arrays, tables, try_route, cutoff
        self._n_made = 0

    def run(self, allowed: Mask, price: float, most_branches: int) -> float:
        """Search; returns a bound on every placement made of the allowed segments (the cutoff, where none is below)."""
        queue: list[tuple[float, int, Branch]] = []
        self._push(queue, allowed, price, frozenset())
        settled = np.inf  # least bound of routes that are tried and taken out
        while queue and queue[0][0] < self._cutoff() and self._n_made < most_branches:
            _, _, branch = heapq.heappop(queue)
            bounds = [self._try(route) for route in _routes(branch)]
            if len(bounds) == 1:
                settled = min(settled, bounds[0])
            for part in _parts(branch):
                self._push(queue, part, branch.price, branch.tracked)
        return min(self._cutoff(), settled, queue[0][0] if queue else np.inf)

    def _push(
        self, queue: list[tuple[float, int, Branch]], allowed: Mask, price: float, tracked: frozenset[int]
    ) -> None:
        branch = self._bound(allowed, price, set(tracked))
        self._n_made += 1
        if branch is not None and branch.bound < self._cutoff():
            heapq.heappush(queue, (branch.bound, self._n_made, branch))

    def _bound(self, allowed: Mask, price: float, tracked: set[int]) -> Branch | None:
        """Search the price: tangents, as in ``prices``; None where the branch holds no route."""
        best, at_best = -np.inf, price
        low: tuple[float, float, float, Route] | None = None  # price, bound, slope, route
        high: tuple[float, float, float, Route] | None = None
        for _ in range(ROUNDS):
            table, slope = self._tables.at(price)
            found = best_route(self._arrays, np.where(allowed, table, np.inf), tracked)
            if found is None:
                return None
            total, route = found
            bound = total + self._arrays.constant - price * self._arrays.loss_budget
            excess = sum(float(slope[a.node, a.first, a.end]) for a in route) - self._arrays.loss_budget
            if bound > best:
                best, at_best = bound, price
            if bound >= self._cutoff():
                break
            if excess > 0:
                low = (price, bound, excess, route)
            else:
                high = (price, bound, excess, route)
            price = _next_price(low, high)
        return Branch(allowed, at_best, best, low and low[3], high and high[3], frozenset(tracked))


def _next_price(low: tuple[float, float, float, Route] | None, high: tuple[float, float, float, Route] | None) -> float:
    if low is None or high is None:
        only = low or high
        assert only is not None
        return only[0] * _RAISE if low else only[0] / _RAISE
    meeting = ((high[1] - high[0] * high[2]) - (low[1] - low[0] * low[2])) / (low[2] - high[2])
    return meeting if low[0] < meeting < high[0] else (low[0] + high[0]) / 2


def _routes(branch: Branch) -> tuple[Route, ...]:
    """One route, or two different ones."""
    both = [route for route in (branch.high, branch.low) if route is not None]
    return tuple(dict.fromkeys(both))


def _parts(branch: Branch) -> Iterator[Mask]:
    """Branches that together hold every route of this one that is not settled."""
    routes = _routes(branch)
    if len(routes) == 1:
        yield from _without(branch.allowed, routes[0])
        return
    layer, node = _parting(*routes)
    boundaries = np.arange(branch.allowed.shape[1])
    covers = (boundaries[:, None] <= layer) & (boundaries[None, :] > layer)
    here = branch.allowed.copy()
    here[:, covers] = False
    here[node] = branch.allowed[node] & covers
    yield here
    elsewhere = branch.allowed.copy()
    elsewhere[node] &= ~covers
    yield elsewhere


def _parting(one: Route, other: Route) -> tuple[int, int]:
    """A layer that two routes have on different nodes, in the middle of their longest such range; the first's node."""
    mine, theirs = nodes_of(one), nodes_of(other)
    differ = np.flatnonzero(mine != theirs)
    ranges = np.split(differ, np.flatnonzero(np.diff(differ) > 1) + 1)
    longest = max(ranges, key=len)
    layer = int(longest[len(longest) // 2])
    return layer, int(mine[layer])


def _without(allowed: Mask, route: Route) -> Iterator[Mask]:
    """All routes but one: those that leave it at its first segment, at its second, and so on."""
    kept = allowed.copy()
    for arc in route:
        part = kept.copy()
        part[arc.node, arc.first, arc.end] = False
        yield part
        kept = _only(kept, arc)


def _only(allowed: Mask, arc: Arc) -> Mask:
    """Routes that contain a segment: no other segment of its node, and none of another node over its layers."""
    part = allowed.copy()
    boundaries = np.arange(allowed.shape[1])
    overlaps = (boundaries[:, None] < arc.end) & (boundaries[None, :] > arc.first)
    part &= ~overlaps[None]
    part[arc.node] = False
    part[arc.node, arc.first, arc.end] = allowed[arc.node, arc.first, arc.end]
    return part
