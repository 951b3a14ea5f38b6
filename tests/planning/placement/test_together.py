"""Models placed together: routes, bounds and precisions of their combinations, against all there are."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.placements import random_several
from lamella.planning.placement.arrays import Arc, Floats, Ints, Route
from lamella.planning.placement.several import SeveralProblem
from lamella.planning.placement.several.ascent import Ascent
from lamella.planning.placement.several.batch_bits import Combinations, Layers
from lamella.planning.placement.several.joint_bits import joint_bits
from lamella.planning.placement.several.neighbourhood import Effort, place_together
from lamella.planning.placement.several.prices import find_prices
from lamella.planning.placement.several.quick import Choice, QuickPlanner
from lamella.planning.placement.several.route_pools import Pool, pool_of, promising_routes
from lamella.planning.placement.several.screening import promising_pairs, screen_all
from tests.planning.placement.small import best_of_several, small_several

_EFFORT = Effort(routes=1000, branches=1000, programs=1000)


def test_steps_reach_the_prices_that_bound_most_of_each_question() -> None:
    """3 - (x - 1)^2 - 2 |y - 2| and a half of it, from 0 and 0."""
    ascent, scale = Ascent(np.zeros((2, 2)), math.inf), np.array([1.0, 0.5])
    for _ in range(300):
        x, y = ascent.prices.T
        slopes = np.stack([-2 * (x - 1), -2 * np.sign(y - 2)], axis=1) * scale[:, None]
        ascent.step(scale * (3 - (x - 1) ** 2 - 2 * abs(y - 2)), slopes)
    assert ascent.best == pytest.approx([3.0, 1.5], abs=0.01)
    assert ascent.at_best[0] == pytest.approx([1.0, 2.0], abs=0.1)


def _every_route(n_layers: int, nodes: int) -> list[Route]:
    return [
        tuple(Arc(n, a, b) for n, a, b in zip(chosen, (0, *cuts), (*cuts, n_layers), strict=True))
        for n_segments in range(1, min(n_layers, nodes) + 1)
        for cuts in itertools.combinations(range(1, n_layers), n_segments - 1)
        for chosen in itertools.permutations(range(nodes), n_segments)
    ]


def _total(bound: Floats, route: Route) -> float:
    return float(sum(bound[arc.node, arc.first, arc.end] for arc in route))


def test_all_routes_are_found_where_there_are_no_more_than_asked_for() -> None:
    draw = np.random.default_rng(1)
    bound = np.where(draw.random((3, 6, 6)) < 0.8, draw.random((3, 6, 6)), np.inf)
    expected = {route: _total(bound, route) for route in _every_route(5, 3) if _total(bound, route) < math.inf}
    found = promising_routes(bound, 1000)
    assert set(found) == expected.keys()
    assert len(found) == len(expected) > 20
    assert [_total(bound, route) for route in found] == pytest.approx(sorted(expected.values()))


def test_few_routes_are_good_ones() -> None:
    bound = np.random.default_rng(2).random((5, 9, 9))
    totals = sorted(_total(bound, route) for route in _every_route(8, 5))
    found = promising_routes(bound, 40)
    assert len(found) == 40
    assert _total(bound, found[0]) == pytest.approx(totals[0])
    assert _total(bound, found[-1]) <= totals[400]


def test_no_routes_where_a_layer_runs_nowhere() -> None:
    bound = np.full((2, 3, 3), np.inf)
    bound[0, 0, 1] = 1.0
    assert promising_routes(bound, 10) == []


def _limits(problem: SeveralProblem) -> tuple[Ints, Floats]:
    memory = np.array([node.memory_bytes for node in problem.cluster.nodes], dtype=np.int64)
    return memory, np.full(len(memory), problem.busy_limit)


def _pools(problem: SeveralProblem) -> tuple[list[QuickPlanner], list[Pool]]:
    """Of all routes."""
    planners = [QuickPlanner(tenant) for tenant in problem.tenants]
    nodes = len(problem.cluster.nodes)
    return planners, [pool_of(planner, _every_route(planner.arrays.n_layers, nodes)) for planner in planners]


def _together(problem: SeveralProblem, found: dict[int, Choice] | None) -> float:
    """What placements cost, which must keep all limits."""
    if found is None:
        return math.inf
    memory, busy = _limits(problem)
    assert np.all(sum(choice.n_bytes for choice in found.values()) <= memory)
    assert np.all(sum(choice.busy for choice in found.values()) <= busy)
    for k, tenant in enumerate(problem.tenants):
        arrays = QuickPlanner(tenant).arrays
        assert arrays.loss[np.arange(arrays.n_layers), found[k].picks].sum() <= arrays.loss_budget
    return sum(choice.cost for choice in found.values())


@pytest.mark.parametrize("seed", range(12))
def test_two_models_get_the_best_of_all_placements(seed: int) -> None:
    problem = small_several(seed)
    planners, pools = _pools(problem)
    of_models = dict(enumerate(planners)), dict(enumerate(pools))
    found = _together(problem, place_together(*of_models, *_limits(problem), math.inf, _EFFORT))
    assert found == pytest.approx(best_of_several(problem), rel=2e-4)
    if found < math.inf:
        assert place_together(*of_models, *_limits(problem), found, _EFFORT) is None


def _three(seed: int) -> tuple[SeveralProblem, list[QuickPlanner], list[Pool]]:
    """Three models of two and three layers on three nodes with some room."""
    problem = random_several(seed, 3, 3, 3)
    nodes = tuple(replace(node, memory_bytes=node.memory_bytes * 2) for node in problem.cluster.nodes)
    cluster = replace(problem.cluster, nodes=nodes)
    tenants = (replace(t, problem=replace(t.problem, cluster=cluster)) for t in problem.tenants)
    problem = replace(problem, tenants=tuple(tenants))
    return problem, *_pools(problem)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bounds_on_combinations_hold_and_precisions_keep_all_limits(seed: int) -> None:
    """Against the integer program, for some combinations of three models' routes."""
    problem, planners, pools = _three(seed)
    nodes, limits = np.arange(len(problem.cluster.nodes)), _limits(problem)
    layers = Layers(planners, nodes, *limits)
    which = np.stack([np.random.default_rng(seed).integers(len(pool.routes), size=60) for pool in pools], axis=1)
    dear = 10 * find_prices(problem).bound
    screened = screen_all(layers, pools, np.zeros_like(layers.limits), dear, 20)
    combinations = Combinations(layers, pools, which)
    combinations.bound(screened.prices, dear)
    kept = {tuple(numbers.tolist()): c for c, numbers in enumerate(combinations.which)}
    costs, feasible = combinations.settle(), 0
    for numbers in map(tuple, which.tolist()):
        routes = {k: pool.routes[r] for k, (pool, r) in enumerate(zip(pools, numbers, strict=True))}
        best = _together(problem, joint_bits(dict(enumerate(planners)), routes, *limits, dear))
        if numbers in kept:
            c = kept[numbers]
            assert combinations.bounds[c] <= best * (1 + 1e-6)
            assert screened.bound <= best * (1 + 1e-6)
            if costs[c] < math.inf:
                feasible += 1
                picks = [combinations.picks[c, layers.of(k)] for k in routes]
                settled = {k: planners[k].choice(route, picks[k]) for k, route in routes.items()}
                assert _together(problem, settled) == pytest.approx(costs[c])
                assert combinations.bounds[c] <= costs[c] * (1 + 1e-9)
        else:
            assert best == math.inf
    assert feasible >= 3


@pytest.mark.parametrize("seed", [0, 1])
def test_pairs_left_out_cost_no_less_than_the_cutoff(seed: int) -> None:
    problem, planners, pools = _three(seed)
    third = pools[2].only(0)
    layers = Layers(planners, np.arange(len(problem.cluster.nodes)), *_limits(problem))
    cutoff = 1.5 * find_prices(problem).bound
    screened = screen_all(layers, (*pools[:2], third), np.zeros_like(layers.limits), cutoff, 20)
    promising = {tuple(row) for row in promising_pairs(layers, screened, cutoff)[:, :2].tolist()}
    for one, other in itertools.product(range(0, len(pools[0].routes), 4), range(0, len(pools[1].routes), 4)):
        if (one, other) not in promising:
            routes = {0: pools[0].routes[one], 1: pools[1].routes[other], 2: third.routes[0]}
            assert joint_bits(dict(enumerate(planners)), routes, *_limits(problem), cutoff) is None
