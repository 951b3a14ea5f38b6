"""One model on what others leave of the nodes, in milliseconds: a good placement, without a proof.

    planner = QuickPlanner(tenant)
    choice = planner.place(memory_left, time_left, prices)

The fast planner (``solver``) proves its gap, which takes most of its time.  Here the nodes are a short list in one
order, segments are bounded at few prices, and precisions are rounded from their relaxation and improved one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lamella.planning.placement.arrays import Arc, Arrays, Floats, Ints, Route, nodes_of, route_cost, to_arrays
from lamella.planning.placement.bits import best_bits
from lamella.planning.placement.prices import Priced
from lamella.planning.placement.segments import charged_costs, relax, segment_table
from lamella.planning.placement.several.greedy_bits import greedy_bits
from lamella.planning.placement.several.prices import Shared, buffers_of, charge, pass_seconds_of
from lamella.planning.placement.several.problem import Tenant
from lamella.planning.placement.solver import evaluate, first_price

_SHORTLIST, _SPARE = 16, 2.0
"""Nodes looked at: so many, and more where these hold less than so many times the layers."""
_ALL_ORDERS = 5
"""Nodes of which all orders are tried."""
_MEMORY_PRICES, _ROUTES = 12, 3
_WALKS = ((1.5, 3), (4.0, 8))
"""Steps of the price on loss, and how many: near the last price, and further."""
_BITS_GAP, _BITS_NODES = 1e-4, 200


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A placement of one of several models, in numbers.

    Attributes:
        cost: what it adds to the objective.
        n_bytes: [N] that it takes of the nodes' memory.
        busy: [N] share that it takes of their time.
    """

    route: Route
    picks: tuple[int, ...]
    cost: float
    n_bytes: Ints
    busy: Floats


class QuickPlanner:
    """Places one model again and again.  It remembers the last price on loss, where the next search begins.

    Attributes:
        arrays: the model's question.
        rate: requests per second.
        weight: of its seconds.
    """

    def __init__(self, tenant: Tenant) -> None:
        """Write the model's question as arrays, once."""
        self.arrays = to_arrays(tenant.problem)
        self.rate, self.weight = tenant.requests_per_second, tenant.weight
        self._tenant = tenant
        self._buffers, self._pass_seconds = buffers_of(tenant), pass_seconds_of(tenant)
        self._known: float | None = None

    def place(self, memory: Ints, time: Floats, prices: Shared | None = None) -> Choice | None:
        """A good placement; None where none was found.

        Args:
            memory: [N] bytes left.
            time: [N] share of the nodes' time that is left.
            prices: that it pays for what it takes; None: nothing.
        """
        arrays = self._left(memory, time)
        if prices is not None:
            arrays = charge(arrays, prices, self._tenant)
        first = self._known or first_price(arrays)
        nodes = _candidates(arrays, first)
        if not nodes:
            return None
        few = arrays.on(nodes)
        for step, steps in _WALKS if self._known else _WALKS[::-1]:
            priced = _walk(few, first, step, steps)
            best = _with_bits(few, priced)
            if best is None and prices is None and priced:
                best = _with_exact_bits(few, priced)
            if best is not None:
                self._known = best[2]
                return self.choice(tuple(Arc(nodes[a.node], a.first, a.end) for a in best[0]), best[1])
        return None

    def polish(self, choice: Choice, memory: Ints, time: Floats) -> Choice:
        """The same route with the best precisions for it, on what the others leave."""
        bits = best_bits(self._left(memory, time), choice.route, gap=_BITS_GAP, most_nodes=_BITS_NODES)
        if bits.found is None:
            return choice
        polished = self.choice(choice.route, bits.found[1])
        return polished if polished.cost < choice.cost else choice

    def choice(self, route: Route, picks: Ints) -> Choice:
        """Add up what a placement costs and takes."""
        layers, nodes = np.arange(len(picks)), nodes_of(route)
        cost, n_bytes, busy = self.beside(route)
        np.add.at(n_bytes, nodes, self.arrays.n_bytes[layers, picks])
        np.add.at(busy, nodes, self.rate * self.arrays.seconds[layers, nodes, picks])
        cost += self.weight * float(self.arrays.cost[layers, nodes, picks].sum())
        return Choice(route, tuple(int(p) for p in picks), cost, n_bytes, busy)

    def beside(self, route: Route) -> tuple[float, Ints, Floats]:
        """What a route costs, takes of the nodes' memory, and of their time, beside its layers."""
        used = [arc.node for arc in route]
        n_bytes, busy = np.zeros_like(self._buffers), np.zeros(len(self._buffers))
        n_bytes[used], busy[used] = self._buffers[used], self.rate * self._pass_seconds[used]
        return self.weight * route_cost(self.arrays, route), n_bytes, busy

    def segments(self, memory: Ints, time: Floats, prices: Shared) -> Floats:
        """[N, L + 1, L + 1] what a segment costs at least on what is left, at prices."""
        charged = charge(self._left(memory, time), prices, self._tenant)
        return segment_table(charged, self._known or first_price(charged), _MEMORY_PRICES).bound

    def _left(self, memory: Ints, time: Floats) -> Arrays:
        limit = self.arrays.seconds_limit
        if self.rate > 0:
            limit = np.maximum(time, 0.0) / self.rate - self._pass_seconds
        return replace(self.arrays, capacity=memory - self._buffers, seconds_limit=limit)


