"""The precisions of all models at once, each on the route that it has.

Placed one after another, a model takes what the others leave.  Here what one gives up on a node may go to another one
that gains more by it: an integer program with a row for each layer, each model's loss budget, and each node's memory
and time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lamella.planning.placement.arrays import Floats, Ints, Route, nodes_of
from lamella.planning.placement.highs import Rows, solve
from lamella.planning.placement.several.quick import Choice, QuickPlanner

_GAP, _MOST_NODES = 1e-4, 20
_FULL = 1 - 1e-8
"""Of a limit: HiGHS keeps rows to 1e-9, and not one byte more may be taken than there is."""


def joint_bits(
    planners: Mapping[int, QuickPlanner], routes: Mapping[int, Route], memory: Ints, busy: Floats, cutoff: float
) -> dict[int, Choice] | None:
    """Placements on these routes with the best precisions for all; None where none were found that cost less.

    Args:
        planners: of the models, by number.
        routes: of each.
        memory, busy: [N] bytes and share of the time that there are.
        cutoff: what all together must cost less than.
    """
    options = {k: _Options(planners[k], route) for k, route in routes.items()}
    if not options:
        return None
    costs = np.concatenate([of_model.costs for of_model in options.values()])
    beside = sum(of_model.cost_beside for of_model in options.values())
    rows = _limits(list(options.values()), memory, busy)
    answer = solve(costs, rows, gap=_GAP, most_nodes=_MOST_NODES, cutoff=cutoff - beside)
    if answer.values is None:
        return None
    parts = np.split(answer.values, np.cumsum([len(of_model.costs) for of_model in options.values()])[:-1])
    chosen = {k: of.choice(values) for (k, of), values in zip(options.items(), parts, strict=True)}
    found = {k: choice for k, choice in chosen.items() if choice is not None}
    used, taken = sum(c.n_bytes for c in found.values()), sum(c.busy for c in found.values())
    kept = len(found) == len(chosen) and bool(np.all(used <= memory) and np.all(taken <= busy))
    return found if kept and sum(c.cost for c in found.values()) < cutoff else None


class _Options:
    """What the layers of one model may be stored as, on the nodes of its route: one column for each."""

    def __init__(self, planner: QuickPlanner, route: Route) -> None:
        arrays, nodes = planner.arrays, nodes_of(route)
        costs = planner.weight * arrays.cost[np.arange(arrays.n_layers), nodes]
        self.layers, self._precisions = np.nonzero(np.isfinite(costs) & np.isfinite(arrays.loss))
        here = self.layers, self._precisions
        self.nodes, self.costs = nodes[self.layers], costs[here]
        self.n_bytes, self.loss = arrays.n_bytes[here], arrays.loss[here]
        self.busy = planner.rate * arrays.seconds[self.layers, self.nodes, self._precisions]
        self.loss_budget = arrays.loss_budget
        self.cost_beside, self.bytes_beside, self.busy_beside = planner.beside(route)
        self._planner, self._route = planner, route

    def choice(self, values: Floats) -> Choice | None:
        """Of the columns that were chosen; None where they lose too much."""
        picked = values > 0.5
        if float(self.loss[picked].sum()) > self.loss_budget:
            return None
        return self._planner.choice(self._route, self._precisions[picked])


def _limits(options: Sequence[_Options], memory: Ints, busy: Floats) -> Rows:
    """One precision for each layer, each model's loss, each node's memory and time."""
    rows, first = Rows(), 0
    for of_model in options:
        columns = first + np.arange(len(of_model.costs))
        for layer in range(int(of_model.layers.max()) + 1):
            rows.add(1.0, 1.0, ((int(c), 1.0) for c in columns[of_model.layers == layer]))
        _at_most(rows, columns, of_model.loss, of_model.loss_budget)
        first += len(columns)
    nodes = np.concatenate([of_model.nodes for of_model in options])
    n_bytes = np.concatenate([of_model.n_bytes for of_model in options]).astype(np.float64)
    seconds = np.concatenate([of_model.busy for of_model in options])
    left_bytes = memory - sum(of_model.bytes_beside for of_model in options)
    left_busy = busy - sum(of_model.busy_beside for of_model in options)
    for node in np.unique(nodes):
        columns = np.flatnonzero(nodes == node)
        _at_most(rows, columns, n_bytes[columns], float(left_bytes[node]))
        _at_most(rows, columns, seconds[columns], float(left_busy[node]))
    return rows


def _at_most(rows: Rows, columns: Ints, values: Floats, limit: float) -> None:
    """Their sum within the limit, which is scaled to 1; nothing where they are nothing."""
    if values.any():
        scale = limit if limit > 0 else 1.0
        rows.add(-np.inf, _FULL if limit > 0 else 0.0, zip(columns.tolist(), (values / scale).tolist(), strict=True))
