"""Choices for models that nobody has said anything about."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.planning.first_ladder import FirstSteps, calibration_size, first_steps, most_bits, most_stored_bits


@pytest.mark.parametrize(
    ("source", "most", "least", "useful", "expected"),
    [
        (16.0, 12.0, 3.0, 3.0, FirstSteps(4, 8.5, 3.5)),
        (5.1, 12.0, 3.0, 3.0, FirstSteps(4, 5.1, 3.5)),  # more bits than the file has would add nothing
        (16.0, 6.0, 3.0, 3.0, FirstSteps(4, 6.0, 3.5)),  # memory
        (16.0, 3.2, 3.0, 3.0, FirstSteps(1, 3.2, 3.2)),  # too little between largest and smallest
        (16.0, 12.0, 4.7, 4.7, FirstSteps(4, 8.5, 4.7)),  # rows that allow no less
        (2.6, 12.0, 3.0, 3.0, FirstSteps(1, 3.0, 3.0)),
        (16.0, 12.0, 3.0, 4.2, FirstSteps(4, 8.5, 4.2)),  # nonsense below
        (16.0, 4.0, 3.0, 4.2, FirstSteps(1, 4.0, 4.0)),  # memory holds no more
    ],
)
def test_steps_lie_between_what_is_useful_and_what_there_is(
    source: float, most: float, least: float, useful: float, expected: FirstSteps
) -> None:
    assert first_steps(source, most, least, useful) == expected


def test_large_models_are_measured_on_less_text() -> None:
    sizes = [samples * tokens for samples, tokens in map(calibration_size, (10**6, 135 * 10**6, 10**9, 10**11))]
    assert sizes[:2] == [128, 128]
    assert 64 < calibration_size(400 * 10**6)[1] * 2 < 128
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 64
    assert all(calibration_size(n)[0] >= 2 for n in (1, 10**12))  # a standard error needs two


@given(st.floats(2, 32), st.floats(2, 20), st.floats(1, 5), st.floats(1, 12))
def test_all_steps_together_take_no_more_than_is_said(source: float, room: float, least: float, useful: float) -> None:
    least = min(least, source, room)
    steps = first_steps(source, room, least, useful)
    assert steps.first_bits <= most_bits(source)
    together = steps.n_steps * (steps.first_bits + steps.last_bits) / 2
    assert together <= max(most_stored_bits(source), most_bits(source)) + 1e-9
