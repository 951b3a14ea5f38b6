"""What left the KV cache: found by its beginning, bounded in bytes, the least recently used gives way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lamella.batching.shelf import LEAST_KEPT, ParkedState, Shelf


def state(tokens: list[int], variants: str = "a", n_bytes: int = 100) -> ParkedState:
    return ParkedState(tuple(tokens), frozenset(variants), b"x" * n_bytes)


def test_the_longest_beginning_is_found() -> None:
    shelf = Shelf(1000)
    for tokens in ([1, 2, 3, 9], [1, 2, 3, 4, 5, 9], [7, 8]):
        shelf.put(state(tokens))
    found = shelf.find([1, 2, 3, 4, 5, 6, 7], None, can_share_parts=True)
    assert found is not None
    assert (found.state.tokens, found.n_shared) == ((1, 2, 3, 4, 5, 9), 5)
    assert shelf.find([5, 5], None, can_share_parts=True) is None


def test_the_last_token_of_a_prompt_is_left_to_compute() -> None:
    shelf = Shelf(1000)
    shelf.put(state([1, 2, 3]))
    found = shelf.find([1, 2, 3], None, can_share_parts=True)
    assert found is not None
    assert found.n_shared == 2
    assert shelf.find([1, 2, 3], None, can_share_parts=False) is None
    whole = shelf.find([1, 2, 3, 4], None, can_share_parts=False)
    assert whole is not None
    assert whole.n_shared == 3


def test_only_what_the_wanted_variant_computed() -> None:
    shelf = Shelf(1000)
    shelf.put(state([1, 2, 3, 4], "ab"))
    shelf.put(state([1, 2], "a"))
    found = shelf.find([1, 2, 3, 4, 5], "a", can_share_parts=True)
    assert found is not None
    assert found.state.tokens == (1, 2)


def test_a_chat_that_grew_takes_the_place_of_its_beginning() -> None:
    shelf = Shelf(1000)
    shelf.put(state([1, 2]))
    shelf.put(state([1, 2], "b"))
    shelf.put(state([1, 2, 3]))
    assert (len(shelf), shelf.n_bytes) == (2, 200)
    shelf.put(state([1]))
    assert len(shelf) == 2


def test_how_much_of_a_sequence_is_kept_counts_what_the_same_variants_computed() -> None:
    shelf = Shelf(1000)
    shelf.put(state([1, 2, 3, 4]))
    assert shelf.shared([1, 2, 3, 9], frozenset("a")) == 3
    assert shelf.shared([1, 2, 3, 4], {"a"}) == 4
    assert shelf.shared([1, 2, 3, 4], {"a", "b"}) == 0


def test_what_was_of_use_stays_longer() -> None:
    shelf = Shelf(250)
    first, second = state([1, 1]), state([2, 2])
    shelf.put(first)
    shelf.put(second)
    shelf.used(first)
    shelf.put(state([3, 3]))
    assert shelf.find([2, 2, 2], None, can_share_parts=True) is None
    assert shelf.find([1, 1, 1], None, can_share_parts=True) is not None


def test_nothing_is_kept_without_room_and_nothing_short() -> None:
    assert not Shelf(0).takes(1000)
    assert Shelf(1).takes(LEAST_KEPT)
    assert not Shelf(1).takes(LEAST_KEPT - 1)
    shelf = Shelf(50)
    shelf.put(state([1, 2]))
    assert len(shelf) == 0


@given(st.lists(st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(1, 120))))
def test_it_never_takes_more_than_it_may(puts: list[tuple[list[int], int]]) -> None:
    shelf = Shelf(250)
    for tokens, n_bytes in puts:
        shelf.put(state(tokens, n_bytes=n_bytes))
        assert shelf.n_bytes <= 250
    kept = [shelf.find([*tokens, 9], None, can_share_parts=True) for tokens, _ in puts]
    assert shelf.n_bytes >= max((len(f.state.data) for f in kept if f), default=0)
