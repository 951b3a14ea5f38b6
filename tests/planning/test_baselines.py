"""The baselines share LSAQ's ladder and differ in the order of the layers; limits in bits are never exceeded."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.artifacts import Plan
from lamella.core.errors import DoesNotFit, InvalidRequest
from lamella.planning.importance import least_important_first
from lamella.planning.policies import LADDER, METRICS, POLICIES, check_policy, make_plan
from lamella.planning.random_order import random_order
from lamella.planning.request import PlanRequest
from lamella.planning.specs import builtin_spec
from tests.planning.models import tiny_spec

SIX = tiny_spec(6)
SCORES = st.lists(st.floats(0, 1), min_size=6, max_size=6).map(tuple)
LADDERS = st.sampled_from(sorted(LADDER))
SMALLEST = make_plan("lsaq", PlanRequest(SIX, average_bits=4))


def int4_layers(plan: Plan) -> set[int]:
    return {layer.layer for layer in plan.layers if layer.precision == "int4"}


@pytest.mark.parametrize(
    ("bits", "layers"),
    [(16, {"fp16": 32}), (15.9, {"int8": 32}), (8, {"int8": 32}), (7, {"int8": 24, "int4": 8}),
     (6, {"int8": 16, "int4": 16}), (5, {"int8": 8, "int4": 24}), (4, {"int4": 32})],
)  # fmt: skip
@pytest.mark.parametrize("policy", sorted(LADDER))
def test_average_bits_are_those_of_lsaqs_tables(policy: str, bits: float, layers: dict[str, int]) -> None:
    """Tables I and III: INT4 for 25, 50 and 75 % of the layers are 7, 6 and 5 bits."""
    plan = make_plan(policy, PlanRequest(builtin_spec("spec:llama-2-7b"), average_bits=bits))
    assert Counter(layer.precision for layer in plan.layers) == layers


@given(LADDERS, SCORES, st.floats(4, 20))
def test_the_step_taken_is_the_largest_within_the_average(policy: str, scores: tuple[float, ...], bits: float) -> None:
    plan = make_plan(policy, PlanRequest(SIX, scores, average_bits=bits))
    assert plan.average_bits <= bits
    steps = [16.0, *((8 * (6 - n) + 4 * n) / 6 for n in range(7))]
    assert plan.average_bits == max(step for step in steps if step <= bits)


@given(LADDERS, SCORES, st.floats(SMALLEST.bits_per_weight, 20), st.floats(0, 4))
def test_bits_per_weight_are_a_ceiling_and_more_of_them_never_give_less(
    policy: str, scores: tuple[float, ...], bits: float, more: float
) -> None:
    small, large = (make_plan(policy, PlanRequest(SIX, scores, bits_per_weight=b)) for b in (bits, bits + more))
    assert small.bits_per_weight <= bits
    assert small.bits_per_weight <= large.bits_per_weight
    assert int4_layers(large) <= int4_layers(small)


@given(SCORES, st.integers(0, 6))
def test_lwq_is_lsaq_under_another_metric(scores: tuple[float, ...], n_int4: int) -> None:
    request = PlanRequest(SIX, scores, average_bits=(8 * (6 - n_int4) + 4 * n_int4) / 6)
    plans = [make_plan(policy, request) for policy in ("lsaq", "lwq-cosine", "lwq-outlier")]
    assert len({json.dumps(dict(plan.tensors)) for plan in plans}) == 1
    assert int4_layers(plans[1]) == set(least_important_first(request.scores)[:n_int4])
    assert [plan.policy for plan in plans] == ["lsaq", "lwq-cosine", "lwq-outlier"]


@given(st.integers(1, 60), st.integers(0, 2**40))
def test_a_random_order_names_every_layer_once_and_its_seed_gives_it_again(n_layers: int, seed: int) -> None:
    order = random_order(n_layers, seed)
    assert sorted(order) == list(range(n_layers))
    assert random_order(n_layers, seed) == order


def test_random_orders_are_the_same_in_every_process_and_differ_by_seed() -> None:
    code = "from lamella.planning.random_order import random_order; print(list(random_order(30, 7)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == list(random_order(30, 7))
    assert len({random_order(30, seed) for seed in range(50)}) == 50


def test_random_orders_prefer_no_layer() -> None:
    first = Counter(random_order(4, seed)[0] for seed in range(4000))
    assert all(abs(first[layer] - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75) for layer in range(4))


def test_a_random_plan_says_how_to_make_it_again() -> None:
    plan = make_plan("random", PlanRequest(SIX, average_bits=6, seed=3))
    assert int4_layers(plan) == set(random_order(6, 3)[:3])
    assert (plan.settings["seed"], plan.settings["importance"]) == (3, "random")
    assert plan.settings["target_average_bits"] == 6
    assert all(layer.importance is None for layer in plan.layers)
    assert make_plan("random", PlanRequest(SIX, average_bits=6)).settings["seed"] == 0


@pytest.mark.parametrize(("bits", "precision"), [(16, "fp16"), (7.9, "int6"), (5, "int5"), (2, "int2")])
def test_uniform_takes_the_largest_precision_within_the_average(bits: float, precision: str) -> None:
    plan = make_plan("uniform", PlanRequest(SIX, average_bits=bits))
    assert {layer.precision for layer in plan.layers} == {precision}


def test_alpha_is_held_to_the_limit_too() -> None:
    with pytest.raises(DoesNotFit, match=r"alpha 0.9 has .* average bits, more than the 3 .*; alpha 0.* would fit"):
        make_plan("alpha", PlanRequest(SIX, alpha=0.9, average_bits=3))


@pytest.mark.parametrize("policy", sorted(LADDER))
def test_too_few_bits_are_refused_with_the_facts(policy: str) -> None:
    with pytest.raises(DoesNotFit, match=r"all INT4\) has 4 average bits, more than the 3.5 that were asked"):
        make_plan(policy, PlanRequest(SIX, average_bits=3.5))
    with pytest.raises(DoesNotFit, match=r"bits per weight as stored, .* are embedding and head") as caught:
        make_plan(policy, PlanRequest(SIX, bits_per_weight=SMALLEST.bits_per_weight - 0.01))
    assert caught.value.needed_bytes == SMALLEST.bytes.weights > caught.value.budget_bytes
    assert int4_layers(caught.value.smallest_plan) == set(range(6))


@pytest.mark.parametrize("bits", [0.0, -1.0, math.nan, math.inf])
def test_bits_must_be_a_number_above_nothing(bits: float) -> None:
    with pytest.raises(InvalidRequest, match="average bits must be a number above 0"):
        PlanRequest(SIX, average_bits=bits)
    with pytest.raises(InvalidRequest, match="bits per weight must be a number above 0"):
        PlanRequest(SIX, bits_per_weight=bits)


def test_a_plan_has_one_limit() -> None:
    for memory, average, stored in ((10**9, 7, None), (10**9, None, 8), (None, 7, 8), (10**9, 7, 8)):
        with pytest.raises(InvalidRequest, match="a plan has one limit"):
            PlanRequest(SIX, budget_bytes=memory, average_bits=average, bits_per_weight=stored)


def test_a_seed_is_no_negative_number() -> None:
    with pytest.raises(InvalidRequest, match="at least 0"):
        PlanRequest(SIX, seed=-1)


def test_policies_that_are_named_by_a_metric_take_no_other() -> None:
    for policy, metric in METRICS.items():
        check_policy(policy, metric)
    check_policy("lsaq", "outlier")
    with pytest.raises(InvalidRequest, match="lwq-cosine orders layers by cosine, and the measurement is of jaccard"):
        check_policy("lwq-cosine", "jaccard")
    with pytest.raises(InvalidRequest, match="unknown policy 'magic'; known: uniform"):
        check_policy("magic")
    assert set(METRICS) | LADDER <= set(POLICIES)
