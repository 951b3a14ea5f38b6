"""Rows that a step is filled up with: only where they have been seen to make it shorter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.batching.filling import AT_ONCE, LEAST_ROWS, N_KEPT, PROBE_EVERY, PROBES, TRIES, Filling


def run(filling: Filling, seconds: dict[int, float], n_streams: int, n_steps: int, variant: str = "a") -> list[int]:
    """Steps of a machine that takes so long for so many rows; returns the rows of each."""
    sizes = []
    for _ in range(n_steps):
        sizes.append(filling.rows(variant, n_streams))
        filling.saw(variant, sizes[-1], seconds[sizes[-1]])
    return sizes


@pytest.mark.parametrize(("full", "usual"), [(0.014, 8), (0.018, 7), (0.0179, 7), (0.020, 7)])
def test_the_faster_size_is_found_and_kept(full: float, usual: int) -> None:
    sizes = run(Filling(), {7: 0.018, 8: full}, 7, 2 * TRIES + 3 * PROBE_EVERY)
    assert sizes[: 2 * TRIES] == [8] * TRIES + [7] * TRIES
    assert sizes[2 * TRIES :].count(usual) == 3 * (PROBE_EVERY - PROBES)


def test_a_size_that_becomes_faster_is_noticed() -> None:
    filling = Filling()
    run(filling, {7: 0.018, 8: 0.020}, 7, 2 * TRIES + 1)
    later = run(filling, {7: 0.018, 8: 0.014}, 7, PROBE_EVERY * (N_KEPT + 1))
    assert later[-PROBE_EVERY:].count(8) == PROBE_EVERY - PROBES


def test_one_slow_step_says_nothing() -> None:
    filling = Filling()
    run(filling, {7: 0.018, 8: 0.014}, 7, 2 * TRIES + PROBES)
    filling.saw("a", 8, 9.0)
    assert filling.rows("a", 7) == 8


def test_variants_have_times_of_their_own() -> None:
    filling = Filling()
    run(filling, {7: 0.018, 8: 0.014}, 7, 100)
    slow = run(filling, {7: 0.018, 8: 0.030}, 7, 100, variant="b")
    assert slow.count(8) <= TRIES + PROBES * (1 + 100 // PROBE_EVERY)


@given(st.integers(1, 64), st.lists(st.floats(0.001, 1.0), min_size=1, max_size=40))
def test_never_fewer_rows_and_never_more_than_the_next_multiple(n_streams: int, times: list[float]) -> None:
    filling = Filling()
    for seconds in times:
        n_rows = filling.rows("a", n_streams)
        assert n_rows in (n_streams, -(-n_streams // AT_ONCE) * AT_ONCE)
        if n_streams < LEAST_ROWS or n_streams % AT_ONCE == 0:
            assert n_rows == n_streams
        filling.saw("a", n_rows, seconds)
