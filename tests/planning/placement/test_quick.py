"""One model placed quickly, precisions one change at a time, and placements of several models combined."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.placements import random_problem, random_several
from lamella.planning.placement import PlacementProblem
from lamella.planning.placement.arrays import Arc, Route, to_arrays, to_placement
from lamella.planning.placement.bits import best_bits
from lamella.planning.placement.result import account, violations
from lamella.planning.placement.segments import relax, segment_table
from lamella.planning.placement.several.combining import combine
from lamella.planning.placement.several.greedy_bits import greedy_bits
from lamella.planning.placement.several.prices import Shared
from lamella.planning.placement.several.problem import SeveralProblem, Tenant, Use, use
from lamella.planning.placement.several.quick import Choice, QuickPlanner
from lamella.planning.placement.solver import evaluate, first_price


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 5])
def test_a_choice_costs_and_takes_what_its_placement_does(seed: int) -> None:
    problem = random_several(seed, 2, 8, 8)
    tenant = problem.tenants[1]
    memory = np.array([node.memory_bytes for node in problem.cluster.nodes])
    choice = QuickPlanner(tenant).place(memory, np.full(len(memory), problem.busy_limit))
    assert choice is not None
    placement = to_placement(tenant.problem, choice.route, choice.picks)
    costs, taken = account(tenant.problem, placement), use([tenant], [placement])
    names = [node.name for node in problem.cluster.nodes]
    assert choice.cost == pytest.approx(tenant.weight * costs.objective)
    assert choice.n_bytes.tolist() == [taken.n_bytes.get(name, 0) for name in names]
    assert choice.busy == pytest.approx([taken.busy.get(name, 0.0) for name in names])


def _remainder(problem: SeveralProblem, tenant: Tenant, taken: Use) -> PlacementProblem:
    """One model's question where others have taken part of the nodes."""

    def seconds_left(name: str) -> float:
        left = problem.busy_limit - taken.busy.get(name, 0.0)
        return max(0.0, left) / tenant.requests_per_second if tenant.requests_per_second else math.inf

    nodes = tuple(
        replace(
            node,
            memory_bytes=max(0, node.memory_bytes - taken.n_bytes.get(node.name, 0)),
            seconds_limit=seconds_left(node.name),
        )
        for node in problem.cluster.nodes
    )
    return replace(tenant.problem, cluster=replace(problem.cluster, nodes=nodes))


@pytest.mark.parametrize("seed", [0, 1, 3, 5])
def test_the_second_model_keeps_what_the_first_one_leaves(seed: int) -> None:
    problem = random_several(seed, 6, 12, 6)
    first, second = (QuickPlanner(tenant) for tenant in problem.tenants[:2])
    memory = np.array([node.memory_bytes for node in problem.cluster.nodes])
    time = np.full(len(memory), problem.busy_limit)
    one = first.place(memory, time)
    assert one is not None
    other = second.place(memory - one.n_bytes, time - one.busy)
    assert other is not None
    taken = use(problem.tenants[:1], [to_placement(problem.tenants[0].problem, one.route, one.picks)])
    left = _remainder(problem, problem.tenants[1], taken)
    assert not violations(left, to_placement(left, other.route, other.picks))
    polished = second.polish(other, memory - one.n_bytes, time - one.busy)
    assert polished.cost <= other.cost
    assert not violations(left, to_placement(left, polished.route, polished.picks))


@pytest.mark.parametrize("seed", range(8))
def test_changes_one_by_one_keep_the_limits_and_come_near_the_best(seed: int) -> None:
    arrays = to_arrays(random_problem(seed, 20, 4))
    priced = evaluate(arrays, first_price(arrays))
    assert priced is not None
    picks = np.concatenate([relax(arrays, arc, priced.table).picks for arc in priced.route])
    found = greedy_bits(arrays, priced.route, picks, priced.price)
    best = best_bits(arrays, priced.route, gap=1e-6, most_nodes=2000)
    if best.found is None:
        assert found is None
        return
    assert found is not None
    layers, nodes = np.arange(20), np.concatenate([np.full(a.end - a.first, a.node) for a in priced.route])
    assert arrays.loss[layers, found[1]].sum() <= arrays.loss_budget
    for arc in priced.route:
        used = sum(int(arrays.n_bytes[i, found[1][i]]) for i in range(arc.first, arc.end))
        assert used <= arrays.capacity[arc.node]
    assert nodes.size == 20
    assert best.bound * (1 - 1e-9) <= found[0] <= best.found[0] * 1.1


def test_time_that_is_too_short_is_repaired_or_refused() -> None:
    arrays = to_arrays(random_problem(3, 12, 1))
    arrays = replace(arrays, capacity=np.array([2**50]), loss_budget=float(arrays.loss.max(axis=1).sum()))
    route: Route = (Arc(0, 0, 12),)
    table = segment_table(arrays, 1.0)
    slow = np.zeros(12, dtype=np.int64)  # fp16
    seconds = arrays.seconds[:, 0]
    least = float(seconds.min(axis=1).sum())
    assert seconds[:, 0].sum() > 1.01 * least
    assert np.isfinite(table.bound[0, 0, 12])
    tight = replace(arrays, seconds_limit=np.array([1.01 * least]))
    found = greedy_bits(tight, route, slow.copy(), 0.0)
    assert found is not None
    assert seconds[np.arange(12), found[1]].sum() <= 1.01 * least
    assert greedy_bits(replace(arrays, seconds_limit=np.array([0.99 * least])), route, slow.copy(), 0.0) is None


def _choice(cost: float, n_bytes: list[int], busy: list[float] | None = None) -> Choice:
    return Choice((Arc(0, 0, 1),), (int(cost),), cost, np.array(n_bytes), np.array(busy or [0.0] * len(n_bytes)))


FREE = Shared(np.zeros(2), np.zeros(2))
ROOM = np.array([10, 10]), np.array([1.0, 1.0])


def test_the_cheapest_that_fit_together_are_combined() -> None:
    a = [_choice(1, [8, 0]), _choice(3, [0, 8])]
    b = [_choice(1, [8, 0]), _choice(9, [0, 8])]
    found = combine({0: a, 1: b}, {0: a[0], 1: b[1]}, *ROOM, FREE)
    assert found == {0: a[1], 1: b[0]}


def test_time_is_a_limit_too() -> None:
    a = [_choice(1, [1, 0], [0.8, 0.0]), _choice(2, [0, 1], [0.0, 0.8])]
    b = [_choice(1, [1, 0], [0.8, 0.0]), _choice(4, [0, 1], [0.0, 0.8])]
    found = combine({0: a, 1: b}, {0: a[0], 1: b[1]}, *ROOM, FREE)
    assert found == {0: a[1], 1: b[0]}


def test_a_model_without_a_place_gets_one_at_others_cost() -> None:
    a = [_choice(1, [8, 8]), _choice(50, [8, 0])]
    b = [_choice(5, [0, 8])]
    assert combine({0: a, 1: b}, {0: a[0]}, *ROOM, FREE) == {0: a[1], 1: b[0]}


def test_where_nothing_is_better_the_known_ones_stay() -> None:
    a, b = [_choice(1, [8, 8])], [_choice(5, [0, 8])]
    assert combine({0: a, 1: b}, {0: a[0]}, *ROOM, FREE) == {0: a[0]}
