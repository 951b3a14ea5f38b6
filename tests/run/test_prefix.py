"""How much of a prompt is in the cache already."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lamella.run.prefix import shared_prefix

tokens = st.lists(st.integers(0, 2), max_size=40)


@given(tokens, tokens, tokens)
def test_as_many_tokens_as_one_would_count(common: list[int], cached: list[int], asked: list[int]) -> None:
    cached, asked = common + cached, common + asked
    counted = next((i for i, (a, b) in enumerate(zip(cached, asked, strict=False)) if a != b), None)
    assert shared_prefix(cached, asked) == (min(len(cached), len(asked)) if counted is None else counted)


def test_a_difference_anywhere_in_a_long_prompt_is_found() -> None:
    long = list(range(1000))
    assert shared_prefix(long, long) == 1000
    for place in range(1000):
        assert shared_prefix(long, [*long[:place], -1, *long[place + 1 :]]) == place


def test_few_slices_are_compared() -> None:
    """A prompt of thousands of tokens is not walked through in Python."""

    class Counting(list[int]):
        n_slices = 0

        def __getitem__(self, place: Any) -> Any:
            type(self).n_slices += 1
            return super().__getitem__(place)

    assert shared_prefix(Counting(range(100_000)), [*range(77_777), -1]) == 77_777
    assert 0 < Counting.n_slices < 40
