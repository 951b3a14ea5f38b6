"""Importances are relative to the largest, and the prior is the papers' common shape."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InvalidRequest
from lamella.planning.importance import least_important_first, normalise, prior

SCORES = st.lists(st.floats(-10, 1e6), min_size=1, max_size=80)


@given(SCORES)
def test_normalised_scores_are_in_the_unit_interval_and_keep_their_order(scores: list[float]) -> None:
    normalised = normalise(scores, len(scores))
    assert all(0 <= s <= 1 for s in normalised)
    assert max(normalised) == 1
    if max(scores) > 0:
        assert [normalised[i] for i in least_important_first(scores)] == sorted(normalised)


def test_the_least_score_is_not_stretched_to_zero() -> None:
    assert normalise([0.2, 0.4], 2) == (0.5, 1.0)


def test_equal_scores_are_all_most_important() -> None:
    assert normalise([0.0, 0.0], 2) == normalise([3.0, 3.0], 2) == (1.0, 1.0)


@pytest.mark.parametrize("scores", [[1.0], [1.0, math.nan], [1.0, math.inf]])
def test_scores_must_be_finite_and_one_a_layer(scores: list[float]) -> None:
    with pytest.raises(InvalidRequest):
        normalise(scores, 2)


def test_the_prior_starts_with_the_layers_of_lsaq_table_ii() -> None:
    # LSAQ Table II, Llama-2-7B, first 25 %: 27, 26, 28, 24, 23, 25, 22, 29
    assert set(least_important_first(prior(32))[:8]) == {22, 23, 24, 25, 26, 27, 28, 29}
    assert least_important_first(prior(32))[:2] == (27, 26)


@given(st.integers(1, 200))
def test_the_prior_has_values_of_the_posters_range(n_layers: int) -> None:
    values = prior(n_layers)
    assert all(0.17 <= v <= 1 for v in values)
    assert max(values) == 1


def test_ties_are_broken_by_the_later_layer() -> None:
    assert least_important_first([1.0, 0.0, 0.0, 1.0]) == (2, 1, 3, 0)
