"""What may be open beside what, and in which order shards are exchanged: pure decisions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.batching.settings import EngineSettings
from lamella.core.artifacts import ShardRef
from lamella.core.errors import ExceedsCeiling
from lamella.run.ceiling import Ceiling, Footprint, Pair, opening_peak, plan_exchanges, what_to_drop

SIZES = {"a": 10, "b": 20, "c": 30, "d": 40}
FOOTPRINTS = {n: Footprint(size, 0, size) for n, size in SIZES.items()}


def _pair(number: int, freed: int, added: int, extra: int = 0) -> Pair:
    old, new = (ShardRef(f"{kind}{number}", f"layer {number}", 1) for kind in ("old", "new"))
    return Pair(old, new, opening_bytes=added + extra, added_bytes=added, freed_bytes=freed)


def _peak(pairs: tuple[Pair, ...], in_use: int) -> int:
    peak = in_use
    for pair in pairs:
        peak = max(peak, in_use + pair.opening_bytes)
        in_use += pair.added_bytes - pair.freed_bytes
    return peak


_PAIRS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=5)


@given(_PAIRS)
def test_no_other_order_of_exchanges_takes_less_memory(sizes: list[tuple[int, int, int]]) -> None:
    pairs = [_pair(i, *s) for i, s in enumerate(sizes)]
    in_use = sum(p.freed_bytes for p in pairs)
    exchanges, peak = plan_exchanges(pairs, in_use, room_bytes=10**9)
    assert exchanges is not None
    assert not any(e.frees_first for e in exchanges)
    assert peak == min(_peak(order, in_use) for order in itertools.permutations(pairs))
    by_new = {p.new.id: p for p in pairs}
    assert peak == _peak(tuple(by_new[e.new.id] for e in exchanges), in_use)


@given(_PAIRS)
def test_variants_that_fit_alone_can_always_be_exchanged(sizes: list[tuple[int, int, int]]) -> None:
    """With no byte to spare old shards go first, and nothing ever passes the larger of both variants."""
    pairs = [_pair(i, freed, added) for i, (freed, added, _) in enumerate(sizes)]
    before, after = sum(p.freed_bytes for p in pairs), sum(p.added_bytes for p in pairs)
    exchanges, peak = plan_exchanges(pairs, before, room_bytes=max(before, after))
    assert exchanges is not None
    assert peak <= max(before, after)


def test_shards_that_others_use_are_not_counted_as_freed() -> None:
    exchanges, peak = plan_exchanges([_pair(0, freed=0, added=10)], in_use_bytes=25, room_bytes=30)
    assert (exchanges, peak) == (None, 35)


def test_what_others_use_is_not_freed_first_where_the_ceiling_is_passed_already() -> None:
    """They compute with its repacked copies."""
    exchanges, _ = plan_exchanges([_pair(0, freed=0, added=0), _pair(1, 20, 10)], in_use_bytes=40, room_bytes=30)
    assert exchanges is not None
    assert [e.frees_first for e in exchanges] == [False, True]


def test_a_smaller_variant_can_be_switched_to_when_the_ceiling_is_passed_already() -> None:
    """Memory that grew for other reasons must not forbid what makes it less."""
    exchanges, peak = plan_exchanges([_pair(0, 20, 10), _pair(1, 20, 10)], in_use_bytes=40, room_bytes=30)
    assert exchanges is not None
    assert [e.frees_first for e in exchanges] == [True, True]
    assert peak == 40


def test_the_first_to_go_are_dropped_and_no_more_than_needed() -> None:
    spare = [("old", ["b"]), ("new", ["c"])]
    assert what_to_drop(["d"], ["a"], spare, FOOTPRINTS, 100) == ()
    assert what_to_drop(["d"], ["a"], spare, FOOTPRINTS, 80) == ("old",)
    assert what_to_drop(["d"], ["a"], spare, FOOTPRINTS, 50) == ("old", "new")
    assert what_to_drop(["d"], ["a"], spare, FOOTPRINTS, 49) is None


def test_shards_that_are_open_already_cost_nothing() -> None:
    assert what_to_drop(["a", "b"], ["a", "b"], [], FOOTPRINTS, 30) == ()
    assert what_to_drop(["a", "b"], ["a"], [("other", ["b"])], FOOTPRINTS, 30) == ()


def test_opening_takes_the_file_and_its_copies_at_once() -> None:
    footprints = {"x": Footprint(2, 10, 22), "y": Footprint(2, 10, 22)}
    assert opening_peak(5, ["x", "y"], footprints) == 5 + 12 + 22


def test_what_the_process_takes_besides_copies_is_never_room() -> None:
    ceiling = Ceiling(1000, planned_bytes=300, measure=lambda: 450)
    assert ceiling.room_bytes(copied_bytes=50) == 600
    assert ceiling.room_bytes(copied_bytes=200) == 700
    assert ceiling.spare_bytes(mapped_bytes=400, copied_bytes=200) == 100
    assert ceiling.spare_bytes(mapped_bytes=700, copied_bytes=50) == -150
    error = ceiling.refusal("variant 'x'", 800, 700, "take less")
    assert isinstance(error, ExceedsCeiling)
    assert (error.needed_bytes, error.ceiling_bytes, error.exit_code) == (1100, 1000, 4)


@pytest.mark.parametrize(
    ("context", "sequences", "cells", "expected"),
    [(4096, 8, 0, 8192), (16384, 8, 0, 16384), (512, 4, 0, 2048), (4096, 1, 0, 4096), (4096, 8, 5000, 5000)],
)
def test_the_default_cache_holds_the_longest_request_and_a_thousand_tokens_for_each(
    context: int, sequences: int, cells: int, expected: int
) -> None:
    settings = EngineSettings(store="s", n_ctx=context, n_sequences=sequences, n_cells=cells)
    assert settings.cells == expected
