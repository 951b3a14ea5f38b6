"""Policy knapsack: within the budget, near the best, better than uniform plans, and clear where nothing fits."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.core.artifacts import Plan, TensorLoss
from lamella.core.errors import DoesNotFit, InvalidRequest
from lamella.core.model import ModelIdentity, ModelSpec, TensorSpec
from lamella.core.precision import GGML_TYPES, MENU
from lamella.planning.constraints import Constraints, TypePrice
from lamella.planning.cost import bits_per_weight, weight_bytes
from lamella.planning.frontier import predicted_loss
from lamella.planning.knapsack import uniform_picks
from lamella.planning.options import option_menu
from lamella.planning.policies import make_plan
from lamella.planning.request import Overhead, PlanRequest
from tests.planning.losses import made_losses
from tests.planning.models import tiny_spec

SPEC = tiny_spec(4)
REQUEST = PlanRequest(SPEC, losses=made_losses(SPEC))
SMALLEST = make_plan("knapsack", replace(REQUEST, loss_ceiling=1e6)).bytes.weights
SCALES = st.lists(st.floats(1e-4, 10), min_size=9, max_size=9)
SIZES = st.integers(SMALLEST, SPEC.n_bytes)


def knapsack(**asked: Any) -> Plan:
    return make_plan("knapsack", replace(REQUEST, **asked))


@pytest.mark.parametrize("n_layers", [4, 20])
@settings(deadline=None, max_examples=25)
@given(scales=SCALES, share=st.floats(0, 1))
def test_never_over_budget_and_as_near_the_proven_best_as_it_says(
    n_layers: int, scales: list[float], share: float
) -> None:
    spec = tiny_spec(n_layers)
    request = PlanRequest(spec, losses=made_losses(spec, scales))
    smallest = make_plan("knapsack", replace(request, loss_ceiling=1e6)).bytes.weights
    size = round(smallest + share * (spec.n_bytes - smallest))
    plan, best = (make_plan("knapsack", replace(request, weights_bytes=size, exact=e)) for e in (False, True))
    assert max(plan.bytes.weights, best.bytes.weights) <= size
    assert weight_bytes(spec, plan.tensors) == plan.bytes.weights
    assert plan.predicted_loss is not None
    assert best.predicted_loss is not None
    assert float(plan.settings["loss_bound"]) <= best.predicted_loss
    assert float(best.settings["loss_bound"]) <= plan.predicted_loss
    if n_layers == 4:  # few groups: the sweep proves its own choice
        assert plan.predicted_loss == plan.settings["loss_bound"]
        assert plan.predicted_loss == pytest.approx(best.predicted_loss, rel=2e-5)


@settings(deadline=None)
@given(SCALES, SIZES, st.integers(0, 50_000))
def test_more_bytes_never_lose_more(scales: list[float], size: int, more: int) -> None:
    losses = made_losses(SPEC, scales)
    less, roomier = (knapsack(losses=losses, weights_bytes=n) for n in (size, size + more))
    assert less.predicted_loss is not None
    assert roomier.predicted_loss is not None
    assert roomier.predicted_loss <= less.predicted_loss


@settings(deadline=None)
@given(SCALES, st.sampled_from([*MENU, *GGML_TYPES]), st.sampled_from([None, "keep"]))
def test_never_worse_than_a_uniform_plan_of_its_size(scales: list[float], precision: str, outside: str | None) -> None:
    losses = made_losses(SPEC, scales)
    uniform = make_plan("uniform", PlanRequest(SPEC, precision=precision, outside=outside))
    loss = predicted_loss(replace(REQUEST, losses=losses), uniform.tensors)
    if loss is not None:  # a type of which no loss is known cannot be compared
        plan = knapsack(losses=losses, weights_bytes=uniform.bytes.weights)
        assert plan.predicted_loss is not None
        assert plan.predicted_loss <= loss


def test_a_uniform_plan_that_no_sweep_finds_is_taken() -> None:
    """Losses almost proportional to the bytes saved, and sizes of which no few fill the budget."""
    rows = [
        100_003,
        71_993,
        130_859,
        86_453,
        119_563,
        95_471,
        107_897,
        79_903,
        124_769,
        90_007,
        113_341,
        83_777,
        98_101,
    ]
    tensors = tuple(TensorSpec(f"blk.0.part_{i}.weight", (32, n), "F16") for i, n in enumerate(rows))
    spec = ModelSpec(ModelIdentity("m", "m", "s"), 1, tensors)
    losses = tuple(
        TensorLoss(t.name, "Q4_0", 1, 0, {n: (t.n_bytes - t.bytes_as(GGML_TYPES[n])) / 1e6 + 1e-12 * (n == "Q8_0")
                                         for n in ("Q8_0", "Q4_0", "F16")})
        for t in tensors
    )  # fmt: skip
    uniform = {t.name: "Q8_0" for t in tensors}
    asked = PlanRequest(spec, losses=losses, weights_bytes=weight_bytes(spec, uniform))
    assert make_plan("knapsack", asked).predicted_loss == predicted_loss(asked, uniform)


def test_uniform_plans_are_candidates_themselves() -> None:
    menu = option_menu(SPEC, REQUEST.losses)
    candidates = [menu.types(picks) for picks in uniform_picks(menu)]
    for precision in ("int8", "int4", "fp16", "Q5_0"):
        assert dict(make_plan("uniform", PlanRequest(SPEC, precision=precision)).tensors) in candidates


@settings(deadline=None, max_examples=25)
@given(SCALES, st.floats(0, 3))
def test_a_ceiling_gives_the_smallest_plan_that_keeps_it(scales: list[float], ceiling: float) -> None:
    losses = made_losses(SPEC, scales)
    plan, best = (knapsack(losses=losses, loss_ceiling=ceiling, exact=exact) for exact in (False, True))
    assert plan.predicted_loss is not None
    assert plan.predicted_loss <= ceiling + 1e-12
    assert plan.settings["bytes_bound"] == plan.bytes.weights == pytest.approx(best.bytes.weights, rel=2e-5)


def test_a_plans_own_figures_ask_for_it_again() -> None:
    plan = knapsack(weights_bytes=(SMALLEST + SPEC.n_bytes) // 2)
    assert knapsack(bits_per_weight=plan.bits_per_weight).tensors == plan.tensors
    assert knapsack(weights_bytes=plan.bytes.weights).tensors == plan.tensors
    assert knapsack(loss_ceiling=plan.predicted_loss).bytes.weights <= plan.bytes.weights


def test_without_a_limit_everything_stays() -> None:
    plan = knapsack()
    assert plan.predicted_loss == 0
    assert plan.tensors == {t.name: t.type_name for t in SPEC.tensors}
    assert {layer.precision for layer in plan.layers} == {"F16"}


def test_a_memory_budget_counts_the_overhead_and_a_size_does_not() -> None:
    overhead = Overhead("exact", 1000, 2000, 3000)
    size = (SMALLEST + SPEC.n_bytes) // 2
    alone = knapsack(weights_bytes=size, overhead=overhead)
    within = knapsack(budget_bytes=size + 6000, overhead=overhead)
    assert alone.tensors == within.tensors
    assert within.bytes.total == within.bytes.weights + 6000 <= size + 6000
    assert knapsack(budget_bytes=size, overhead=overhead).bytes.weights <= size - 6000
    both = knapsack(budget_bytes=size + 6000, weights_bytes=SMALLEST, overhead=overhead)
    assert both.bytes.weights == SMALLEST


def test_layers_say_their_type_or_mixed_and_what_they_matter() -> None:
    losses = [x for x in made_losses(SPEC, (1.0,)) if "token_embd" not in x.tensor]
    plan = knapsack(losses=tuple(losses), weights_bytes=weight_bytes(SPEC, knapsack().tensors) - 1)
    kinds = {layer.layer: {plan.tensors[f"blk.{layer.layer}.{m}.weight"] for m in ("attn_q", "ffn_down")}
             for layer in plan.layers}  # fmt: skip
    for layer in plan.layers:
        assert layer.precision == (kinds[layer.layer].pop() if len(kinds[layer.layer]) == 1 else "mixed")
        assert layer.importance == 1.0
        tensors = SPEC.layers[layer.layer].tensors
        assert layer.bytes == sum(t.bytes_as(GGML_TYPES[plan.tensors[t.name]]) for t in tensors)
        matrices = SPEC.layers[layer.layer].matrices
        stored = sum(t.bytes_as(GGML_TYPES[plan.tensors[t.name]]) for t in matrices)
        assert layer.bits_per_weight == 8 * stored / sum(t.n_weights for t in matrices)
    assert "mixed" in {layer.precision for layer in plan.layers}
    assert plan.bytes.weights == sum(x.bytes for x in plan.layers) + sum(
        t.bytes_as(GGML_TYPES[plan.tensors[t.name]]) for t in SPEC.outside
    )
    assert plan.average_bits == pytest.approx(math.fsum(x.bits_per_weight or 0.0 for x in plan.layers) / SPEC.n_layers)
    assert plan.bits_per_weight == bits_per_weight(SPEC, plan.tensors)


def test_constraints_hold_and_are_recorded() -> None:
    constraints = Constraints(avoid=("q2_k",), at_least=(("token_embd", "Q6_K"),))
    plan = knapsack(constraints=constraints, loss_ceiling=1e6)
    assert "Q2_K" not in plan.tensors.values()
    assert plan.tensors["token_embd.weight"] == "Q6_K"
    assert plan.settings["avoid"] == "Q2_K"
    assert plan.settings["at_least"] == "token_embd=Q6_K"
    assert plan.settings["loss_ceiling"] == 1e6


def test_what_does_not_fit_says_the_smallest_plan_and_what_would_do() -> None:
    overhead = Overhead("exact", 1000, 0, 0)
    with pytest.raises(DoesNotFit) as caught:
        knapsack(budget_bytes=SMALLEST, overhead=overhead)
    assert caught.value.needed_bytes == SMALLEST + 1000
    assert not caught.value.smallest_plan.fits
    assert caught.value.smallest_plan.bytes.weights == SMALLEST
    constraints = Constraints(avoid=("Q2_K",))
    large = knapsack(constraints=constraints, loss_ceiling=1e6).bytes.weights
    with pytest.raises(DoesNotFit, match=r"1 B more .* without the constraints 339 KiB of weights would do") as caught:
        knapsack(constraints=constraints, weights_bytes=large - 1, overhead=overhead)
    assert caught.value.smallest_plan.bytes.kv_cache == 0  # memory was not what was asked about
    with pytest.raises(DoesNotFit, match=r"the other limits \(loss ceiling 0\.001\).* these bytes allow a loss of"):
        knapsack(weights_bytes=SMALLEST, loss_ceiling=0.001)


PRICES = {name: TypePrice(2 + i, 1 + i % 3, 3 + i, 2) for i, name in enumerate(("Q4_0", "Q2_K", "Q8_0", "F16"))}


@settings(deadline=None, max_examples=50)
@given(SCALES, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_speed_is_kept_with_and_without_a_size(scales: list[float], slower: float, larger: float) -> None:
    asked = replace(REQUEST, losses=made_losses(SPEC, scales), prices=PRICES)
    menu = option_menu(SPEC, asked.losses, prices=PRICES, priced_only=True)
    kinds = [[o.times.token for o in g.options if o.times] for g in menu.groups]
    fastest, slowest = (sum(map(pick, kinds)) / 1e9 for pick in (min, max))
    limit = fastest + slower * (slowest - fastest)
    plan = make_plan("knapsack", replace(asked, ms_per_token=limit))
    assert float(plan.settings["predicted_ms_per_token"]) <= limit * (1 + 1e-9)
    assert set(plan.tensors.values()) <= {*PRICES, "F32"}
    size = round(plan.bytes.weights * (0.6 + 0.4 * larger))
    request = replace(asked, ms_per_token=limit, weights_bytes=size)
    smallest = make_plan("knapsack", replace(request, weights_bytes=None, loss_ceiling=1e6)).bytes.weights
    if smallest > size:
        with pytest.raises(DoesNotFit):
            make_plan("knapsack", request)
        return
    both = make_plan("knapsack", request)
    assert float(both.settings["predicted_ms_per_token"]) <= limit * (1 + 1e-9)
    assert both.bytes.weights <= size
    assert both.predicted_loss is not None
    assert plan.predicted_loss is not None
    assert both.predicted_loss >= float(plan.settings["loss_bound"])


def test_a_prompt_speed_is_kept() -> None:
    asked = replace(REQUEST, prices=PRICES)
    n = sum(t.n_weights for layer in SPEC.layers for t in layer.matrices)
    plan = make_plan("knapsack", replace(asked, prompt_tokens_per_second=1e9 / (n * 1.5)))
    assert float(plan.settings["predicted_prompt_tokens_per_second"]) >= 1e9 / (n * 1.5)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"losses": ()}, "needs a measurement"),
        ({"scheme": "channel"}, "scheme channel"),
        ({"outside": "int8"}, "token_embd=Q6_K"),
        ({"average_bits": 4.0}, "bits per weight"),
        ({"bits_per_weight": 0.0}, r"above 0, at most 1e\+12, not 0"),
        ({"bits_per_weight": math.nan}, "above 0, .* not nan"),
        ({"bits_per_weight": 1e308}, r"bits per weight must be .* not 1e\+308"),
        ({"weights_bytes": -5}, "more than zero, not -5"),
        ({"loss_ceiling": -1.0}, "zero nats or more, .* not -1"),
        ({"loss_ceiling": 1e300}, r"the loss must be .* at most 1e\+12, not 1e\+300"),
        ({"ms_per_token": math.inf}, "above 0, .* not inf"),
        ({"ms_per_token": 1e308, "prices": PRICES}, r"milliseconds a token must be .* not 1e\+308"),
        ({"prompt_tokens_per_second": 1e308, "prices": PRICES}, r"prompt tokens per second must be .* not 1e\+308"),
        ({"loss_ceiling": 0.0, "constraints": Constraints(avoid=("F16",))}, "is predicted to lose .* the ceiling of 0"),
        ({"ms_per_token": 1e-9, "prices": PRICES}, "the fastest plan takes .* ms a token in matrix products alone"),
        ({"prompt_tokens_per_second": 1e12, "prices": PRICES}, "fastest plan reads .* prompt tokens a second"),
        ({"ms_per_token": 5.0}, "measured speed"),
    ],
)
def test_requests_without_meaning_are_refused(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        knapsack(**asked)
