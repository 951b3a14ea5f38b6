"""Many models on many nodes: one after another at prices, then again and again on what the others leave.

1. Prices on memory and time (``prices``) say what is scarce, and bound the objective.
2. Models are placed one after another, the largest first, or another order, each by the fast planner on what is left.
   It pays the prices, so that it leaves scarce nodes to those who gain more by them.
3. Each model is taken out and placed again at true cost; then pairs, in the other order.  What is better is kept.

Nothing is drawn from a clock: equal questions get equal answers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from lamella.core.errors import NoPlacement
from lamella.planning.placement.arrays import to_arrays, to_placement
from lamella.planning.placement.result import Placement, account, violations
from lamella.planning.placement.several.prices import Dual, Shared, buffers_of, charge, find_prices
from lamella.planning.placement.several.problem import (
    SeveralProblem,
    SeveralSolution,
    Tenant,
    check_several,
    remainder,
    several_violations,
    total,
    use,
)
from lamella.planning.placement.solver import search_few

ROUNDS = 3
MOST_PAIRS = 20
"""Tried in a round."""
FEW, STARTS = 4, 6
"""So many models are begun with several times, and each outcome is improved."""
_NODES, _GAP, _BRANCHES = 8, 0.005, 30
"""Of one model's placement: nodes looked at, and how well it is searched."""
SHAKEN, _SPREAD = 12, 1.5
"""Further beginnings for few models, with prices times lognormal factors of this spread."""
_WORTHWHILE = 1e-6
_SHARES = (3.0, 1.0, 0.5, 0.0)
"""Of the prices, that models pay while they are placed one after another."""


@dataclass(frozen=True, slots=True)
class _State:
    placements: tuple[Placement, ...]
    objective: float


def place_several(problem: SeveralProblem, rounds: int = ROUNDS, seed: int = 0) -> SeveralSolution:
    """Placements within all limits, good ones, and a bound.

    Args:
        rounds: of placing again.
        seed: of orders and pairs, where there are too many to try all.

    Raises:
        InvalidRequest: the question has no meaning.
        NoPlacement: the models do not fit together, or no order was found in which they do.
    """
    check_several(problem)
    draw = random.Random(seed)
    dual = find_prices(problem)
    if dual.bound == math.inf:
        raise NoPlacement("one of the models fits on no nodes at all, even alone")
    starts = _first(problem, dual.prices, draw)
    if not starts:
        raise NoPlacement(
            f"no order was found in which {len(problem.tenants)} models fit on {len(problem.cluster.nodes)} nodes"
        )
    best = min((_settle(problem, start, rounds, draw) for start in starts), key=lambda state: state.objective)
    dual = max(dual, find_prices(problem, target=best.objective), key=lambda d: d.bound)
    return _solution(problem, best, dual)


def _solution(problem: SeveralProblem, state: _State, dual: Dual) -> SeveralSolution:
    broken = several_violations(problem, state.placements)
    assert not broken, broken
    accounts = tuple(account(t.problem, p) for t, p in zip(problem.tenants, state.placements, strict=True))
    bound = min(dual.bound, state.objective)
    return SeveralSolution(state.placements, accounts, state.objective, bound, "heuristic")


def _settle(problem: SeveralProblem, state: _State, rounds: int, draw: random.Random) -> _State:
    """Improve until a round brings nothing."""
    for _ in range(rounds):
        better = _improve(problem, state, draw)
        if better.objective >= state.objective * (1 - _WORTHWHILE):
            return better
        state = better
    return state


def _first(problem: SeveralProblem, prices: Shared, draw: random.Random) -> list[_State]:
    """The best different outcomes of some orders, each at some share of the prices: one where there are many models."""
    found: list[_State] = []
    few = len(problem.tenants) <= FEW
    starts = [(order, _scaled(prices, share)) for order in _orders(problem, draw) for share in _SHARES]
    numbers = range(len(problem.tenants))
    starts += [(draw.sample(numbers, len(numbers)), _shaken(prices, draw)) for _ in range(SHAKEN if few else 0)]
    for order, paid in starts:
        state = _one_after_another(problem, order, paid)
        found += [state] if state and state not in found else []
    return sorted(found, key=lambda state: state.objective)[: STARTS if few else 1]


def _scaled(prices: Shared, share: float) -> Shared:
    return Shared(prices.memory * share, prices.time * share)


def _shaken(prices: Shared, draw: random.Random) -> Shared:
    """Each node's prices times a random factor: other nodes are spared each time."""
    factors = np.array([draw.lognormvariate(0, _SPREAD) for _ in prices.memory])
    return Shared(prices.memory * factors, prices.time * factors)


def _orders(problem: SeveralProblem, draw: random.Random) -> Iterator[Sequence[int]]:
    """By size, by how much their time counts, and at random."""
    numbers = list(range(len(problem.tenants)))
    sizes = [_least_bytes(tenant) for tenant in problem.tenants]
    yield sorted(numbers, key=lambda k: -sizes[k])
    yield sorted(numbers, key=lambda k: -problem.tenants[k].weight * sizes[k])
    if len(numbers) <= FEW:
        yield from (draw.sample(numbers, len(numbers)) for _ in range(2))


def _least_bytes(tenant: Tenant) -> int:
    problem = tenant.problem
    return sum(min(problem.layer_bytes(i, p) for p in layer.options) for i, layer in enumerate(problem.layers))


def _one_after_another(problem: SeveralProblem, order: Sequence[int], prices: Shared) -> _State | None:
    placements: dict[int, Placement] = {}
    for k in order:
        found = _place(problem, k, placements, prices)
        if found is None:
            return None
        placements[k] = found
    return _state(problem, placements)


def _improve(problem: SeveralProblem, state: _State, draw: random.Random) -> _State:
    """Place each model again on what the others leave, then pairs."""
    numbers = range(len(problem.tenants))
    pairs = list(combinations(numbers, 2))
    chosen = pairs if len(pairs) <= MOST_PAIRS else draw.sample(pairs, MOST_PAIRS)
    for group in [*((k,) for k in numbers), *chosen, *((b, a) for a, b in chosen)]:
        state = _again(problem, state, group)
    return state


def _again(problem: SeveralProblem, state: _State, group: Sequence[int]) -> _State:
    placements = {k: placement for k, placement in enumerate(state.placements) if k not in group}
    for k in group:
        found = _place(problem, k, placements, None)
        if found is None:
            return state
        placements[k] = found
    tried = _state(problem, placements)
    return tried if tried.objective < state.objective else state


def _state(problem: SeveralProblem, placements: dict[int, Placement]) -> _State:
    ordered = tuple(placements[k] for k in range(len(problem.tenants)))
    accounts = [account(t.problem, p) for t, p in zip(problem.tenants, ordered, strict=True)]
    return _State(ordered, total(problem, accounts))


def _place(
    problem: SeveralProblem, number: int, others: dict[int, Placement], prices: Shared | None
) -> Placement | None:
    """One model on what others leave, at prices or at true cost."""
    tenant = problem.tenants[number]
    taken = use([problem.tenants[k] for k in others], list(others.values()))
    question = remainder(problem, tenant, taken)
    arrays = to_arrays(question)
    if prices is not None:
        arrays = charge(arrays, prices, tenant.weight, tenant.requests_per_second, buffers_of(problem))
    best = search_few(arrays, _NODES, _GAP, _BRANCHES)
    if best is None:
        return None
    placement = to_placement(question, best[1], best[2].tolist())
    return None if violations(question, placement) else placement
