"""When layers move: what must be is done, what would only be better is bounded."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.cluster.replanning import BUDGET_SECONDS, Decision, Record, ReplanLimits, View, decide
from lamella.core.errors import InvalidRequest

LIMITS = ReplanLimits(gain=0.25, hold_seconds=30.0, grace_seconds=1.5, n_moves=3)
Step = tuple[float, float | None, float | None, bool, bool]
seconds = st.none() | st.floats(0.1, 10.0)
views = st.lists(
    st.tuples(st.floats(0.1, 400.0), seconds, seconds, st.booleans(), st.booleans()), min_size=1, max_size=60
)


def played(steps: Sequence[Step]) -> list[tuple[View, Decision]]:
    """Decisions one after the other, each with the record of the one before."""
    record, now, found = Record(), 0.0, []
    for pause, current, other, is_asked_for, has_stopped in steps:
        now += pause
        view = View(now, None if has_stopped else current, other, is_asked_for, has_stopped)
        decision = decide(record, view, LIMITS)
        record = decision.record
        found.append((view, decision))
    return found


@given(views)
def test_moves_that_are_only_better_keep_gain_hold_and_budget(steps: list[Step]) -> None:
    moves: list[float] = []
    for view, decision in played(steps):
        if decision.act == "move" and view.current_seconds is not None:
            assert view.other_seconds is not None
            assert view.is_asked_for or view.current_seconds >= 1.25 * view.other_seconds
            assert not moves or view.now - moves[-1] >= LIMITS.hold_seconds
            assert sum(moment > view.now - BUDGET_SECONDS for moment in moves) < LIMITS.n_moves
        if decision.act == "move":
            moves.append(view.now)


@given(views)
def test_what_is_better_was_better_all_through_the_hold(steps: list[Step]) -> None:
    found = played(steps)
    for i, (view, decision) in enumerate(found):
        if decision.act != "move" or view.current_seconds is None:
            continue
        for before, _ in reversed(found[:i]):
            if before.now < view.now - LIMITS.hold_seconds:
                break
            assert before.current_seconds is not None
            assert before.other_seconds is not None


@given(views)
def test_a_placement_that_is_impossible_is_left_at_once_whatever_the_budget(steps: list[Step]) -> None:
    lost_at: float | None = None
    for view, decision in played(steps):
        if view.current_seconds is not None:
            lost_at = None
            assert decision.act in ("keep", "move")
            continue
        lost_at = view.now if lost_at is None else lost_at
        if view.has_stopped or view.now - lost_at >= LIMITS.grace_seconds:
            assert decision.act == ("stop" if view.other_seconds is None else "move")
        if decision.act == "move":
            lost_at = None


def test_a_node_that_is_back_within_the_grace_keeps_its_layers() -> None:
    (_, away), (_, back) = played([(1.0, None, 0.5, False, False), (1.0, 1.0, 0.9, False, False)])
    assert (away.act, back.act, back.record.lost_since) == ("wait", "keep", None)


def test_a_better_placement_that_vanishes_meanwhile_begins_its_hold_anew() -> None:
    better, same = (20.0, 1.0, 0.5, False, False), (5.0, 1.0, 0.9, False, False)
    assert [d.act for _, d in played([better, better, better])] == ["keep", "keep", "move"]
    assert [d.act for _, d in played([better, better, same, better, better])] == ["keep"] * 5


def test_a_node_that_comes_and_goes_is_left_out_when_the_budget_is_spent() -> None:
    flap = [(31.0, None, 1.0, False, False), (2.0, None, 1.0, False, False), *[(31.0, 1.0, 1.0, True, False)] * 2]
    acts = [decision.act for _, decision in played(flap * 2)]
    assert acts == ["wait", "move", "keep", "move", "wait", "move", "keep", "keep"]


def test_limits_without_meaning_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least 0"):
        ReplanLimits(gain=-0.1)
