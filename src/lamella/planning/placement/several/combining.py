"""Of all placements seen of each model, one for each, so that together they keep the nodes' limits and cost least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lamella.planning.placement.arrays import Floats, Ints
from lamella.planning.placement.highs import Rows, row_prices, solve
from lamella.planning.placement.several.prices import Shared
from lamella.planning.placement.several.quick import Choice

MOST_SEEN = 40
"""Placements of a model that are looked at: those that cost least, with what they pay for memory and time."""
_GAP, _MOST_NODES = 1e-3, 1
_PRIZE = 10.0
"""For a model that gets a place: times the dearest placement of every model."""


def combine(
    seen: Mapping[int, Sequence[Choice]], known: Mapping[int, Choice], memory: Ints, busy: Floats, prices: Shared
) -> dict[int, Choice]:
    """A placement of each model, by its number; the known ones where the program finds nothing better.

    Args:
        seen: placements of each model.
        known: placements that keep the limits together; a model without one gets one if there is room.
        memory, busy: [N] bytes and share of the time that there are.
        prices: by which the most promising ones are chosen.
    """
    choices = [(k, choice) for k, of_model in seen.items() for choice in _promising(of_model, known.get(k), prices)]
    if not choices:
        return {}
    costs = np.array([choice.cost for _, choice in choices], dtype=np.float64)
    cutoff = sum(choice.cost for choice in known.values())
    prize = _PRIZE * float(costs.max(initial=0.0)) * len(seen)
    costs -= prize * np.array([k not in known for k, _ in choices])
    rows = _limits(choices, known, memory, busy)
    answer = solve(costs, rows, gap=_GAP, most_nodes=_MOST_NODES, cutoff=cutoff)
    if answer.values is None:
        return dict(known)
    found = {k: choice for (k, choice), value in zip(choices, answer.values, strict=True) if value > 0.5}
    used, taken = sum(c.n_bytes for c in found.values()), sum(c.busy for c in found.values())
    kept = found.keys() >= known.keys() and bool(np.all(used <= memory) and np.all(taken <= busy))
    return found if kept else dict(known)


def prices_of(seen: Mapping[int, Sequence[Choice]], memory: Ints, busy: Floats) -> Shared | None:
    """Prices at which each model would just mix the placements that were seen of it; None where some has none.

    A placement that costs less at these prices than those seen may be a part of better choices (column generation;
    Dantzig, Wolfe 1960).  A model may go without a place, at the dearest price.
    """
    choices = [(k, choice) for k, of_model in seen.items() for choice in of_model]
    if not all(seen.values()):
        return None
    costs = np.array([choice.cost for _, choice in choices], dtype=np.float64)
    without = np.full(len(seen), _PRIZE * float(costs.max()))
    rows, models = Rows(), np.array([model for model, _ in choices])
    for i, model in enumerate(seen):
        columns = [*np.flatnonzero(models == model).tolist(), len(choices) + i]
        rows.add(1.0, 1.0, ((column, 1.0) for column in columns))
    limits: list[tuple[int, int, float]] = []
    for kind, taken, limit in (
        (0, np.array([choice.n_bytes for _, choice in choices], dtype=np.float64), memory.astype(np.float64)),
        (1, np.array([choice.busy for _, choice in choices]), busy),
    ):
        for node in np.flatnonzero(taken.any(axis=0) & (limit > 0)).tolist():
            column = taken[:, node] / limit[node]
            rows.add(-np.inf, 1.0, ((int(v), float(column[v])) for v in np.flatnonzero(column)))
            limits.append((kind, node, float(limit[node])))
    found = row_prices(np.concatenate([costs, without]), rows)
    if found is None:
        return None
    prices = np.zeros((2, len(memory)))
    for (kind, node, scale), price in zip(limits, found[len(seen) :], strict=True):
        prices[kind, node] = max(0.0, float(price)) / scale
    return Shared(prices[0], prices[1])


def _limits(choices: Sequence[tuple[int, Choice]], known: Mapping[int, Choice], memory: Ints, busy: Floats) -> Rows:
    """One placement of each model that has one, at most one of the others; memory and time of each node."""
    rows = Rows()
    models = np.array([model for model, _ in choices])
    for model in dict.fromkeys(models.tolist()):
        rows.add(1.0 if model in known else 0.0, 1.0, ((int(v), 1.0) for v in np.flatnonzero(models == model)))
    of_memory = np.array([choice.n_bytes for _, choice in choices]) / np.maximum(1, memory)
    of_time = np.array([choice.busy for _, choice in choices]) / np.where(busy > 0, busy, 1.0)
    for taken in (*of_memory.T, *of_time.T):
        if taken.any():
            rows.add(-np.inf, 1.0, ((int(v), float(taken[v])) for v in np.flatnonzero(taken)))
    return rows


def _promising(seen: Sequence[Choice], known: Choice | None, prices: Shared) -> list[Choice]:
    def charged(choice: Choice) -> float:
        return choice.cost + float(prices.memory @ choice.n_bytes + prices.time @ choice.busy)

    cheapest = sorted(seen, key=charged)[:MOST_SEEN]
    return cheapest if known is None or any(choice is known for choice in cheapest) else [*cheapest, known]
