"""What a user may add to a knapsack, as it is written."""

from __future__ import annotations

import pytest

from lamella.core.errors import InvalidRequest
from lamella.core.precision import GGML_TYPES
from lamella.planning.constraints import Constraints, all_but, parse_at_least


def test_all_but_some_types_are_avoided() -> None:
    avoided = Constraints(avoid=all_but(["q4_k", "Q8_0"])).avoided
    assert avoided == GGML_TYPES.keys() - {"Q4_K", "Q8_0"}
    with pytest.raises(InvalidRequest, match="'Q9_9' is no ggml type; known: "):
        all_but(["Q4_K", "q9_9"])


def test_a_pattern_means_every_name_with_it_inside() -> None:
    floors = Constraints(at_least=(("attn_v", "Q6_K"), ("blk.0.*", "Q8_0"), ("token_embd", "int5")))
    assert floors.least_bits("blk.1.attn_v.weight") == GGML_TYPES["Q6_K"].bits_per_weight
    assert floors.least_bits("blk.0.attn_v.weight") == GGML_TYPES["Q8_0"].bits_per_weight  # the highest that is said
    assert floors.least_bits("blk.1.attn_q.weight") == 0
    assert floors.unmatched(("blk.1.attn_v.weight", "blk.0.attn_q.weight")) == ("token_embd",)


def test_patterns_and_types_have_to_be_some() -> None:
    assert parse_at_least(" token_embd = Q6_K ") == ("token_embd", "Q6_K")
    with pytest.raises(InvalidRequest, match="write PATTERN=TYPE"):
        parse_at_least("token_embd")
    with pytest.raises(InvalidRequest, match="needs part of a tensor's name"):
        Constraints(at_least=(("", "Q6_K"),))
    with pytest.raises(InvalidRequest, match="Q9_9"):
        Constraints(at_least=(("token_embd", "Q9_9"),))
    with pytest.raises(InvalidRequest, match="cannot avoid 'Q9_9'"):
        Constraints(avoid=("Q9_9",))


def test_a_plan_records_what_was_said_and_nothing_else() -> None:
    assert Constraints().settings() == {}
    said = Constraints(avoid=("q8_0", "F16"), at_least=(("a", "Q6_K"), ("b", "int5")), fused=True)
    assert said.settings() == {"avoid": "F16,Q8_0", "at_least": "a=Q6_K,b=int5", "fused": "yes"}
