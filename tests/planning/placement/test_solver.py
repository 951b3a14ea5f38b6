"""The fast planner: as good as trying everything, and never better than its own bound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.placements import random_problem
from lamella.core.errors import InvalidRequest, NoPlacement
from lamella.planning.placement import Cluster, Layer, Node, Option, Placement, PlacementProblem, Request, Speed, place
from lamella.planning.placement.arrays import Arc, Route, route_cost, to_arrays
from lamella.planning.placement.cluster import TRANSFERS, Transfer
from lamella.planning.placement.program import solve_program
from lamella.planning.placement.result import account, violations
from lamella.planning.placement.routes import best_in_order, best_route, totals_through
from lamella.planning.placement.segments import segment_table
from lamella.planning.placement.tightening import TightTables
from tests.planning.placement.small import best_by_trial, every_placement, small_problem

seeds = st.integers(0, 10**6)
transfers = st.sampled_from(TRANSFERS)


@settings(max_examples=60, deadline=None)
@given(seeds, transfers)
def test_as_good_as_the_best_of_all_placements(seed: int, transfer: Transfer) -> None:
    problem = small_problem(seed, transfer)
    best = best_by_trial(problem)
    if best is None:
        with pytest.raises(NoPlacement, match="no placement keeps all limits"):
            place(problem, gap=0.0)
        return
    found = place(problem, gap=0.0)
    assert found.account.objective == pytest.approx(best, rel=1e-6)
    assert found.gap <= 1e-6
    assert not violations(problem, found.placement)


@settings(max_examples=40, deadline=None)
@given(seeds, transfers, st.sampled_from([0.0, 0.05, 0.5]))
def test_the_bound_holds_and_the_gap_is_kept(seed: int, transfer: Transfer, gap: float) -> None:
    problem = small_problem(seed, transfer)
    best = best_by_trial(problem)
    if best is None:
        return
    found = place(problem, gap=gap)
    assert found.bound <= best * (1 + 1e-9)
    assert best * (1 - 1e-9) <= found.account.objective <= best * (1 + gap) * (1 + 1e-6)


@settings(max_examples=40, deadline=None)
@given(seeds, transfers)
def test_the_reference_program_agrees(seed: int, transfer: Transfer) -> None:
    problem = small_problem(seed, transfer)
    best = best_by_trial(problem)
    if best is None:
        with pytest.raises(NoPlacement, match="no placement keeps all limits"):
            solve_program(problem)
        return
    found = solve_program(problem, time_limit_seconds=600)  # the machine may stall
    assert found.account.objective == pytest.approx(best, rel=1e-5)
    assert found.gap <= 1e-5


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_twelve_layers_on_three_nodes_as_the_reference_program(transfer: Transfer) -> None:
    problem = random_problem(3, 12, 3, transfer)
    exact = solve_program(problem, gap=1e-5)
    found = place(problem, gap=1e-4)
    assert exact.bound * (1 - 1e-6) <= found.account.objective <= exact.account.objective * 1.0002
    assert found.bound <= exact.account.objective


@settings(max_examples=40, deadline=None)
@given(seeds, transfers, st.floats(0.01, 100.0))
def test_no_placement_costs_less_than_its_segments_bounds(seed: int, transfer: Transfer, price: float) -> None:
    problem = small_problem(seed, transfer)
    arrays = to_arrays(problem)
    relaxed = segment_table(arrays, price).bound
    tight, _ = TightTables(arrays, np.isfinite(relaxed), around=1.0).at(price)
    for placement in every_placement(problem):
        if violations(problem, placement):
            continue
        costs, route = account(problem, placement), _route_of(problem, placement)
        charged = costs.objective + price * costs.loss
        beside = route_cost(arrays, route) - sum(_alone(arrays, arc) for arc in route)
        for table in (relaxed, tight):
            assert beside + sum(table[a.node, a.first, a.end] for a in route) <= charged * (1 + 1e-9) + 1e-9


def _route_of(problem: PlacementProblem, placement: Placement) -> Route:
    numbers = {node.name: n for n, node in enumerate(problem.cluster.nodes)}
    return tuple(Arc(numbers[s.node], s.first, s.end) for s in placement.segments)


def _alone(arrays, arc: Arc) -> float:  # type: ignore[no-untyped-def]
    """What a segment's bound has of the route's cost in it."""
    edges = arrays.entering[arc.node, arc.first] + arrays.leaving[arc.node, arc.end]
    return float(arrays.opening[arc.node] + edges)


@pytest.mark.parametrize("transfer", TRANSFERS)
@pytest.mark.parametrize("seed", range(3))
def test_totals_through_a_segment_are_those_of_the_best_route_that_has_it(seed: int, transfer: Transfer) -> None:
    arrays = to_arrays(random_problem(seed, 7, 4, transfer))
    bound = segment_table(arrays, 1.0).bound
    best = best_route(arrays, bound)
    assert best is not None
    through = totals_through(arrays, bound)
    assert through.min() == pytest.approx(best[0])
    for arc in best[1]:
        assert through[arc.node, arc.first, arc.end] == pytest.approx(best[0])
    for node, first, end in list(np.argwhere(np.isfinite(bound)))[::5]:
        only = bound.copy()
        covers = (np.arange(8)[:, None] < end) & (np.arange(8)[None, :] > first)
        only[:, covers] = np.inf
        only[node] = np.inf
        only[node, first, end] = bound[node, first, end]
        forced = best_route(arrays, only)
        assert through[node, first, end] == pytest.approx(np.inf if forced is None else forced[0])


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_one_order_is_never_better_than_all_and_the_right_one_as_good(transfer: Transfer) -> None:
    arrays = to_arrays(random_problem(5, 9, 4, transfer))
    bound = segment_table(arrays, 2.0).bound
    best = best_route(arrays, bound)
    assert best is not None
    order = [arc.node for arc in best[1]]
    same = best_in_order(arrays, bound, order)
    assert same is not None
    assert same[0] == pytest.approx(best[0])
    turned = best_in_order(arrays, bound, list(reversed(range(4))))
    assert turned is None or turned[0] >= best[0] - 1e-9


def test_forty_layers_on_six_nodes_to_one_percent() -> None:
    found = place(random_problem(1, 40, 6))
    assert found.gap <= 0.01


def test_a_search_that_is_cut_off_says_what_is_proven() -> None:
    problem = random_problem(4, 40, 8)
    found = place(problem, gap=0.0, most_branches=1)
    assert found.bound < found.account.objective
    assert not violations(problem, found.placement)


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_a_budget_below_the_least_loss_is_refused_without_a_search(transfer: Transfer) -> None:
    problem = random_problem(4, 12, 4, transfer)
    least = sum(min(option.loss for option in layer.options.values()) for layer in problem.layers)
    with pytest.raises(NoPlacement, match="no placement keeps all limits"):
        place(replace(problem, loss_budget=0.99 * least), most_branches=1)


def _one_node(memory_bytes: int, loss_budget: float) -> PlacementProblem:
    layer = Layer({"int8": Option(100, 0.1), "int4": Option(50, 1.0)})
    node = Node("only", memory_bytes, {"int8": Speed(0.001, 0.02), "int4": Speed(0.001, 0.01)})
    return PlacementProblem((layer,) * 3, Cluster((node,), "only"), Request(10, 5), loss_budget)


@pytest.mark.parametrize(("memory_bytes", "budget"), [(149, 10.0), (1000, 0.2), (250, 0.5)])
def test_what_cannot_be_placed_is_refused_with_the_facts(memory_bytes: int, budget: float) -> None:
    with pytest.raises(NoPlacement, match=r"need at least 150 B .* lose at least 0.3 of a budget of"):
        place(_one_node(memory_bytes, budget))


def test_precisions_follow_memory_and_budget() -> None:
    assert place(_one_node(300, 0.3 + 1e-9), gap=0.0).placement.precisions == ("int8",) * 3
    assert place(_one_node(150, 3.0), gap=0.0).placement.precisions == ("int4",) * 3
    assert sorted(place(_one_node(300, 1.3), gap=0.0).placement.precisions) == ["int4", "int8", "int8"]


def test_a_question_without_layers_is_refused() -> None:
    problem = _one_node(100, 1.0)
    with pytest.raises(InvalidRequest, match="at least one layer"):
        place(PlacementProblem((), problem.cluster, problem.request, 1.0))
