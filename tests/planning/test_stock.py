"""A stock plan is the types it was given, counted and held to the limit."""

from __future__ import annotations

import pytest

from lamella.core.errors import DoesNotFit, InvalidRequest, UnsupportedTensor
from lamella.core.model import ModelSpec
from lamella.planning.cost import bits_per_weight, weight_bytes
from lamella.planning.policies import make_plan
from lamella.planning.request import Overhead, PlanRequest, StockTypes
from tests.planning.models import tiny_spec

SPEC = tiny_spec(2)


def q4_k_m(spec: ModelSpec = SPEC) -> StockTypes:
    """Q4_K with ffn_down (twice as large as attn_q) in Q6_K in the last layer, embedding in Q6_K."""
    types = {t.name: "Q4_K" if t.is_matrix else t.type_name for t in spec.tensors}
    return StockTypes("Q4_K_M", False, {**types, "token_embd.weight": "Q6_K", "blk.1.ffn_down.weight": "Q6_K"})


def test_the_plan_is_the_mix() -> None:
    plan = make_plan("stock", PlanRequest(SPEC, stock=q4_k_m(), overhead=Overhead("exact", 10, 20, 30)))
    assert plan.tensors == q4_k_m().types
    assert [layer.precision for layer in plan.layers] == ["Q4_K", "mixed"]
    assert plan.average_bits == pytest.approx((4.5 + (4.5 + 2 * 6.5625) / 3) / 2)
    assert plan.bits_per_weight == bits_per_weight(SPEC, plan.tensors)
    assert plan.bytes.weights == weight_bytes(SPEC, plan.tensors)
    assert plan.bytes.total == plan.bytes.weights + 60
    assert (plan.settings["mix"], plan.settings["imatrix"]) == ("Q4_K_M", "no")


def test_a_mix_is_held_to_every_limit() -> None:
    made = make_plan("stock", PlanRequest(SPEC, stock=q4_k_m()))
    weights = made.bytes.weights
    assert make_plan("stock", PlanRequest(SPEC, stock=q4_k_m(), budget_bytes=weights)).fits
    with pytest.raises(DoesNotFit, match=r"the mix Q4_K_M of tiny needs .* ask for a smaller mix"):
        make_plan("stock", PlanRequest(SPEC, stock=q4_k_m(), budget_bytes=weights - 1))
    with pytest.raises(DoesNotFit, match=r"the mix Q4_K_M has .* average bits, more than the 5 "):
        make_plan("stock", PlanRequest(SPEC, stock=q4_k_m(), average_bits=5))
    with pytest.raises(DoesNotFit, match=r"the mix Q4_K_M has .* bits per weight"):
        make_plan("stock", PlanRequest(SPEC, stock=q4_k_m(), bits_per_weight=4.6))


def test_what_would_not_be_the_mix_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="needs a mix"):
        make_plan("stock", PlanRequest(SPEC))
    with pytest.raises(InvalidRequest, match="every type from the mix"):
        make_plan("stock", PlanRequest(SPEC, stock=q4_k_m(), outside="int8"))
    with pytest.raises(InvalidRequest, match="every type from the mix"):
        make_plan("stock", PlanRequest(SPEC, stock=q4_k_m(), scheme="channel"))
    with pytest.raises(InvalidRequest, match=r"lack 3 tensors, for example blk.2"):
        make_plan("stock", PlanRequest(tiny_spec(3), stock=q4_k_m()))


def test_a_mix_that_changes_what_a_build_copies_is_refused() -> None:
    """A build copies vectors and small tables, so such a plan would promise what no variant holds."""
    types = {**q4_k_m().types, "blk.0.attn_norm.weight": "F16"}
    with pytest.raises(UnsupportedTensor, match=r"Q4_K_M makes tensor blk.0.attn_norm.weight F16; .* keeps it F32"):
        make_plan("stock", PlanRequest(SPEC, stock=StockTypes("Q4_K_M", False, types)))
