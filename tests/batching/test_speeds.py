"""What steps cost lately."""

from __future__ import annotations

import pytest

from lamella.batching.speeds import LEAST_TOKENS, WEIGHT, Speeds
from lamella.batching.steps import LONGEST_STEP_SECONDS, Pace


def test_the_first_step_is_all_that_is_known_and_later_ones_move_it_a_little() -> None:
    speeds = Speeds()
    speeds.saw(0, 0.5)
    assert speeds.step_seconds == 0.5
    speeds.saw(0, 1.0)
    assert speeds.step_seconds == pytest.approx(0.5 + WEIGHT * 0.5)
    speeds.saw(100, 0.5)
    assert speeds.prompt_tokens_per_second == 200
    speeds.saw(100, 0.25)
    assert speeds.prompt_tokens_per_second == pytest.approx(200 + WEIGHT * 200)


def test_a_machine_that_changes_is_followed() -> None:
    speeds = Speeds()
    for seconds in [0.1] * 50 + [0.3] * 50:
        speeds.saw(0, seconds)
    assert speeds.step_seconds == pytest.approx(0.3, rel=0.01)


def test_steps_that_read_a_few_tokens_only_say_nothing() -> None:
    """Of reading they say too little, and they do more than write."""
    speeds = Speeds(200.0, 0.5)
    for n_tokens in range(1, LEAST_TOKENS):
        speeds.saw(n_tokens, 60.0)
    assert speeds == Speeds(200.0, 0.5)
    speeds.saw(LEAST_TOKENS, 60.0)
    assert speeds.prompt_tokens_per_second < 200
    assert speeds.step_seconds == 0.5


def test_the_pace_of_the_next_step_is_what_was_seen() -> None:
    speeds = Speeds(200.0, 0.5)
    assert speeds.pace() == Pace(200.0, 0.5, LONGEST_STEP_SECONDS, 0.0)
    assert speeds.pace(0.25, copy_seconds=0.01) == Pace(200.0, 0.5, 0.25, 0.01)
