"""Bytes add up, containers follow row lengths, and settings allow the plan to be made again."""

import math

import pytest

from lamella.core.errors import InvalidRequest, UnsupportedTensor
from lamella.core.precision import GGML_TYPES
from lamella.planning.cost import average_bits, bits_per_weight, realise, weight_bytes
from lamella.planning.policies import make_plan
from lamella.planning.request import LSAQ_OVERHEAD, Overhead, PlanRequest
from tests.planning.models import tiny_spec


def test_each_tensor_gets_a_container_that_its_rows_allow() -> None:
    tensors = realise(tiny_spec(hidden=64, wide=256), ("int4",) * 4, outside="int6")
    assert tensors["blk.0.attn_q.weight"] == "Q4_0"  # rows of 64
    assert tensors["blk.0.ffn_down.weight"] == "Q4_K"  # rows of 256
    assert tensors["token_embd.weight"] == "Q8_0"


def test_channel_scheme_uses_channel_containers() -> None:
    tensors = realise(tiny_spec(), ("int4", "int5", "int8", "fp16"), "channel", "int8")
    assert [tensors[f"blk.{i}.attn_q.weight"] for i in range(4)] == ["Q4_0", "Q5_0", "Q8_0", "F16"]


def test_vectors_keep_their_type() -> None:
    tensors = realise(tiny_spec(), ("int2",) * 4, outside="int2")
    assert tensors["blk.0.attn_norm.weight"] == tensors["output_norm.weight"] == "F32"


@pytest.mark.parametrize(("source", "kept"), [("F32", "F16"), ("F16", "F16"), ("BF16", "BF16"), ("Q4_0", "Q4_0")])
def test_kept_tensors_are_stored_as_they_are_and_at_most_f16(source: str, kept: str) -> None:
    assert realise(tiny_spec(type_name=source), ("int4",) * 4)["token_embd.weight"] == kept


def test_every_tensor_of_the_model_is_listed() -> None:
    spec = tiny_spec()
    assert list(realise(spec, ("int4",) * 4)) == [t.name for t in spec.tensors]


def test_a_named_type_that_the_rows_do_not_allow_is_refused() -> None:
    with pytest.raises(UnsupportedTensor, match="rows of 64 weights cannot be Q4_K"):
        realise(tiny_spec(hidden=64), ("Q4_K",) * 4)


def test_stored_bytes_are_those_of_the_types() -> None:
    spec = tiny_spec()
    tensors = realise(spec, ("int8",) * 4, outside="keep")
    expected = sum(GGML_TYPES[tensors[t.name]].bits_per_weight * t.n_weights for t in spec.tensors) / 8
    assert weight_bytes(spec, tensors) == expected
    assert bits_per_weight(spec, tensors) == pytest.approx(8 * expected / spec.n_weights)


def test_average_bits_counts_nominal_bits() -> None:
    assert average_bits(("int8", "int4", "int4", "fp16")) == 8.0


@pytest.mark.parametrize("overhead", [Overhead("exact", 10, 20, 30), Overhead("nominal", 1, 2, 3), LSAQ_OVERHEAD])
@pytest.mark.parametrize("policy", ["uniform", "lsaq", "alpha"])
def test_bytes_of_a_plan_add_up(policy: str, overhead: Overhead) -> None:
    spec = tiny_spec()
    plan = make_plan(policy, PlanRequest(spec, overhead=overhead, precision="int5", alpha=0.5))
    outside = sum(t.n_weights for t in spec.outside)
    stored_outside = sum(t.bytes_as(GGML_TYPES[plan.tensors[t.name]]) for t in spec.outside)
    expected_outside = (
        math.ceil(outside * (2 if plan.settings["outside"] == "keep" else 1))
        if overhead.accounting == "nominal"
        else stored_outside
    )
    assert plan.bytes.weights == sum(layer.bytes for layer in plan.layers) + expected_outside
    assert plan.bytes.total == plan.bytes.weights + overhead.total
    if overhead.accounting == "exact":
        assert plan.bytes.weights == weight_bytes(spec, plan.tensors)


def test_settings_hold_what_made_the_plan() -> None:
    request = PlanRequest(tiny_spec(2), (0.25, 0.5), alpha=0.5, settings={"metric": "jaccard", "context": 4096})
    plan = make_plan("alpha", request)
    assert [layer.importance for layer in plan.layers] == [0.5, 1.0]
    assert plan.settings == {
        "metric": "jaccard",
        "context": 4096,
        "accounting": "exact",
        "outside": "int8",
        "importance": "measured",
        "alpha": 0.5,
    }


@pytest.mark.parametrize(
    "arguments",
    [
        {"budget_bytes": 0}, {"budget_bytes": -1}, {"alpha": 0.0}, {"alpha": 1.5}, {"alpha": math.nan},
        {"precision": "int7"}, {"precision": "keep"}, {"outside": "none"}, {"scheme": "row"},
    ],
)  # fmt: skip
def test_requests_without_meaning_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        PlanRequest(tiny_spec(), **arguments)  # type: ignore[arg-type]


def test_needs_are_not_negative() -> None:
    with pytest.raises(InvalidRequest):
        Overhead(reserve_bytes=-1)


def test_unknown_policies_list_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="uniform, lsaq, alpha, knapsack"):
        make_plan("magic", PlanRequest(tiny_spec()))
