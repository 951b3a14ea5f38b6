"""The machine's pace: within what was seen, soon at what stays, unmoved by hiccups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.qos.pace import HostPace
from lamella.qos.profiles.refresh import WILDEST


@given(st.lists(st.floats(0.3, 3.5), min_size=1, max_size=8))
def test_the_pace_lies_within_what_was_seen_and_comes_to_what_stays(ratios: list[float]) -> None:
    pace = HostPace()
    for ratio in ratios:
        pace = pace.seen(ratio)
    assert min(ratios) / 1.0001 <= pace.times <= max(ratios) * 1.0001
    for _ in range(20):
        pace = pace.seen(1.25)
    assert pace.times == pytest.approx(1.25, rel=1e-4)


def test_the_first_steps_set_the_pace_and_a_hiccup_counts_for_little() -> None:
    assert HostPace().seen(1.3).times == pytest.approx(1.3)
    assert HostPace().seen(100.0).times == WILDEST
