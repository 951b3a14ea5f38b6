"""Ladders of models: sizes, sharing by whole shards, budgets and what is refused."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from lamella.core.errors import DoesNotFit, InvalidRequest
from lamella.core.model import shard_groups
from lamella.core.precision import GGML_TYPES
from lamella.planning.constraints import Constraints
from lamella.planning.cost import weight_bytes
from lamella.planning.ladder import JointBudget, Ladder, evenly_spaced, plan_ladder
from lamella.planning.policies import make_plan
from lamella.planning.request import Overhead, PlanRequest
from tests.planning.losses import made_losses
from tests.planning.models import tiny_spec

SPEC = tiny_spec(6)
REQUEST = PlanRequest(SPEC, losses=made_losses(SPEC))
SIZES = evenly_spaced(SPEC, 4, 8.5, 4.5)
STEPS = [replace(REQUEST, weights_bytes=size) for size in SIZES]


@functools.cache
def within_budget(text: str) -> Ladder:
    return plan_ladder(STEPS, JointBudget.parse(text))


def joint_bytes(ladder: Ladder) -> int:
    """Of the union of shards, counted from the plans."""
    shards = {}
    for step in ladder.steps:
        for group in shard_groups(SPEC):
            types = tuple(step.plan.tensors[t.name] for t in group.tensors)
            shards[group.number, types] = sum(t.bytes_as(GGML_TYPES[step.plan.tensors[t.name]]) for t in group.tensors)
    return sum(shards.values())


def test_steps_are_within_their_sizes_and_fall() -> None:
    ladder = within_budget("1.8x")
    sizes = [step.plan.bytes.weights for step in ladder.steps]
    assert all(size <= limit for size, limit in zip(sizes, SIZES, strict=True))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes == [weight_bytes(SPEC, step.plan.tensors) for step in ladder.steps]


def test_a_budget_is_for_the_union_of_shards() -> None:
    ladder = within_budget("1.8x")
    assert ladder.budget_bytes == int(1.8 * ladder.steps[0].alone_bytes)
    assert ladder.joint_bytes == joint_bytes(ladder) <= ladder.budget_bytes
    assert ladder.joint_bytes < ladder.sum_bytes
    assert sum(ladder.own_bytes) <= ladder.joint_bytes
    assert ladder.ratio_bound is not None
    assert ladder.ratio_bound <= ladder.worst_ratio + 1e-6


def test_a_tighter_budget_costs_loss_and_a_wide_one_none() -> None:
    tight, wide = map(within_budget, ("1.8x", "9x"))
    assert tight.worst_ratio > wide.worst_ratio == 1.0
    assert [s.plan.tensors for s in wide.steps] == [make_plan("knapsack", r).tensors for r in STEPS]


def test_without_a_budget_no_step_loses_more_than_the_ratio() -> None:
    ladder = plan_ladder(STEPS, worst_ratio=1.2)
    assert ladder.worst_ratio <= 1.202
    assert ladder.budget_bytes is None
    assert ladder.joint_bound is not None
    assert ladder.joint_bound <= ladder.joint_bytes == joint_bytes(ladder)


def test_alone_losses_are_those_of_the_knapsack() -> None:
    ladder = within_budget("1.8x")
    for step, request in zip(ladder.steps, STEPS, strict=True):
        alone = make_plan("knapsack", request)
        assert step.alone_loss == alone.predicted_loss
        assert step.plan.settings["alone_loss"] == alone.predicted_loss
        assert step.plan.predicted_loss is not None
        assert step.loss_ratio == pytest.approx(step.plan.predicted_loss / step.alone_loss)


def test_steps_by_memory_leave_room_for_what_else_runs() -> None:
    overhead = Overhead(kv_cache_bytes=100_000, reserve_bytes=50_000)
    budgets = [size + overhead.total for size in (SIZES[3], SIZES[0])]
    requests = [replace(REQUEST, budget_bytes=b, overhead=overhead) for b in budgets]
    ladder = plan_ladder(requests, JointBudget.parse("1.2x"))
    assert [step.plan.budget_bytes for step in ladder.steps] == sorted(budgets, reverse=True)
    assert all(step.plan.fits for step in ladder.steps)


def test_constraints_hold_in_every_step() -> None:
    constrained = [
        replace(r, constraints=Constraints(avoid=("Q4_0",), at_least=(("token_embd", "Q6_K"),))) for r in STEPS
    ]
    for step in plan_ladder(constrained[:3], JointBudget.parse("1.6x")).steps:
        assert "Q4_0" not in step.plan.tensors.values()
        assert GGML_TYPES[step.plan.tensors["token_embd.weight"]].bits_per_weight >= 6.5


def test_evenly_spaced_steps() -> None:
    assert evenly_spaced(SPEC, 3, 8, 4) == tuple(SPEC.n_weights * bits // 8 for bits in (8, 6, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evenly_spaced(SPEC, 1, 8, 4), "at least 2 steps"),
        (lambda: evenly_spaced(SPEC, 3, 4, 8), "from 4 to 8"),
        (lambda: plan_ladder(STEPS[:1]), "at least 2 steps, not 1"),
        (lambda: plan_ladder([STEPS[0], STEPS[0]]), "two steps have the same"),
        (lambda: plan_ladder([REQUEST, STEPS[0]]), "needs a size"),
        (lambda: plan_ladder(STEPS, worst_ratio=0.9), "0.9 was asked"),
        (lambda: JointBudget.parse("0.5x"), "at least 1x"),
        (lambda: JointBudget.parse("much"), "1.6x or a size"),
    ],
)
def test_what_makes_no_ladder_is_refused(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidRequest, match=message):
        call()


def test_a_budget_below_the_lightest_plan_is_refused_with_both() -> None:
    with pytest.raises(DoesNotFit, match="at least what the lightest plan does") as refused:
        plan_ladder(STEPS, JointBudget(n_bytes=SIZES[-1] // 4))
    assert SIZES[-1] // 4 < refused.value.needed_bytes <= SIZES[-1]
    assert refused.value.budget_bytes == SIZES[-1] // 4


def test_steps_may_be_larger_than_the_budget_that_their_plans_keep() -> None:
    """A limit is what a step may take, and not what it takes."""
    wide = [replace(REQUEST, weights_bytes=n * SPEC.n_bytes) for n in (4, 3)]
    found = plan_ladder(wide, JointBudget(times_largest=1.6))
    assert all(step.plan.bytes.weights <= SPEC.n_bytes for step in found.steps)


def test_a_step_below_the_smallest_plan_is_refused() -> None:
    with pytest.raises(DoesNotFit):
        plan_ladder([STEPS[0], replace(REQUEST, weights_bytes=1000)])
