"""LSAQ: the published strategies and sizes, and the properties of the strategy."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.artifacts import Plan
from lamella.core.errors import DoesNotFit
from lamella.core.units import GIB
from lamella.planning.importance import least_important_first
from lamella.planning.policies import make_plan
from lamella.planning.request import LSAQ_OVERHEAD, Overhead, PlanRequest
from lamella.planning.specs import builtin_spec
from tests.planning.models import tiny_spec

TABLE_IV = [  # LSAQ Table IV, Llama-2-7B; the 6 GB row there prints "32" INT8, its text says 22 (and 6.75 bits)
    (16, {"fp16": 32}, 16.0),
    (12, {"int8": 32}, 8.0),
    (8, {"int8": 32}, 8.0),
    (6, {"int8": 22, "int4": 10}, 6.75),
    (4, {"int8": 1, "int4": 31}, 4.125),
]
FIGURE_4 = [  # LSAQ Figure 4: weights at FP16 and at the lowest, "GB" being GiB
    ("spec:llama-2-7b", 12.82, 3.56),
    ("spec:llama-2-13b", 24.36, 6.79),
    ("spec:llama-3-8b", 15.14, 5.18),
]


def lsaq(spec: str, budget: int | None = None) -> Plan:
    return make_plan("lsaq", PlanRequest(builtin_spec(spec), budget_bytes=budget))


@pytest.mark.parametrize(("gib", "layers", "average"), TABLE_IV)
def test_table_iv(gib: int, layers: dict[str, int], average: float) -> None:
    plan = lsaq("spec:llama-2-7b", gib * GIB)
    assert Counter(layer.precision for layer in plan.layers) == layers
    assert plan.average_bits == average
    assert plan.fits
    assert plan.settings["accounting"] == "nominal"


def test_three_gibibytes_are_too_few_and_the_facts_are_said() -> None:
    with pytest.raises(DoesNotFit) as caught:
        lsaq("spec:llama-2-7b", 3 * GIB)
    assert str(caught.value).startswith(
        "the smallest plan (all INT4) of Llama-2-7B needs 3.88 GiB, 900 MiB more than the budget of 3.00 GiB "
        "(weights 3.50 GiB, reserve 384 MiB)"
    )
    assert caught.value.needed_bytes == lsaq("spec:llama-2-7b", caught.value.needed_bytes).bytes.total


@pytest.mark.parametrize(("name", "fp16", "smallest"), FIGURE_4)
def test_figure_4(name: str, fp16: float, smallest: float) -> None:
    full = lsaq(name)
    with pytest.raises(DoesNotFit) as caught:
        lsaq(name, 1)
    least = lsaq(name, caught.value.needed_bytes)
    assert {layer.precision for layer in least.layers} == {"int4"}
    assert full.bytes.weights / GIB == pytest.approx(fp16, rel=0.05)
    assert least.bytes.weights / GIB == pytest.approx(smallest, rel=0.05)


def test_model_files_are_counted_exactly_by_default() -> None:
    plan = make_plan("lsaq", PlanRequest(tiny_spec(weights="abc")))
    assert plan.settings["accounting"] == "exact"
    assert plan.bytes.reserve == 0


OVERHEADS = st.sampled_from([Overhead("exact", 100_000, 50_000, 25_000), Overhead("nominal", 1, 1, 1)])


@given(
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
    st.integers(1_400_000, 4_000_000),
    st.integers(0, 500_000),
    OVERHEADS,
)
def test_strategy(scores: list[float], budget: int, more: int, overhead: Overhead) -> None:
    request = PlanRequest(tiny_spec(6), tuple(scores), budget_bytes=budget, overhead=overhead)
    plan = make_plan("lsaq", request)
    assert plan.bytes.total <= budget
    int4 = {layer.layer for layer in plan.layers if layer.precision == "int4"}
    assert int4 == set(least_important_first(request.scores)[: len(int4)])
    roomier = PlanRequest(tiny_spec(6), tuple(scores), budget_bytes=budget + more, overhead=overhead)
    assert make_plan("lsaq", roomier).average_bits >= plan.average_bits


def test_no_layer_goes_to_int4_that_need_not() -> None:
    spec = tiny_spec(6)
    all_int8 = make_plan("uniform", PlanRequest(spec, precision="int8", outside="keep")).bytes.total
    fewer = make_plan("lsaq", PlanRequest(spec, budget_bytes=all_int8 - 1))
    assert Counter(layer.precision for layer in fewer.layers) == {"int8": 5, "int4": 1}
    assert {layer.precision for layer in make_plan("lsaq", PlanRequest(spec, budget_bytes=all_int8)).layers} == {"int8"}


def test_embedding_and_head_stay_as_they_are() -> None:
    plan = lsaq("spec:llama-2-7b", 4 * GIB)
    assert plan.tensors["token_embd.weight"] == plan.tensors["output.weight"] == "F16"
    assert plan.tensors["blk.27.attn_q.weight"] == "Q4_K"


def test_the_reserve_is_part_of_the_total() -> None:
    plan = lsaq("spec:llama-2-7b", 8 * GIB)
    assert plan.bytes.reserve == LSAQ_OVERHEAD.reserve_bytes == 3 * GIB // 8
    assert plan.bytes.total == plan.bytes.weights + plan.bytes.reserve
