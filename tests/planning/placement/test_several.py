"""Several models on the same nodes: against all choices of placements, and against each other."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.placements import random_several
from lamella.core.errors import InvalidRequest, NoPlacement
from lamella.planning.placement import Cluster, Layer, Link, Node, Option, PlacementProblem, Request, Speed
from lamella.planning.placement.result import account
from lamella.planning.placement.several import SeveralProblem, Tenant, place_several, solve_several
from lamella.planning.placement.several.combining import prices_of
from lamella.planning.placement.several.joint_bits import joint_bits
from lamella.planning.placement.several.prices import find_prices
from lamella.planning.placement.several.problem import several_violations, total
from lamella.planning.placement.several.quick import Choice, QuickPlanner
from tests.planning.placement.small import every_placement


def _problem(seed: int) -> SeveralProblem:
    """Two models of two and three layers on two nodes, which mostly hold both."""
    draw = random.Random(seed)
    names = ("int8", "int4")
    nodes = tuple(
        Node(
            f"n{i}",
            draw.randint(120, 400),
            {p: Speed(draw.uniform(0, 0.01), draw.uniform(0.05, 0.3)) for p in names},
            draw.uniform(0, 0.1),
            draw.randint(0, 20),
        )
        for i in range(2)
    )
    links = {("n0", "n1"): Link(1000.0, 0.05)}
    cluster = Cluster(nodes, "n0", links)
    return SeveralProblem(tuple(_tenant(draw, f"m{k}", cluster, 2 + k) for k in range(2)), draw.choice([1.0, 0.7]))


def _tenant(draw: random.Random, name: str, cluster: Cluster, n_layers: int) -> Tenant:
    layers = tuple(
        Layer(
            {"int8": Option(draw.randint(60, 100), 0.1), "int4": Option(draw.randint(30, 60), draw.uniform(0.2, 1))},
            activation_bytes=10,
        )
        for _ in range(n_layers)
    )
    problem = PlacementProblem(layers, cluster, Request(8, 4), draw.uniform(0.4, 1.0) * n_layers, 10, 0.1)
    return Tenant(name, problem, draw.choice([0.0, draw.uniform(0.1, 0.6)]), draw.choice([1.0, 3.0]))


def _best(problem: SeveralProblem) -> float:
    each = [list(every_placement(tenant.problem)) for tenant in problem.tenants]
    costs = [[account(t.problem, p) for p in ps] for t, ps in zip(problem.tenants, each, strict=True)]
    choices = itertools.product(*(range(len(placements)) for placements in each))
    return min(
        (
            total(problem, [costs[k][i] for k, i in enumerate(choice)])
            for choice in choices
            if not several_violations(problem, [each[k][i] for k, i in enumerate(choice)])
        ),
        default=math.inf,
    )


@pytest.mark.parametrize("seed", range(8))
def test_program_finds_the_best_of_all_choices_and_the_heuristic_stays_between_bound_and_limits(seed: int) -> None:
    problem = _problem(seed)
    best = _best(problem)
    assert find_prices(problem).bound <= best * (1 + 1e-9)
    if best == math.inf:
        for planner in (solve_several, place_several):
            with pytest.raises(NoPlacement):
                planner(problem)
        return
    exact = solve_several(problem, gap=1e-6)
    assert exact.objective == pytest.approx(best, rel=1e-5)
    assert exact.gap <= 1e-4
    found = place_several(problem, tries=25)
    assert not several_violations(problem, found.placements)
    assert found.bound <= best * (1 + 1e-9) <= found.objective * (1 + 2e-9)
    assert found.objective <= best * 1.05


def test_six_models_on_twenty_nodes_within_all_limits() -> None:
    problem = random_several(0, 6, 20, 8)
    found = place_several(problem, tries=25)
    assert not several_violations(problem, found.placements)
    assert 0 < found.bound <= found.objective
    assert found.gap < 0.5


def test_more_tries_find_better_placements_and_equal_questions_get_equal_answers() -> None:
    problem = random_several(2, 6, 12, 8)
    few, many, again = (place_several(problem, tries=tries) for tries in (1, 20, 20))
    assert many.objective < few.objective
    assert many == again


def test_models_leave_room_for_one_that_would_find_none() -> None:
    problem = random_several(6, 6, 12, 8)  # at one to two times the prices five of six find a place
    assert not several_violations(problem, place_several(problem, tries=20).placements)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_precisions_of_all_models_at_once_are_no_worse_and_within_all_limits(seed: int) -> None:
    problem = random_several(seed, 4, 8, 6)
    planners = [QuickPlanner(tenant) for tenant in problem.tenants]
    memory = np.array([node.memory_bytes for node in problem.cluster.nodes], dtype=np.int64)
    busy = np.full(len(memory), problem.busy_limit)
    before: dict[int, Choice] = {}
    for k, planner in enumerate(planners):  # the first ones take what is best for them
        left = memory - sum(c.n_bytes for c in before.values()), busy - sum(c.busy for c in before.values())
        choice = planner.place(*left)
        if choice is not None:
            before[k] = choice
    after = joint_bits(planners, before, memory, busy)
    assert after is not None
    assert {k: c.route for k, c in after.items()} == {k: c.route for k, c in before.items()}
    assert sum(c.cost for c in after.values()) < sum(c.cost for c in before.values())
    assert np.all(sum(c.n_bytes for c in after.values()) <= memory)
    assert np.all(sum(c.busy for c in after.values()) <= busy)
    for k, choice in after.items():
        arrays = planners[k].arrays
        assert arrays.loss[np.arange(arrays.n_layers), list(choice.picks)].sum() <= arrays.loss_budget


def test_what_one_more_byte_is_worth_while_placements_are_mixed() -> None:
    """Two models, each for 1 in 10 bytes or for 3 in 5, on 12 bytes: 2 are saved for 5 bytes more."""
    seen = {k: [_choice(1.0, 10), _choice(3.0, 5)] for k in range(2)}
    found = prices_of(seen, np.array([12], dtype=np.int64), np.array([1.0]))
    assert found is not None
    assert (found.memory.tolist(), found.time.tolist()) == ([pytest.approx(0.4)], [0.0])
    plenty = prices_of(seen, np.array([20], dtype=np.int64), np.array([1.0]))
    assert plenty is not None
    assert plenty.memory.tolist() == [0.0]
    assert prices_of({0: []}, np.array([12], dtype=np.int64), np.array([1.0])) is None


def _choice(cost: float, n_bytes: int) -> Choice:
    return Choice((), (n_bytes,), cost, np.array([n_bytes], dtype=np.int64), np.zeros(1))


def test_a_busy_node_is_left_to_others() -> None:
    problem = _problem(3)
    slow = replace(problem, busy_limit=1e-9)
    busy = replace(slow, tenants=tuple(replace(t, requests_per_second=1.0) for t in slow.tenants))
    with pytest.raises(NoPlacement):
        solve_several(busy)
    with pytest.raises(NoPlacement):
        place_several(busy)


def test_models_of_different_clusters_are_refused() -> None:
    problem = _problem(0)
    first = problem.tenants[0]
    other = replace(first.problem, cluster=replace(first.problem.cluster, coordinator="n1"))
    with pytest.raises(InvalidRequest, match="another cluster"):
        place_several(replace(problem, tenants=(first, replace(first, problem=other))))
