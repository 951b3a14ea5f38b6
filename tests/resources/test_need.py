"""Needs besides weights, for specifications; for files see tests/llama/test_memory.py."""

from lamella.core.units import GIB, MIB
from lamella.llama.context import ContextOptions
from lamella.planning.policies import make_plan
from lamella.planning.request import PlanRequest
from lamella.planning.specs import builtin_spec
from lamella.resources.need import default_reserve, spec_overhead


def test_reserve_is_a_share_of_the_budget_and_at_least_64_mib() -> None:
    assert default_reserve(None) == default_reserve(GIB) == 64 * MIB
    assert default_reserve(100 * GIB) == 2 * GIB


def test_a_specification_with_a_context_is_counted_exactly() -> None:
    spec = builtin_spec("llama-2-7b")
    overhead = spec_overhead(spec, ContextOptions(n_ctx=4096))
    assert overhead.accounting == "exact"
    assert overhead.kv_cache_bytes == 2 * GIB
    assert overhead.reserve_bytes == 64 * MIB  # replaced when the budget is known
    plan = make_plan("lsaq", PlanRequest(spec, budget_bytes=8 * GIB, overhead=overhead))
    assert plan.bytes.kv_cache == 2 * GIB
    assert plan.fits
    assert {layer.precision for layer in plan.layers} == {"int8", "int4"}