def _walk(arrays: Arrays, price: float, step: float, most: int) -> list[Priced]:
    """Relaxed solutions at a price and the next ones, until the loss budget is kept by one and exceeded by another."""
    order = None if arrays.n_nodes <= _ALL_ORDERS else tuple(range(arrays.n_nodes))
    priced: list[Priced] = []
    for _ in range(most):
        here = evaluate(arrays, price, order, _MEMORY_PRICES)
        if here is None:
            break
        priced.append(here)
        if (here.excess_loss > 0) != (priced[0].excess_loss > 0):
            break
        price = price * step if here.excess_loss > 0 else price / step
    return priced


def _candidates(arrays: Arrays, price: float) -> list[int]:
    """Nodes with room, those first where a layer costs least; too few where they cannot hold all layers."""
    charged = charged_costs(arrays, price).min(axis=2)
    runs = np.isfinite(charged)
    of_layer = np.where(runs, charged, 0.0).sum(axis=1) / np.maximum(1, runs.sum(axis=1))
    held = _held(arrays)
    held[~runs.any(axis=1)] = 0
    way = arrays.opening + arrays.entering.min(axis=1) + arrays.leaving.min(axis=1)
    order = np.argsort(of_layer + way / np.maximum(1, held), kind="stable")
    order = order[held[order] > 0]
    enough = int(np.searchsorted(np.cumsum(held[order]), _SPARE * arrays.n_layers)) + 1
    return [int(n) for n in order[: max(_SHORTLIST, enough)]]


def _held(arrays: Arrays) -> Ints:
    """[N] how many layers a node holds at most, each as small and as quick as the smallest and the quickest."""
    by_memory = arrays.capacity // max(1, int(arrays.n_bytes.min()))
    quickest = np.maximum(arrays.seconds.min(axis=(0, 2)), 1e-300)
    by_time = np.clip(arrays.seconds_limit / quickest, 0, arrays.n_layers)
    return np.asarray(np.clip(np.minimum(by_memory, by_time.astype(np.int64)), 0, arrays.n_layers))


def _with_bits(arrays: Arrays, priced: Sequence[Priced]) -> tuple[Route, Ints, float] | None:
    """The best of the most promising routes, with precisions that keep all limits, and the price it was found at."""
    best: tuple[float, Route, Ints, float] | None = None
    promising = sorted(priced, key=lambda p: (p.excess_loss > 0, -p.bound))
    for at in {p.route: p for p in reversed(promising[:_ROUTES])}.values():
        relaxed = np.concatenate([relax(arrays, arc, at.table).picks for arc in at.route])
        found = greedy_bits(arrays, at.route, relaxed, at.price)
        if found is not None and (best is None or found[0] < best[0]):
            best = (found[0], at.route, found[1], at.price)
    return best and best[1:]


def _with_exact_bits(arrays: Arrays, priced: Sequence[Priced]) -> tuple[Route, Ints, float] | None:
    """The most promising route, where single changes lead to no precisions that keep all limits."""
    at = min(priced, key=lambda p: (p.excess_loss > 0, -p.bound))
    bits = best_bits(arrays, at.route, gap=_BITS_GAP, most_nodes=_BITS_NODES)
    return None if bits.found is None else (at.route, bits.found[1], at.price)
