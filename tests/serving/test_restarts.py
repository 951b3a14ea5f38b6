"""How often engines are started again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InvalidRequest
from lamella.serving.restarts import GiveUp, Restart, RestartHistory, RestartLimits, decide

LIMITS = RestartLimits(n_restarts=5, window_seconds=60, n_fruitless=4, first_pause_seconds=1, longest_pause_seconds=5)

deaths = st.lists(st.tuples(st.floats(0, 40), st.booleans()), max_size=60)
limits = st.builds(
    RestartLimits,
    n_restarts=st.integers(0, 8),
    window_seconds=st.floats(1, 100),
    n_fruitless=st.integers(0, 10),
    first_pause_seconds=st.floats(0, 5),
    longest_pause_seconds=st.floats(0, 20),
)


def restarts(life: list[tuple[float, bool]], limits: RestartLimits) -> list[tuple[float, float, bool]]:
    """When engines are started that live and do work as ``life`` says; each with its pause and whether it followed
    a fruitful one."""
    now, history, made = 0.0, RestartHistory(), []
    for lived_seconds, was_fruitful in life:
        now += lived_seconds
        decision = decide(history, limits, now=now, was_fruitful=was_fruitful)
        if isinstance(decision, GiveUp):
            break
        history = decision.history
        now += decision.pause_seconds
        made.append((now, decision.pause_seconds, was_fruitful))
    return made


@given(life=deaths, limits=limits)
def test_no_window_has_more_restarts_than_allowed(life: list[tuple[float, bool]], limits: RestartLimits) -> None:
    moments = [at for at, _, _ in restarts(life, limits)]
    for first in moments:
        assert sum(first <= at < first + limits.window_seconds for at in moments) <= limits.n_restarts


@given(life=deaths, limits=limits)
def test_pauses_grow_until_an_engine_does_some_work(life: list[tuple[float, bool]], limits: RestartLimits) -> None:
    before = 0.0
    for _, pause, was_fruitful in restarts(life, limits):
        if was_fruitful:
            assert pause == 0
        else:
            assert before <= pause <= limits.longest_pause_seconds
        before = pause


@given(life=deaths, limits=limits)
def test_engines_without_fruit_are_not_replaced_for_ever(life: list[tuple[float, bool]], limits: RestartLimits) -> None:
    in_a_row = 0
    for _, _, was_fruitful in restarts(life, limits):
        in_a_row = 0 if was_fruitful else in_a_row + 1
        assert in_a_row <= limits.n_fruitless


def test_a_fruitful_engine_is_replaced_at_once() -> None:
    assert decide(RestartHistory(), LIMITS, now=7, was_fruitful=True) == Restart(0, RestartHistory((7,), 0))


def test_each_pause_is_twice_the_one_before_up_to_the_longest() -> None:
    wide = RestartLimits(n_restarts=99, n_fruitless=9, first_pause_seconds=1, longest_pause_seconds=5)
    assert [pause for _, pause, _ in restarts([(0, False)] * 5, wide)] == [1, 2, 4, 5, 5]


def test_giving_up_says_which_limit_was_met() -> None:
    decision = decide(RestartHistory(n_fruitless=4), LIMITS, now=0, was_fruitful=False)
    assert decision == GiveUp("5 engines in a row ended before they did any work")
    decision = decide(RestartHistory((1, 2, 3, 4, 5)), LIMITS, now=10, was_fruitful=True)
    assert decision == GiveUp("the engine was restarted 5 times in 60 s")


def test_what_is_older_than_the_window_does_not_count() -> None:
    decision = decide(RestartHistory((1, 2, 3, 4, 5)), LIMITS, now=61, was_fruitful=True)
    assert decision == Restart(0, RestartHistory((2, 3, 4, 5, 61)))


def test_limits_below_zero_have_no_meaning() -> None:
    with pytest.raises(InvalidRequest, match="at least 0"):
        RestartLimits(n_restarts=-1)
