"""When layers move: what must be is done, what would only be better is bounded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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


def act(record: Record, view: View, limits: ReplanLimits = LIMITS) -> str:
    """What is done."""
    return decide(record, view, limits).act


@pytest.mark.parametrize(("current", "expected"), [(1.25, "move"), (1.2499, "keep")])
def test_a_gain_is_enough_when_it_is_reached(current: float, expected: str) -> None:
    assert act(Record(better_since=0.0), View(100.0, current, 1.0)) == expected
    assert act(Record(better_since=0.0), View(100.0, current, 1.0, is_asked_for=True)) == "move"


@pytest.mark.parametrize(("now", "expected"), [(30.0, "move"), (29.99, "keep")])
def test_a_hold_is_over_when_its_seconds_are(now: float, expected: str) -> None:
    assert act(Record(better_since=0.0), View(now, 2.0, 1.0)) == expected
    since_the_last_move = Record(moves=(-500.0, 0.0), better_since=-100.0)
    assert act(since_the_last_move, View(now, 2.0, 1.0)) == expected
    assert act(Record(moves=(-500.0,), better_since=0.0), View(now, 2.0, 1.0)) == expected


@pytest.mark.parametrize(("now", "expected"), [(1.5, "move"), (1.49, "wait")])
def test_a_grace_is_over_when_its_seconds_are(now: float, expected: str) -> None:
    assert act(Record(lost_since=0.0), View(now, None, 1.0)) == expected
    assert act(Record(lost_since=0.0), View(now, None, 1.0, has_stopped=True)) == "move"


@pytest.mark.parametrize(("now", "expected"), [(BUDGET_SECONDS, "move"), (BUDGET_SECONDS - 0.5, "keep")])
def test_a_move_counts_for_an_hour(now: float, expected: str) -> None:
    """Three may be made within one."""
    record = Record(moves=(0.0, 1.0, 2.0), better_since=0.0)
    assert act(record, View(now, 2.0, 1.0)) == expected
    assert act(replace(record, moves=(1.0, 2.0)), View(100.0, 2.0, 1.0)) == "move"
    assert decide(record, View(now, 1.0, 1.0), LIMITS).record.moves == record.moves[1 if expected == "move" else 0 :]


def test_a_move_is_remembered_with_those_before_and_what_led_to_it_is_not() -> None:
    for view in (View(100.0, 2.0, 1.0), View(100.0, None, 1.0)):
        decision = decide(Record(moves=(7.0,), lost_since=0.0, better_since=0.0), view, LIMITS)
        assert (decision.act, decision.record) == ("move", Record(moves=(7.0, 100.0)))


def test_a_loss_ends_what_was_better_and_a_return_ends_the_loss() -> None:
    lost = decide(Record(better_since=0.0), View(5.0, None, 1.0), LIMITS)
    assert lost.record == Record(lost_since=5.0)
    assert decide(lost.record, View(6.0, 1.0, 1.0), LIMITS).record == Record()
    stopped = decide(lost.record, View(7.0, None, None), LIMITS)
    assert (stopped.act, stopped.record) == ("stop", lost.record)


def test_the_limits_are_those_that_the_documentation_names() -> None:
    assert ReplanLimits() == ReplanLimits(gain=0.25, hold_seconds=30.0, grace_seconds=1.5, n_moves=12)
    assert BUDGET_SECONDS == 3600


def test_limits_may_be_0_and_not_below_each_of_them() -> None:
    none = ReplanLimits(gain=0, hold_seconds=0, grace_seconds=0, n_moves=0)
    assert act(Record(), View(0.0, None, 1.0), none) == "move"
    assert act(Record(), View(0.0, 1.0, 1.0), none) == "keep"  # without moves in an hour none is made for speed
    assert act(Record(), View(0.0, 1.0, 1.0), replace(none, n_moves=1)) == "move"
    for name in ("gain", "hold_seconds", "grace_seconds", "n_moves"):
        with pytest.raises(InvalidRequest, match="at least 0"):
            replace(none, **{name: -1})
