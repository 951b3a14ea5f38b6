"""The fast planner: bound by prices and dynamic programs, placements from the routes they pass, the rest closed.

    solution = place(problem, gap=0.01)
    solution.gap     # proven

1. *Price.*  A price on loss turns the loss budget into a cost, and leaves independent segments (``segments``).  The
   search for the price runs over one order of nodes, then a few times over all (``routes``).
2. *Place.*  Every route that was best at some price is completed with the best precisions for it (``bits``).
3. *Prune.*  A segment is dropped if every route through it is bounded above what would still be worth finding.
4. *Branch* on the segments that are left, often none, with tighter bounds (``tightening``) and a price for each branch
   (``branching``).

Every bound is a bound on the original problem, and every placement is checked against it (``result``).
docs/placement.md says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lamella.planning.placement.arrays import Arc, Arrays, Ints, Mask, Route, to_arrays, to_placement
from lamella.planning.placement.bits import best_bits
from lamella.planning.placement.branching import Branching
from lamella.planning.placement.facts import no_placement
from lamella.planning.placement.prices import Priced, search_price
from lamella.planning.placement.problem import PlacementProblem, check_problem
from lamella.planning.placement.result import TOLERANCE, Solution, account, violations
from lamella.planning.placement.routes import all_orders, best_in_order, best_route, best_with_reuse, totals_through
from lamella.planning.placement.segments import N_PRICES, SegmentTable, relax, segment_table
from lamella.planning.placement.tightening import TightTables

GAP = 0.01
MOST_BRANCHES = 2000
SHORTLIST = 12
"""Nodes looked at where there are too many for all their orders."""
ROUNDS_IN_ORDER, ROUNDS_IN_ALL, ROUNDS_TO_SHORTLIST = 10, 4, 4
_BITS_NODES = 1000
_MOST_ROUTES = 4
_BEYOND = (1.2, 1.5, 2.5, 6.0)
"""Times the best price: routes that lose less, for where those at the best price hold no placement."""
_LEAST_PRICE = 1e-6
_SAFE = 1 + 1e-9
_ROUNDING = 1 + 1e-12
"""So that a gap of 0.01 is not reported as 0.01 and a rounding error."""


def place(problem: PlacementProblem, gap: float = GAP, most_branches: int = MOST_BRANCHES) -> Solution:
    """The placement of least objective, to a proven gap.

    Args:
        gap: share above the best that will do; 0 for the best.
        most_branches: of the search that closes the gap, a count, so that equal questions get equal answers; where it
            cuts off, the solution says what gap is proven.

    Raises:
        InvalidRequest: the question has no meaning (``check_problem``).
        NoPlacement: no placement keeps all limits, or none was found in time; says which.
    """
    check_problem(problem)
    found = search(to_arrays(problem), gap, most_branches)
    if found.best is None:
        raise no_placement(problem, proven=np.isinf(found.bound))
    _objective, route, picks = found.best
    placement = to_placement(problem, route, picks.tolist())
    broken = violations(problem, placement)
    assert not broken, broken
    return Solution(placement, account(problem, placement), found.bound, "joint")


Best = tuple[float, Route, Ints]
"""Objective, route, and the precision of each layer."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a search knows in the end.

    Attributes:
        bound: on every placement; infinite where there is none.
        best: the best placement; None where none was found.
    """

    bound: float
    best: Best | None


def search(arrays: Arrays, gap: float = GAP, most_branches: int = MOST_BRANCHES) -> Found:
    """The same over arrays.

    Where the nodes are too many for all their orders, the search is over a short list of them; its bound is then that
    of routes that may use a node more than once.
    """
    if _least_loss(arrays) > arrays.loss_budget * (1 + TOLERANCE):  # no price on loss would ever show it
        return Found(np.inf, None)
    if all_orders(arrays):
        return _search(arrays, gap, most_branches)
    bound = reuse_bound(arrays)
    best = search_few(arrays, SHORTLIST, gap, most_branches)
    return Found(bound if best is None else min(bound, best[0]), best)


def _least_loss(arrays: Arrays) -> float:
    """Of any choice of precisions, wherever the layers are."""
    runs = np.isfinite(arrays.cost).any(axis=1)
    return float(np.where(runs, arrays.loss, np.inf).min(axis=1).sum())


def search_few(arrays: Arrays, most_nodes: int, gap: float, most_branches: int) -> Best | None:
    """A placement on a short list of the nodes; nothing is proven by it."""
    nodes = shortlist(arrays, most_nodes) if arrays.n_nodes > most_nodes else list(range(arrays.n_nodes))
    best = _search(arrays.on(nodes), gap, most_branches).best
    if best is None:
        return None
    objective, route, picks = best
    return objective, tuple(Arc(nodes[arc.node], arc.first, arc.end) for arc in route), picks


def _search(arrays: Arrays, gap: float, most_branches: int) -> Found:
    search = _Search(arrays, gap)
    search.price()
    search.complete()
    if not search.done:
        search.close(most_branches)
    return Found(search.bound, search.best)


def shortlist(arrays: Arrays, most: int) -> list[int]:
    """Nodes of the best routes in order of speed, and the fastest others."""
    order = by_speed(arrays)
    priced = search_price(lambda price: evaluate(arrays, price, order), first_price(arrays), ROUNDS_TO_SHORTLIST)
    used = [arc.node for p in sorted(priced, key=lambda p: -p.bound) for arc in p.route]
    return list(dict.fromkeys([*used, *order]))[:most]


def reuse_bound(arrays: Arrays) -> float:
    """A bound for any number of nodes: the best price of routes that may use a node more than once."""

    def at(price: float) -> Priced | None:
        table = segment_table(arrays, price)
        found = best_with_reuse(table.bound)
        return None if found is None else priced_route(arrays, table, *found)

    priced = search_price(at, first_price(arrays), ROUNDS_IN_ORDER)
    return max((p.bound for p in priced), default=np.inf)


@dataclass(slots=True)
class _Search:
    """What is known so far: a bound, the best placement, and the solutions at all prices tried."""

    arrays: Arrays
    gap: float
    bound: float = -np.inf
    best: Best | None = None
    priced: list[Priced] = field(default_factory=list)
    tried: dict[Route, float] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.best is not None and self.best[0] <= self.bound * (1 + self.gap)

    def price(self) -> None:
        """Find the price in one order of nodes, then among all, until a placement is good enough."""
        order = by_speed(self.arrays)
        in_order = search_price(
            lambda price: evaluate(self.arrays, price, order), first_price(self.arrays), ROUNDS_IN_ORDER
        )
        self.priced = in_order
        self.complete()
        start = max(in_order, key=lambda p: p.bound).price if in_order else first_price(self.arrays)
        in_all = search_price(self._evaluate_all, max(start, 1e-30), ROUNDS_IN_ALL, lambda: self.done)
        self.bound = max((p.bound for p in in_all), default=np.inf)
        self.priced = in_all

    def complete(self) -> None:
        """Give precisions to the routes seen, the most promising first; stop where one is good enough."""
        for priced in sorted(self.priced, key=lambda p: (p.excess_loss > 0, -p.bound))[:_MOST_ROUTES]:
            self._try(priced.route)
        if self.best is None and self.priced:
            price = max(self.priced, key=lambda p: p.bound).price
            for factor in _BEYOND:
                self._try_at(price * factor)

    def close(self, most_branches: int) -> None:
        """Drop what cannot be better than what is good enough, and branch on the rest."""
        at = max(self.priced, key=lambda p: p.bound, default=None)
        if at is None:
            return
        alive = self._alive(at)
        price = max(at.price, first_price(self.arrays) * _LEAST_PRICE)
        tables = TightTables(self.arrays, alive, price)
        branching = Branching(self.arrays, tables, self._bound_route, self._cutoff)
        self.bound = max(self.bound, branching.run(alive, price, most_branches))

    def _cutoff(self) -> float:
        """What is worth finding costs less."""
        return self.best[0] / (1 + self.gap) * _ROUNDING if self.best else np.inf

    def _alive(self, at: Priced) -> Mask:
        """[N, L + 1, L + 1] segments that a placement below the cutoff may have."""
        table, cutoff = at.table.bound, self._cutoff()
        if not np.isfinite(cutoff):
            return np.isfinite(table)
        offset = self.arrays.constant - at.price * self.arrays.loss_budget
        return np.asarray(totals_through(self.arrays, table) + offset < cutoff * _SAFE)

    def _evaluate_all(self, price: float) -> Priced | None:
        """Evaluate a price over all orders, and use what it says."""
        priced = evaluate(self.arrays, price)
        if priced is not None:
            self.bound = max(self.bound, priced.bound)
            if priced.excess_loss <= 0:
                self._try(priced.route)
        return priced

    def _try_at(self, price: float) -> None:
        priced = evaluate(self.arrays, price)
        if priced is not None:
            self._try(priced.route)

    def _try(self, route: Route) -> None:
        if not self.done:
            self._bound_route(route)

    def _bound_route(self, route: Route) -> float:
        """Give precisions to a route; returns what it costs at least."""
        if route not in self.tried:
            beyond = self.best[0] if self.best else np.inf
            bits = best_bits(self.arrays, route, gap=self.gap / 4, most_nodes=_BITS_NODES, cutoff=beyond)
            self.tried[route] = bits.bound
            if bits.found is not None and bits.found[0] < beyond:
                self.best = (bits.found[0], route, bits.found[1])
        return self.tried[route]


def evaluate(
    arrays: Arrays, price: float, order: tuple[int, ...] | None = None, n_prices: int = N_PRICES
) -> Priced | None:
    """The best relaxed solution at a price, over one order of nodes or over all."""
    table = segment_table(arrays, price, n_prices)
    found = best_in_order(arrays, table.bound, order) if order else best_route(arrays, table.bound)
    return None if found is None else priced_route(arrays, table, *found)


def priced_route(arrays: Arrays, table: SegmentTable, total: float, route: Route) -> Priced:
    """What a route of least total says about the price of its table."""
    loss = sum(relax(arrays, arc, table).loss for arc in route)
    bound = total + arrays.constant - table.loss_price * arrays.loss_budget
    return Priced(table.loss_price, bound, loss - arrays.loss_budget, route, table)


def by_speed(arrays: Arrays) -> tuple[int, ...]:
    """Nodes, the fastest first."""
    seconds = np.where(np.isfinite(arrays.cost), arrays.cost, np.nan)
    with np.errstate(invalid="ignore"):
        mean = np.array(
            [np.nanmean(of_node) if np.isfinite(of_node).any() else np.inf for of_node in seconds.swapaxes(0, 1)]
        )
    return tuple(int(n) for n in np.argsort(mean, kind="stable"))


def first_price(arrays: Arrays) -> float:
    """What a unit of loss would cost if the budget were worth as much as all layers' time."""
    seconds = np.where(np.isfinite(arrays.cost), arrays.cost, 0.0).mean(axis=(1, 2)).sum()
    return float(seconds / arrays.loss_budget) if 0 < arrays.loss_budget < np.inf and seconds > 0 else 1.0
