"""The best precisions on a settled route: a small integer program, with one row for each node and one for the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lamella.planning.placement.arrays import Arrays, Ints, Route, nodes_of, route_cost
from lamella.planning.placement.highs import Rows, solve
from lamella.planning.placement.result import TOLERANCE

_TRIES = 4


@dataclass(frozen=True, slots=True)
class Bits:
    """What a route can be.

    Attributes:
        bound: no choice of precisions makes it cost less; infinite where none keeps all limits, or none that does is
            below the cutoff.
        found: objective, and precision of each layer; None where none was found.
    """

    bound: float
    found: tuple[float, Ints] | None


def best_bits(arrays: Arrays, route: Route, *, gap: float, most_nodes: int, cutoff: float = np.inf) -> Bits:
    """The best choice that keeps all limits, to a gap.

    Args:
        gap: share above the best that will do.
        most_nodes: of branch and bound.
        cutoff: objectives above it need not be found.

    Raises:
        ValueError: the route does not cover all layers.
    """
    nodes = nodes_of(route)
    if len(nodes) != arrays.n_layers:
        raise ValueError(f"a route over {len(nodes)} of {arrays.n_layers} layers")
    costs = arrays.cost[np.arange(arrays.n_layers), nodes]
    usable = np.isfinite(costs) & np.isfinite(arrays.loss) & (arrays.n_bytes <= arrays.capacity[nodes][:, None])
    layers, precisions = np.nonzero(usable)
    if len(np.unique(layers)) < arrays.n_layers:
        return Bits(np.inf, None)
    limits, beside = _Limits(arrays, route), route_cost(arrays, route)
    bound: float | None = None
    for _ in range(_TRIES):
        rows = limits.rows(layers, precisions)
        answer = solve(costs[layers, precisions], rows, gap=gap, most_nodes=most_nodes, cutoff=cutoff - beside)
        bound = answer.bound + beside if bound is None else bound  # later ones are of tightened limits
        if answer.values is None:
            return Bits(bound, None)
        picks = np.zeros(arrays.n_layers, dtype=np.int64)
        chosen = answer.values > 0.5
        picks[layers[chosen]] = precisions[chosen]
        if limits.keeps(picks):
            total = float(costs[np.arange(arrays.n_layers), picks].sum()) + beside
            return Bits(min(bound, total), (total, picks))
    return Bits(-np.inf if bound is None else bound, None)


class _Limits:
    """Memory and seconds of a route's nodes, and the loss budget; tightened where the solver's tolerance broke one."""

    def __init__(self, arrays: Arrays, route: Route) -> None:
        self._arrays, self._route = arrays, route
        self._capacity = [int(arrays.capacity[arc.node]) for arc in route]
        self._asked = [float(capacity) for capacity in self._capacity]
        self._seconds_asked = [float(arrays.seconds_limit[arc.node]) for arc in route]
        self._loss_asked = arrays.loss_budget

    def rows(self, layers: Ints, precisions: Ints) -> Rows:
        """Program rows over variables (layers[v], precisions[v])."""
        rows, arrays = Rows(), self._arrays
        variables: list[list[int]] = [[] for _ in range(arrays.n_layers)]
        for variable, layer in enumerate(layers):
            variables[layer].append(variable)
        for of_layer in variables:
            rows.add(1.0, 1.0, ((v, 1.0) for v in of_layer))
        for arc, capacity, asked in zip(self._route, self._capacity, self._asked, strict=True):
            scale = 1.0 / max(1, capacity)
            here = (v for layer in range(arc.first, arc.end) for v in variables[layer])
            rows.add(
                -np.inf, asked * scale, ((v, float(arrays.n_bytes[layers[v], precisions[v]]) * scale) for v in here)
            )
        for k, arc in enumerate(self._route):
            if np.isfinite(self._seconds_asked[k]):
                scale = 1.0 / (abs(float(arrays.seconds_limit[arc.node])) or 1.0)
                busy = (v for layer in range(arc.first, arc.end) for v in variables[layer])
                terms = ((v, float(arrays.seconds[layers[v], arc.node, precisions[v]]) * scale) for v in busy)
                rows.add(-np.inf, self._seconds_asked[k] * scale, terms)
        if np.isfinite(self._loss_asked):
            scale = 1.0 / arrays.loss_budget if arrays.loss_budget > 0 else 1.0
            losses = arrays.loss[layers, precisions] * scale
            rows.add(-np.inf, self._loss_asked * scale, enumerate(losses.tolist()))
        return rows

    def keeps(self, picks: Ints) -> bool:
        """Whether a choice is within all limits; those that are not are tightened by the excess."""
        kept, arrays = True, self._arrays
        for k, arc in enumerate(self._route):
            layers = range(arc.first, arc.end)
            excess = sum(int(arrays.n_bytes[i, picks[i]]) for i in layers) - self._capacity[k]
            if excess > 0:
                self._asked[k] -= excess
                kept = False
            limit = float(arrays.seconds_limit[arc.node])
            late = sum(float(arrays.seconds[i, arc.node, picks[i]]) for i in layers) - limit
            if late > TOLERANCE * limit:
                self._seconds_asked[k] -= late
                kept = False
        excess_loss = total_loss(arrays, picks.tolist()) - arrays.loss_budget
        if excess_loss > TOLERANCE * arrays.loss_budget:
            self._loss_asked -= excess_loss
            kept = False
        return kept


def total_loss(arrays: Arrays, picks: Sequence[int]) -> float:
    """Of a precision for each layer."""
    return float(arrays.loss[np.arange(arrays.n_layers), list(picks)].sum())
