"""What is copied in the KV cache, and when."""

from __future__ import annotations

from typing import Any, cast

import pytest

from lamella.batching.cache import STEPS_APART, SequenceCache
from lamella.batching.shelf import ParkedState
from lamella.llama.context import Context, ContextOptions


class FakeContext:
    """Notes what is saved and put back; each takes a second of its clock."""

    def __init__(self) -> None:
        self.options = ContextOptions(n_ctx=64, n_sequences=4, has_shared_cells=False)
        self.copied: list[tuple[str, int]] = []

    def clock(self) -> float:
        return float(len(self.copied))

    def save_sequence(self, sequence: int) -> bytes:
        self.copied.append(("save", sequence))
        return b"state"

    def restore_sequence(self, sequence: int, data: bytes) -> None:
        self.copied.append(("restore", sequence))

    def forget(self, sequence: int) -> None:
        pass

    def keep(self, n_tokens: int, sequence: int) -> int:
        return n_tokens


@pytest.fixture
def context() -> FakeContext:
    return FakeContext()


@pytest.fixture
def cache(context: FakeContext) -> SequenceCache:
    """Of four sequences the first and the third run; all hold tokens."""
    made = SequenceCache(
        cast(Context, cast(Any, context)), 4, 256, can_share_parts=True, most_kept_bytes=1000, clock=context.clock
    )
    for slot in made.table.slots:
        made.table.extend(slot, [10 + slot.id] * 40, "a", 0)
        slot.owner = slot.id if slot.id in (0, 2) else None
    return made


def _running(cache: SequenceCache) -> list[int]:
    return [slot.id for slot in cache.table.slots if slot.owner is not None]


def test_running_sequences_come_together_when_they_have_stayed_apart(
    cache: SequenceCache, context: FakeContext
) -> None:
    for step in range(STEPS_APART):
        cache.bring_together(step)
        assert (context.copied, cache.is_apart) == ([], True)
    cache.bring_together(STEPS_APART)
    low, high = _running(cache)
    assert high == low + 1
    assert [what for what, _ in context.copied] == ["save", "save", "restore", "restore"]
    assert cache.copy_seconds == 4
    cache.bring_together(STEPS_APART + 1)
    assert (len(context.copied), cache.is_apart) == (4, False)


def test_nothing_moves_where_another_begins_in_the_place_of_one_that_ended(
    cache: SequenceCache, context: FakeContext
) -> None:
    cache.bring_together(0)
    cache.table.slots[1].owner = 1
    cache.bring_together(STEPS_APART - 1)
    cache.table.slots[1].owner = None
    cache.bring_together(STEPS_APART)
    assert (context.copied, cache.is_apart) == ([], True)


def test_what_is_put_away_for_a_prompt_is_counted(cache: SequenceCache, context: FakeContext) -> None:
    slot = cache.place([50, 51, 52], None, 7, 1)
    assert context.copied == [("save", slot.id)]
    assert cache.copy_seconds == 1


@pytest.mark.parametrize("n_states", [1, 2])
def test_a_chat_comes_back_from_a_shelf_that_is_full(cache: SequenceCache, n_states: int) -> None:
    """What has to leave for it goes to the shelf, and pushes the oldest out: the chat itself, or another."""
    cache.shelf.most_bytes = n_states * len(b"state")
    for i in range(n_states):
        cache.shelf.put(ParkedState((50 + i,) * 40, frozenset("a"), b"state"))
    slot = cache.place([50] * 40 + [1], None, 7, 1)
    assert slot.tokens == [50] * 40
    assert len(cache.shelf) == n_states
    stays = cache.shelf.find([50] * 40 + [1], None, can_share_parts=True)
    assert (stays is not None) == (n_states == 2)
