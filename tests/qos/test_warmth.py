"""How many variants stay in memory beside the running one."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from lamella.qos.warmth import warm_variants
from tests.qos.profiles import MEBI, ladder, variant

UNEQUAL = replace(ladder(2), variants=tuple(variant(name, memory=n * MEBI) for name, n in [("s", 300), ("l", 900)]))


def test_all_stay_where_half_of_the_memory_holds_them() -> None:
    assert warm_variants(ladder(4), 4 * 2 * 500 * MEBI) == 4


def test_the_largest_are_counted_so_that_it_fits_whichever_run() -> None:
    three = replace(UNEQUAL, variants=(*UNEQUAL.variants, variant("m", memory=600 * MEBI)))
    assert warm_variants(three, 2 * 1800 * MEBI) == 3
    assert warm_variants(three, 2 * 1799 * MEBI) == 2


def test_where_memory_is_short_there_are_two_as_without_a_policy() -> None:
    assert warm_variants(UNEQUAL, 0) == 2


@given(st.integers(0, 10**11), st.integers(0, 10**11))
def test_more_memory_never_keeps_fewer(one: int, other: int) -> None:
    few, many = sorted((one, other))
    assert warm_variants(ladder(6), few) <= warm_variants(ladder(6), many)
