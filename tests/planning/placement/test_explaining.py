"""Explanations: what binds is named, and what a change buys is what planning with it gives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lamella.core.units import GIB
from lamella.planning.placement import Cluster, Layer, Link, Node, Option, PlacementProblem, Request, Speed, place
from lamella.planning.placement.explaining import explain


def _problem(memory_gib: float, loss_budget: float, slow_link: float = 1e9) -> PlacementProblem:
    """8 layers of 1 GiB or half of it; the fast node is behind a link, the slow one has room for all."""
    layer = Layer({"int8": Option(GIB, 0.1), "int4": Option(GIB // 2, 0.5)}, activation_bytes=8192)
    nodes = (
        Node("slow", 16 * GIB, {"int8": Speed(0.001, 0.04), "int4": Speed(0.001, 0.02)}),
        Node("fast", int(memory_gib * GIB), {"int8": Speed(0.0001, 0.004), "int4": Speed(0.0001, 0.002)}),
    )
    cluster = Cluster(nodes, "slow", {("slow", "fast"): Link(slow_link, 0.001)})
    return PlacementProblem((layer,) * 8, cluster, Request(64, 33), loss_budget, input_bytes=8192)


def test_full_memory_is_named_and_more_of_it_buys_most() -> None:
    problem = _problem(2.2, loss_budget=4.0)
    solution = place(problem, gap=0.0)
    told = explain(problem, solution, gap=0.0)
    assert any(line.startswith("the memory of fast is full") for line in told.binding)
    assert told.gains[0].change == "1.00 GiB more on fast"
    larger = replace(problem, cluster=replace(problem.cluster, nodes=_problem(3.2, 4.0).cluster.nodes))
    assert told.gains[0].objective == pytest.approx(place(larger, gap=0.0).account.objective, rel=1e-6)
    assert told.gains[0].saved == pytest.approx(solution.account.objective - told.gains[0].objective)


def test_the_loss_budget_is_named_where_it_is_used_up() -> None:
    problem = _problem(16, loss_budget=2.45)
    told = explain(problem, place(problem, gap=0.0), gap=0.0)
    assert any(line.startswith("the loss budget is used up") for line in told.binding)
    assert not any("memory" in line for line in told.binding)
    free = _problem(16, loss_budget=100.0)
    assert not any("loss" in line for line in explain(free, place(free, gap=0.0), gap=0.0).binding)


def test_a_slow_link_is_what_a_faster_one_helps() -> None:
    problem = _problem(16, loss_budget=100.0, slow_link=2e6)
    told = explain(problem, place(problem, gap=0.0), gap=0.0)
    assert told.gains[0].change == "a twice faster link between slow and fast"
    assert told.gains[0].saved > 0
    assert told.shares[-1].startswith("hidden states travel")


def test_a_node_left_out_is_named() -> None:
    problem = _problem(16, loss_budget=100.0)
    told = explain(problem, place(problem, gap=0.0), gap=0.0)
    assert "slow would cost more time than it saves" in told.binding
