"""Uniform: what was asked, or the largest precision that fits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.artifacts import Plan
from lamella.core.errors import DoesNotFit, InvalidRequest
from lamella.planning.policies import make_plan
from lamella.planning.request import PlanRequest
from tests.planning.models import tiny_spec


def uniform(budget: int | None = None, precision: str | None = None) -> Plan:
    return make_plan("uniform", PlanRequest(tiny_spec(), budget_bytes=budget, precision=precision))


def test_all_layers_get_the_precision() -> None:
    plan = uniform(precision="Q5_K")
    assert {layer.precision for layer in plan.layers} == {"Q5_K"}
    assert plan.tensors["blk.3.ffn_down.weight"] == "Q5_K"


@pytest.mark.parametrize(("written", "name"), [("INT4", "int4"), ("q5_k", "Q5_K"), ("Fp16", "fp16")])
def test_names_may_be_written_in_any_case(written: str, name: str) -> None:
    assert uniform(precision=written).layers[0].precision == name


@pytest.mark.parametrize(("precision", "embedding"), [("int2", "Q8_0"), ("int8", "Q8_0"), ("fp16", "F16")])
def test_embedding_is_one_shard_for_all_precisions_below_fp16(precision: str, embedding: str) -> None:
    assert uniform(precision=precision).tensors["token_embd.weight"] == embedding


@given(st.integers(600_000, 3_000_000), st.integers(0, 1_000_000))
def test_a_larger_budget_never_gives_fewer_bits(budget: int, more: int) -> None:
    small, large = uniform(budget), uniform(budget + more)
    assert small.average_bits <= large.average_bits
    assert small.bytes.total <= budget
    assert small.fits


def test_the_next_precision_would_not_have_fitted() -> None:
    exact = uniform(precision="int5").bytes.total
    assert uniform(exact).layers[0].precision == "int5"
    assert uniform(exact - 1).layers[0].precision == "int4"


def test_what_would_fit_is_named() -> None:
    with pytest.raises(DoesNotFit, match="uniform int4 would fit"):
        uniform(uniform(precision="int4").bytes.total, "int8")


def test_nothing_fits() -> None:
    with pytest.raises(DoesNotFit, match="smallest plan \\(all INT2\\)") as caught:
        uniform(1000)
    assert caught.value.needed_bytes == uniform(precision="int2").bytes.total
    assert caught.value.budget_bytes == 1000


def test_neither_precision_nor_budget_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="needs a precision"):
        uniform()
