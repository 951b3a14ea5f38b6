"""The precisions of all models at once, each on the route that it has.

Placed one after another, a model takes what the others leave.  Here what one gives up on a node may go to another one
that gains more by it: an integer program with a row for each layer, each model's loss budget, and each node's memory
and time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lamella.planning.placement.arrays import Floats, Ints, nodes_of
from lamella.planning.placement.highs import Rows, solve
from lamella.planning.placement.several.quick import Choice, QuickPlanner

_GAP, _MOST_NODES = 1e-4, 20
_FULL = 1 - 1e-8
"""Of a limit: HiGHS keeps rows to 1e-9, and not one byte more may be taken than there is."""


def joint_bits(
    planners: Sequence[QuickPlanner], choices: Mapping[int, Choice], memory: Ints, busy: Floats
) -> dict[int, Choice] | None:
    """The same routes with the best precisions for all; None where none were found that cost less.

    Args:
        planners: of all models, by number.
        choices: placements that keep the limits together.
        memory, busy: [N] bytes and share of the time that there are.
    """
    options = [_Options(planners[k], choice) for k, choice in choices.items()]
    if not options:
        return None
    costs = np.concatenate([of_model.costs for of_model in options])
    cutoff = sum(of_model.cost_now for of_model in options)
    answer = solve(costs, _limits(options, memory, busy), gap=_GAP, most_nodes=_MOST_NODES, cutoff=cutoff)
    if answer.values is None:
        return None
    chosen = np.split(answer.values, np.cumsum([len(of_model.costs) for of_model in options])[:-1])
    found = {k: of.choice(values) for (k, of, values) in zip(choices, options, chosen, strict=True)}
    picked = [choice for choice in found.values() if choice is not None]
    used, taken = sum(c.n_bytes for c in picked), sum(c.busy for c in picked)
    kept = len(picked) == len(found) and bool(np.all(used <= memory) and np.all(taken <= busy))
    is_better = sum(c.cost for c in picked) < sum(c.cost for c in choices.values())
    return dict(zip(found, picked, strict=True)) if kept and is_better else None


class _Options:
    """What the layers of one model may be stored as, on the nodes of its route: one column for each."""

    def __init__(self, planner: QuickPlanner, choice: Choice) -> None:
        arrays, nodes = planner.arrays, nodes_of(choice.route)
        rows = np.arange(arrays.n_layers)
        costs = planner.weight * arrays.cost[rows, nodes]
        self.layers, self._precisions = np.nonzero(np.isfinite(costs) & np.isfinite(arrays.loss))
        here = self.layers, self._precisions
        self.nodes, self.costs = nodes[self.layers], costs[here]
        self.n_bytes, self.loss = arrays.n_bytes[here], arrays.loss[here]
        self.busy = planner.rate * arrays.seconds[self.layers, self.nodes, self._precisions]
        picks = np.array(choice.picks)
        self.cost_now = float(costs[rows, picks].sum())
        self.loss_budget = arrays.loss_budget
        beside = np.zeros_like(choice.n_bytes), np.zeros_like(choice.busy)
        np.add.at(beside[0], nodes, arrays.n_bytes[rows, picks])
        np.add.at(beside[1], nodes, planner.rate * arrays.seconds[rows, nodes, picks])
        self.bytes_beside, self.busy_beside = choice.n_bytes - beside[0], choice.busy - beside[1]
        self._planner, self._route = planner, choice.route

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
