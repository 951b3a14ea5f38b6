"""Alpha: the poster's Table 1, and monotonicity."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import DoesNotFit, InvalidRequest
from lamella.planning.alpha import LEVELS, bits_for
from lamella.planning.policies import make_plan
from lamella.planning.request import PlanRequest
from tests.planning.models import tiny_spec

TABLE_1 = [  # ALCS poster, Table 1: layers 1, 6 and 20 at alpha 0.1, 0.5, 0.9; scores as DESIGN.md gives them
    (1.0, (8, 8, 8)),
    (0.885, (4, 8, 8)),
    (0.17, (2, 3, 6)),
]
SCORE = st.floats(0, 1)
ALPHA = st.floats(0, 1, exclude_min=True)


@pytest.mark.parametrize(("score", "bits"), TABLE_1)
def test_table_1(score: float, bits: tuple[int, ...]) -> None:
    assert tuple(bits_for(score, alpha) for alpha in (0.1, 0.5, 0.9)) == bits


@given(SCORE, ALPHA, ALPHA)
def test_more_aggressive_is_never_more_bits(score: float, one: float, other: float) -> None:
    assert bits_for(score, min(one, other)) <= bits_for(score, max(one, other))


@given(SCORE, SCORE, ALPHA)
def test_more_important_is_never_fewer_bits(one: float, other: float, alpha: float) -> None:
    assert bits_for(min(one, other), alpha) <= bits_for(max(one, other), alpha)


@given(SCORE)
def test_alpha_one_is_eight_bits_everywhere(score: float) -> None:
    assert bits_for(score, 1.0) == 8


def test_ties_go_to_the_larger_level() -> None:
    assert bits_for(0.25, 0.5) == 4  # 3.5 lies between 3 and 4
    assert bits_for(5 / 6, 0.5) == 8  # 7 lies between 6 and 8


@pytest.mark.parametrize(("score", "alpha"), [(0.5, 0.0), (0.5, 1.01), (0.5, -1.0), (1.5, 0.5), (-0.1, 0.5)])
def test_values_outside_their_range_are_refused(score: float, alpha: float) -> None:
    with pytest.raises(InvalidRequest):
        bits_for(score, alpha)


def test_variants_share_embedding_and_head() -> None:
    plans = [make_plan("alpha", PlanRequest(tiny_spec(), alpha=a)) for a in (0.1, 0.5, 0.9)]
    assert {p.tensors["token_embd.weight"] for p in plans} == {"Q8_0"}
    assert all(int(layer.precision.removeprefix("int")) in LEVELS for p in plans for layer in p.layers)


def test_an_alpha_that_fits_is_named() -> None:
    small = make_plan("alpha", PlanRequest(tiny_spec(), alpha=0.3)).bytes.total
    with pytest.raises(DoesNotFit, match=r"alpha 0\.\d+ would fit") as caught:
        make_plan("alpha", PlanRequest(tiny_spec(), alpha=0.95, budget_bytes=small))
    named = float(str(caught.value).split("; alpha ")[1].split(" ")[0])
    assert make_plan("alpha", PlanRequest(tiny_spec(), alpha=named, budget_bytes=small)).fits


def test_alpha_is_needed() -> None:
    with pytest.raises(InvalidRequest, match="needs an alpha"):
        make_plan("alpha", PlanRequest(tiny_spec()))
