"""Rows that a step is filled up with: only where they have been seen to make it shorter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.batching.filling import AT_ONCE, LEAST_ROWS, N_KEPT, PROBE_EVERY, RUN, TRIES, Filling

N_TRIED = RUN * (TRIES + 2)
"""Steps after which one size is preferred."""


def run(
    filling: Filling,
    seconds: dict[int, float],
    n_steps: int,
    *,
    variant: str = "a",
    slowdown: Callable[[int], float] = lambda _: 1.0,
) -> list[int]:
    """Steps of seven streams, which take so long by rows; returns the rows of each."""
    sizes = []
    for i in range(n_steps):
        sizes.append(filling.rows(variant, 7))
        filling.saw(variant, 7, sizes[-1], slowdown(i) * seconds[sizes[-1]])
    return sizes


def usual(sizes: Sequence[int]) -> int:
    """The size that all steps have but those that try the other."""
    (size,) = {n for n in sizes if sizes.count(n) >= len(sizes) * (1 - 2 * RUN / PROBE_EVERY)}
    return size


@pytest.mark.parametrize(("full", "expected"), [(0.014, 8), (0.0179, 7), (0.018, 7), (0.020, 7)])
def test_the_faster_size_is_found_and_kept(full: float, expected: int) -> None:
    sizes = run(Filling(), {7: 0.018, 8: full}, N_TRIED + 3 * PROBE_EVERY)
    assert set(sizes[:N_TRIED]) == {7, 8}
    assert sizes[N_TRIED:].count(expected) == 3 * (PROBE_EVERY - RUN)


def test_a_size_that_becomes_faster_is_noticed() -> None:
    filling = Filling()
    run(filling, {7: 0.018, 8: 0.020}, N_TRIED)
    later = run(filling, {7: 0.018, 8: 0.014}, PROBE_EVERY * N_KEPT)
    assert usual(later[-PROBE_EVERY:]) == 8


def test_a_machine_whose_speed_changes_is_not_taken_for_a_size_that_is_slower() -> None:
    filling = Filling()
    sizes = run(filling, {7: 0.018, 8: 0.014}, 40 * PROBE_EVERY, slowdown=lambda i: 1.7 if i // 50 % 2 else 1.0)
    assert sizes.count(8) > 0.8 * len(sizes)


def test_steps_that_plan_their_graph_anew_do_not_count() -> None:
    filling, before = Filling(), 0
    for _ in range(3 * PROBE_EVERY):
        n_rows = filling.rows("a", 7)
        filling.saw(
            "a", 7, n_rows, (0.014 if n_rows == 8 else 0.018) + (9.0 if n_rows != before and n_rows == 8 else 0)
        )
        before = n_rows
    assert usual([filling.rows("a", 7) for _ in range(PROBE_EVERY)]) == 8


def test_steps_with_other_steps_between_them_are_not_compared() -> None:
    """Streams are longer then, or fewer: what was slow may have been slow for another reason."""
    filling = Filling()
    for n_rows, seconds in [(8, 0.014), (7, 0.009)] * 20:
        filling.saw_other()
        filling.saw("a", 7, n_rows, seconds)
        filling.saw("a", 7, n_rows, seconds)
    assert set(run(filling, {7: 0.018, 8: 0.014}, N_TRIED)) == {7, 8}
    assert usual(run(filling, {7: 0.018, 8: 0.014}, 2 * PROBE_EVERY)) == 8


def test_variants_have_times_of_their_own() -> None:
    filling = Filling()
    run(filling, {7: 0.018, 8: 0.014}, 100)
    slow = run(filling, {7: 0.018, 8: 0.030}, N_TRIED + PROBE_EVERY, variant="b")
    assert usual(slow[-PROBE_EVERY:]) == 7


@given(st.integers(1, 64), st.lists(st.floats(0.001, 1.0), min_size=1, max_size=40))
def test_never_fewer_rows_and_never_more_than_the_next_multiple(n_streams: int, times: list[float]) -> None:
    filling = Filling()
    for seconds in times:
        n_rows = filling.rows("a", n_streams)
        assert n_rows in (n_streams, -(-n_streams // AT_ONCE) * AT_ONCE)
        if n_streams < LEAST_ROWS or n_streams % AT_ONCE == 0:
            assert n_rows == n_streams
        filling.saw("a", n_streams, n_rows, seconds)
