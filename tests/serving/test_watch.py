"""When an engine counts as hung."""

from __future__ import annotations

import pytest

from lamella.core.errors import InvalidRequest
from lamella.serving.watch import Patience, Watch

PATIENCE = Patience(hang_seconds=4, step_seconds=20, load_seconds=100)


def look(watch: Watch, since: float, until: float) -> str:
    """Look every ``tick_seconds``; the first complaint."""
    now = since
    while now < until:
        now += PATIENCE.tick_seconds
        if complaint := watch.complaint(now):
            return complaint
    return ""


def test_an_engine_that_keeps_quiet_hangs() -> None:
    watch = Watch(PATIENCE, 0)
    watch.up(0)
    assert look(watch, 0, 4) == ""
    assert look(watch, 4, 6) == "no sign of life for 5.0 s"


def test_every_word_counts_as_a_sign_of_life() -> None:
    watch = Watch(PATIENCE, 0)
    watch.up(0)
    for now in range(0, 30, 3):
        watch.heard(now)
        assert look(watch, now, now + 3) == ""


def test_a_step_without_end_hangs_though_the_pulse_goes_on() -> None:
    watch = Watch(PATIENCE, 0)
    watch.up(0)
    watch.in_step(19)
    assert watch.complaint(1) == ""
    watch.in_step(21)
    assert watch.complaint(2) == "a step of the model has run for 21.0 s; 20 s are allowed"
    watch.in_step(0)
    assert watch.complaint(3) == ""


def test_loading_takes_longer_than_a_step() -> None:
    watch = Watch(PATIENCE, 0)
    assert look(watch, 0, 100) == ""
    assert look(watch, 100, 102) == "it has not loaded the model within 100 s"


def test_time_in_which_the_front_itself_stood_still_does_not_count() -> None:
    watch = Watch(PATIENCE, 0)
    watch.up(0)
    assert look(watch, 0, 2) == ""
    assert watch.complaint(1000) == ""
    assert look(watch, 1000, 1010) == "no sign of life for 5.0 s"


def test_no_patience_at_all_has_no_meaning() -> None:
    with pytest.raises(InvalidRequest, match="above 0"):
        Patience(hang_seconds=0)
