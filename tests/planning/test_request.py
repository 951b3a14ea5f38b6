"""Questions to a policy that have no meaning are refused as they are asked."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from lamella.core.errors import InvalidRequest
from lamella.planning.request import Overhead, PlanRequest
from tests.planning.losses import made_losses
from tests.planning.models import tiny_spec

SPEC = tiny_spec()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seed": -1}, "a seed must be at least 0, not -1"),
        ({"scheme": "folded"}, "unknown scheme 'folded'; known: block, channel, truncate"),
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\], not 0"),
        ({"alpha": 1.01}, r"alpha must be in \(0, 1\], not 1.01"),
        ({"alpha": math.nan}, r"alpha must be in \(0, 1\], not nan"),
        ({"precision": "int99"}, "int99"),
        ({"outside": "int99"}, "int99"),
        ({"precision": "KEEP"}, "'keep' is for embedding and head only"),
        ({"spec": replace(SPEC, n_layers=0)}, "tiny has no layers"),
        ({"budget_bytes": 1 << 30, "average_bits": 7.0}, "one limit"),
    ],
)
def test_a_request_without_meaning_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        PlanRequest(**{"spec": SPEC, **wrong})


def test_the_edges_of_what_has_a_meaning_are_taken() -> None:
    for edge in ({"seed": 0}, {"alpha": 1.0}, {"alpha": 1e-9}, {"outside": "Keep"}, {"precision": "q4_k"}):
        PlanRequest(SPEC, **edge)
    losses = made_losses(SPEC)
    assert PlanRequest(SPEC, budget_bytes=1 << 30, average_bits=7.0, losses=losses).has_limit  # knapsack keeps all
    assert not PlanRequest(SPEC).has_limit


@pytest.mark.parametrize("part", ["kv_cache_bytes", "compute_bytes", "reserve_bytes"])
def test_no_memory_need_is_negative(part: str) -> None:
    fine: dict[str, Any] = {part: 7}
    assert Overhead(**fine).total == 7
    wrong: dict[str, Any] = {part: -1}
    with pytest.raises(InvalidRequest, match="must not be negative"):
        Overhead(**wrong)
