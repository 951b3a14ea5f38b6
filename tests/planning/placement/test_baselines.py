"""Rules beside the joint plan: each does what its name says, keeps every limit, and is never better."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.core.errors import InvalidRequest, NoPlacement
from lamella.planning.placement import (
    Cluster,
    Layer,
    Link,
    Node,
    Option,
    PlacementProblem,
    Request,
    Speed,
    place,
    violations,
)
from lamella.planning.placement.baselines import BASELINES, baseline
from lamella.planning.placement.cluster import TRANSFERS, Transfer
from tests.planning.placement.small import small_problem


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(TRANSFERS), st.sampled_from(sorted(BASELINES)))
def test_never_better_than_the_joint_plan(seed: int, transfer: Transfer, name: str) -> None:
    problem = small_problem(seed, transfer)
    try:
        found = baseline(name, problem)
    except NoPlacement:
        return
    best = place(problem, gap=0.0)
    assert not violations(problem, found.placement)
    assert found.account.objective >= best.account.objective * (1 - 1e-9)


def _problem(loss_budget: float = 100.0, transfer: Transfer = "star") -> PlacementProblem:
    """8 layers; memory 2 : 1 : 1, the second node fastest, the third in the cloud."""
    layer = Layer({"int8": Option(100, 0.1), "int4": Option(50, 1.0)}, activation_bytes=10)
    nodes = (
        Node("big", 1000, {"int8": Speed(0.001, 0.02), "int4": Speed(0.001, 0.015)}),
        Node("fast", 500, {"int8": Speed(0.0001, 0.002), "int4": Speed(0.0001, 0.0015)}),
        Node("far", 500, {"int8": Speed(0.001, 0.01), "int4": Speed(0.001, 0.009)}, tier="cloud"),
    )
    links = {(a, b): Link(1e6, 1e-4) for a, b in (("big", "fast"), ("big", "far"), ("fast", "far"))}
    return PlacementProblem((layer,) * 8, Cluster(nodes, "big", links, transfer), Request(10, 11), loss_budget)


def _sizes(name: str, problem: PlacementProblem) -> dict[str, int]:
    return {s.node: len(s.precisions) for s in baseline(name, problem).placement.segments}


def test_shares_of_layers() -> None:
    assert _sizes("equal-layers", _problem()) == {"big": 3, "fast": 3, "far": 2}
    assert _sizes("by-memory", _problem()) == {"big": 4, "fast": 2, "far": 2}
    assert _sizes("by-memory-with-bits", _problem()) == {"big": 4, "fast": 2, "far": 2}
    assert _sizes("greedy-by-speed", _problem()) == {"fast": 8}
    assert _sizes("edge-only", _problem()).keys() <= {"big", "fast"}
    assert _sizes("cloud-only", _problem()) == {"far": 8}


def test_one_node_takes_the_fastest_that_holds_the_model() -> None:
    assert _sizes("one-node", _problem()) == {"fast": 8}
    assert _sizes("one-node", _problem(loss_budget=1.0)) == {"big": 8}  # int8 everywhere, which only it holds


def test_rules_of_one_precision_have_one() -> None:
    for name in ("by-memory", "greedy-by-speed", "uniform-bits"):
        assert len(set(baseline(name, _problem(loss_budget=4.0)).placement.precisions)) == 1
    assert set(baseline("by-memory-with-bits", _problem(loss_budget=4.0)).placement.precisions) == {"int8", "int4"}


def test_a_rule_that_breaks_a_limit_has_no_placement() -> None:
    small = replace(_problem(), loss_budget=0.7)
    for name in BASELINES:
        with pytest.raises(NoPlacement):
            baseline(name, small)
    with pytest.raises(InvalidRequest, match="one-node, equal-layers"):
        baseline("best", small)
