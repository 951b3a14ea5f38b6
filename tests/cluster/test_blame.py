"""Slow answers: the node's fault, or its link's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lamella.cluster.blame import FORGET_SECONDS, LINK_SECONDS, Blame
from lamella.cluster.links import MeasuredLink
from lamella.cluster.pace import N_RECENT, Pace

SENT_BYTES = 48 << 10
FAST, SLOW_LINK = MeasuredLink(0.001, 1e8, 1e8, 0.0), MeasuredLink(0.001, 4e5, 4e5, 1.0)
MEASURED_AGAIN = MeasuredLink(0.001, 0.9e8, 1e8, 1.0)


def pace(before: float, now: float) -> Pace:
    """Of a node whose answers took so many seconds, and take so many now."""
    found = Pace()
    for seconds in [before] * N_RECENT + [now] * N_RECENT:
        found.answered(SENT_BYTES, seconds)
    return found


def test_a_node_that_answers_as_it_did_is_not_slow() -> None:
    blame = Blame(FAST)
    assert blame.look(0.0, FAST, pace(0.01, 0.012)) == 1.0
    assert not blame.wants_link


@pytest.mark.parametrize(("now", "is_slow"), [(0.02, True), (0.0213, True), (0.0174, False)])
def test_twice_the_time_is_slow_and_what_is_said_of_it_comes_in_halves(now: float, is_slow: bool) -> None:
    blame = Blame(FAST)
    blame.look(0.0, FAST, pace(0.01, now))
    assert blame.wants_link is is_slow
    assert blame.look(1.0, MEASURED_AGAIN, pace(0.01, now)) == (2.0 if is_slow else 1.0)


def test_nothing_is_said_before_the_link_was_measured_anew() -> None:
    blame = Blame(FAST)
    assert blame.look(0.0, FAST, pace(0.01, 0.1)) == 1.0
    assert blame.wants_link
    assert blame.look(1.0, MEASURED_AGAIN, pace(0.01, 0.1)) == 10.0
    assert not blame.wants_link


def test_a_suspicion_ends_with_the_engine_that_raised_it() -> None:
    blame = Blame(FAST)
    blame.look(0.0, FAST, pace(0.01, 0.1))
    assert blame.look(1.0, FAST, None) == 1.0
    assert not blame.wants_link  # or the link would be measured without end
    assert blame.look(60.0, MEASURED_AGAIN, pace(0.01, 0.1)) == 1.0  # of another engine: the link is measured first
    assert blame.wants_link


def test_a_node_whose_link_cannot_be_measured_is_slow() -> None:
    blame = Blame(FAST)
    blame.look(0.0, FAST, pace(0.01, 0.1))
    assert blame.look(LINK_SECONDS, FAST, pace(0.01, 0.1)) == 10.0


def test_what_a_slower_link_explains_is_not_held_against_the_node() -> None:
    blame = Blame(FAST)
    slower = pace(0.01, 0.01 + 2 * SENT_BYTES / 4e5)
    blame.look(0.0, FAST, slower)
    assert blame.look(1.0, SLOW_LINK, slower) == 1.0


def test_a_link_that_was_slow_from_the_first_explains_nothing() -> None:
    blame = Blame(SLOW_LINK)
    slower = pace(0.3, 0.3 + 2 * SENT_BYTES / 4e5 + 0.2)
    blame.look(0.0, SLOW_LINK, slower)
    assert blame.look(1.0, replace(SLOW_LINK, at=2.0), slower) == 2.5


@pytest.mark.parametrize(("round_trip", "slowdown"), [(0.25, 1.0), (0.2499, 2.0)])
def test_a_link_that_takes_half_of_the_time_that_is_lost_explains_it(round_trip: float, slowdown: float) -> None:
    near = MeasuredLink(0.0, 1e30, 1e30, 0.0)
    blame = Blame(near)
    blame.look(0.0, near, pace(0.5, 1.0))
    assert blame.look(1.0, replace(near, round_trip_seconds=round_trip), pace(0.5, 1.0)) == slowdown


def test_a_node_that_is_slow_beside_its_slow_link_is_slow() -> None:
    blame = Blame(FAST)
    slower = pace(0.01, 5.0)
    blame.look(0.0, FAST, slower)
    assert blame.look(1.0, SLOW_LINK, slower) == 500.0


def test_a_slow_node_is_believed_to_be_so_for_a_while_after_its_layers_have_left() -> None:
    blame = Blame(FAST)
    blame.look(0.0, FAST, pace(0.01, 0.1))
    blame.look(1.0, MEASURED_AGAIN, pace(0.01, 0.1))
    assert blame.look(2.0, MEASURED_AGAIN, None) == 10.0
    assert blame.look(FORGET_SECONDS, MEASURED_AGAIN, None) == 10.0
    assert blame.look(FORGET_SECONDS + 1.0, MEASURED_AGAIN, None) == 1.0


def test_a_link_that_turns_out_slow_after_the_layers_have_left_clears_the_node() -> None:
    blame = Blame(FAST)
    slower = pace(0.01, 0.01 + 2 * SENT_BYTES / 4e5)
    blame.look(0.0, FAST, slower)
    assert blame.look(1.0, MEASURED_AGAIN, slower) > 1.0
    assert blame.look(2.0, SLOW_LINK, None) == 1.0
    assert blame.look(3.0, FAST, None) == 1.0


def test_a_node_that_answers_as_it_did_again_is_cleared() -> None:
    blame = Blame(FAST)
    blame.look(0.0, FAST, pace(0.01, 0.1))
    assert blame.look(1.0, MEASURED_AGAIN, pace(0.01, 0.1)) == 10.0
    assert blame.look(2.0, MEASURED_AGAIN, pace(0.01, 0.01)) == 1.0
    assert blame.look(3.0, MEASURED_AGAIN, pace(0.01, 0.1)) == 1.0  # suspected anew: the link first
