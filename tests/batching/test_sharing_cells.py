"""What sequences share and keep of the KV cache, and who gives way where it is too small: all write as if alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from lamella.batching.cache import SequenceCache
from lamella.batching.filling import Filling
from lamella.batching.messages import (
    Cancel,
    Finished,
    Scored,
)
from lamella.batching.opened_context import KEPT_PREFIXES
from lamella.batching.shelf import ParkedState
from lamella.batching.slots import Slot, SlotTable
from lamella.core.errors import CacheFull
from lamella.llama import saving
from lamella.llama.batch import BatchPart
from lamella.llama.context import Context
from tests.batching.conftest import LONG, PROMPTS, FakeFront, OpenFront, assert_same_but_for_ties, events_of

save_sequence = Context.save_sequence


def test_a_prompt_that_was_read_before_is_not_read_again(front: FakeFront) -> None:
    system = "you are a helpful assistant who answers in few words. "
    front.write(system + "one")
    number = front.start(system + "two")
    end = front.end_of(number)
    assert end.cached_tokens > 20
    with_cache = front.tokens_of(number)
    front.write("something else entirely" * 3)
    assert front.loop.status().n_cached_tokens >= end.cached_tokens
    assert with_cache


def test_requests_that_arrive_together_share_their_beginning(open_front: OpenFront) -> None:
    system = "you are a helpful assistant who answers in few words, and never in many. "
    with open_front(n_batch=32) as front:
        numbers = [front.start(system + p, n_logprobs=2) for p in PROMPTS[:4]]
        ends = [front.end_of(n) for n in numbers]
        assert sum(e.cached_tokens > 40 for e in ends) == 3
        shared = [events_of(front, n) for n in numbers]
    for prompt, events in zip(PROMPTS, shared, strict=False):
        with open_front(n_batch=32) as other:
            assert_same_but_for_ties(events_of(other, other.start(system + prompt, n_logprobs=2)), events)


def test_running_requests_are_brought_together_and_write_on(
    open_front: OpenFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that end leave gaps; what moves into them writes what an undisturbed request writes."""
    moves: list[tuple[int, int]] = []
    exchange = SlotTable.exchange

    def counted(table: SlotTable, one: Slot, other: Slot) -> None:
        moves.append((one.id, other.id))
        exchange(table, one, other)

    monkeypatch.setattr(SlotTable, "exchange", counted)
    with open_front() as front:
        lengths = [60, 2, 60, 4]
        with front.at_once():
            numbers = [front.start(p, max_tokens=n, n_logprobs=2) for p, n in zip(PROMPTS, lengths, strict=False)]
        moved = [events_of(front, n) for n in numbers]
    assert moves
    for prompt, n, events in zip(PROMPTS, lengths, moved, strict=False):
        with open_front() as other:
            assert_same_but_for_ties(events_of(other, other.start(prompt, max_tokens=n, n_logprobs=2)), events)


@pytest.mark.parametrize(("cells", "n_slots"), [({}, 8), ({"n_cells": 512}, 8 + KEPT_PREFIXES)], ids=["own", "shared"])
def test_steps_that_are_filled_up_write_the_same_and_leave_what_is_kept(
    open_front: OpenFront, monkeypatch: pytest.MonkeyPatch, cells: dict[str, Any], n_slots: int
) -> None:
    """Rows of all free slots take part, also of one that holds the beginning of a chat, and nothing of them stays."""
    passes: list[int] = []
    decode = Context.decode_parts

    def counted(context: Context, parts: Sequence[BatchPart]) -> tuple[int, ...]:
        passes.append(len(parts))
        return decode(context, parts)

    monkeypatch.setattr(Context, "decode_parts", counted)
    monkeypatch.setattr(Filling, "rows", lambda _, variant, n: n_slots)
    with open_front(n_sequences=8, **cells) as front:
        chat = front.end_of(front.start(PROMPTS[0], max_tokens=4))
        with front.at_once():
            numbers = [front.start(p, max_tokens=40, n_logprobs=2) for p in PROMPTS[1:]]
        together = [events_of(front, n) for n in numbers]
        assert max(passes) == n_slots
        cache = front.loop._cache
        assert all(saving.length(cache._context, s.id) == len(s.tokens) for s in cache.table.slots)
        again = front.end_of(front.start(PROMPTS[0], max_tokens=4))
    assert (again.cached_tokens, again.text) == (again.prompt_tokens - 1, chat.text)
    monkeypatch.setattr(Filling, "rows", lambda _, variant, n: n)
    for prompt, events in zip(PROMPTS[1:], together, strict=False):
        with open_front() as other:
            assert_same_but_for_ties(events_of(other, other.start(prompt, max_tokens=40, n_logprobs=2)), events)


def test_a_full_cache_is_not_filled_up(open_front: OpenFront, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that nobody needs never take a cell from somebody who does."""
    monkeypatch.setattr(Filling, "rows", lambda _, variant, n: n + 2)
    with open_front(n_sequences=8, n_cells=128, n_ctx=128) as front:
        numbers = [front.start(p * 2, max_tokens=40) for p in PROMPTS]
        assert all(front.end_of(n).generated_tokens == 40 for n in numbers)
        assert front.loop.status().cells_used <= 128


@pytest.mark.parametrize(("settings", "fills"), [({}, True), ({"is_reproducible": True}, False)])
def test_reproducible_steps_are_not_filled_up(open_front: OpenFront, settings: dict[str, Any], fills: bool) -> None:
    with open_front(**settings) as front:
        assert (front.loop._scheduler._filling is not None) is fills


def test_a_cache_that_is_too_small_for_all_makes_some_wait(open_front: OpenFront) -> None:
    with open_front(n_cells=128, n_ctx=128) as front:
        numbers = [front.start(p * 2, max_tokens=40, n_logprobs=2) for p in PROMPTS]
        written = [events_of(front, n) for n in numbers]
        assert all(len(events) == 40 for events in written)
        assert front.loop.status().cells_used <= 128
        assert front.loop.status().n_prompt_tokens == _n_read_once(front, numbers)
    for prompt, events in zip(PROMPTS, written, strict=True):
        with open_front() as other:
            assert_same_but_for_ties(events_of(other, other.start(prompt * 2, max_tokens=40, n_logprobs=2)), events)


def test_what_gives_way_for_want_of_cells_begins_again_when_there_are_enough(
    open_front: OpenFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both prompts have room side by side, both answers have not: one is copied out and in, and none is read twice."""
    parked: list[int] = []
    park = SequenceCache.park

    def counted(cache: SequenceCache, slot: Slot) -> ParkedState | None:
        parked.append(len(slot.tokens))
        return park(cache, slot)

    monkeypatch.setattr(SequenceCache, "park", counted)
    prompts = [[token] * 400 for token in (5, 6)]
    with open_front(n_ctx=1024, n_cells=1024, n_batch=32) as front:
        with front.at_once():
            numbers = [front.start(p, max_tokens=200, n_logprobs=2) for p in prompts]
        written = [events_of(front, n) for n in numbers]
        assert [len(events) for events in written] == [200, 200]
        status = front.loop.status()
        assert (status.n_prompt_tokens, status.n_cached_tokens) == (800, 0)
    assert len(parked) == 1
    for prompt, events in zip(prompts, written, strict=True):
        with open_front(n_ctx=1024) as other:
            assert_same_but_for_ties(events_of(other, other.start(prompt, max_tokens=200, n_logprobs=2)), events)


def _no_room_once(monkeypatch: pytest.MonkeyPatch, when: Callable[[Sequence[BatchPart]], bool]) -> list[int]:
    """The first pass of which something is true finds no room, against the books; returns the parts of that pass."""
    refused: list[int] = []
    decode_parts = Context.decode_parts

    def decoded(context: Context, parts: Sequence[BatchPart]) -> tuple[int, ...]:
        if not refused and when(parts):
            refused.append(len(parts))
            raise CacheFull("no room")
        return decode_parts(context, parts)

    monkeypatch.setattr(Context, "decode_parts", decoded)
    return refused


def test_where_the_cache_has_less_room_than_the_books_say_the_least_urgent_gives_way(
    open_front: OpenFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As caches of sliding windows, which pad; nobody's tokens are lost."""
    parked: list[int] = []
    park = SequenceCache.park

    def noted(cache: SequenceCache, slot: Slot) -> ParkedState | None:
        parked.append(slot.tokens[0])
        return park(cache, slot)

    monkeypatch.setattr(SequenceCache, "park", noted)
    prompts = [[token] * 10 for token in (5, 6)]
    with open_front(n_sequences=2) as front:
        refused = _no_room_once(monkeypatch, lambda parts: [len(part.tokens) for part in parts] == [1, 1])
        numbers = [front.start(prompt, max_tokens=60) for prompt in prompts]
        found = [front.tokens_of(number) for number in numbers]
        assert refused == [2]
        assert parked == [6]  # who came later
    for prompt, tokens in zip(prompts, found, strict=True):
        with open_front() as other:
            assert other.write(prompt, max_tokens=60) == tokens


def test_who_is_alone_and_finds_no_room_ends_as_one_that_is_too_long(
    open_front: OpenFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_front() as front:
        refused = _no_room_once(monkeypatch, lambda parts: parts[0].start == 30)
        end = front.end_of(front.start([5] * 20, max_tokens=60))
        assert refused == [1]
        assert (end.reason, end.generated_tokens) == ("length", 11)  # the eleventh was drawn, and found no cell
        assert len(front.write([5] * 20)) == 12  # the engine goes on


def test_a_prompt_without_room_beside_others_waits_for_them_and_is_read_once(open_front: OpenFront) -> None:
    with open_front(n_ctx=256, n_cells=256) as front:
        long = front.start([5] * 170, max_tokens=80)
        waits = front.start([6] * 100, max_tokens=0, echo=True, n_logprobs=0)
        after = front.start([7] * 5, max_tokens=2)
        for number in (long, waits, after):
            front.end_of(number)
        scored = front.wait(lambda m: isinstance(m, Scored))
        assert [score.chosen.token for score in scored.scores] == [6] * 100
        assert front.loop.status().n_prompt_tokens == 170 + 100 + 5
    ended = [m.id for m in front.told if isinstance(m, Finished)]
    assert ended[0] == long  # who would fit beside it does not overtake who waits for its end


def test_an_urgent_prompt_takes_the_cells_of_others(open_front: OpenFront) -> None:
    with open_front(n_ctx=512, n_cells=512) as front:
        slow, _ = front.push_aside([5] * 300, [6] * 300, max_tokens=200)
        assert front.end_of(slow).generated_tokens == 200
        assert front.loop.status().n_prompt_tokens == 600


def test_urgent_requests_push_others_aside_and_those_go_on(open_front: OpenFront) -> None:
    with open_front(n_sequences=1) as front:
        slow, urgent = front.push_aside(PROMPTS[0], PROMPTS[1], max_tokens=60)
        tokens = front.tokens_of(slow)
        assert front.loop.status().n_prompt_tokens == _n_read_once(front, [slow, urgent])
    with open_front() as other:
        assert other.write(PROMPTS[0], max_tokens=60) == tokens


def _n_read_once(front: FakeFront, numbers: Sequence[int]) -> int:
    """Prompt tokens of requests that have ended, where none was read twice."""
    ends = [front.end_of(number) for number in numbers]
    return sum(end.prompt_tokens - end.cached_tokens for end in ends)


@pytest.mark.parametrize(("n_bytes", "comes_back"), [(None, True), (0, False)])
def test_a_chat_whose_slot_others_used_comes_back(open_front: OpenFront, n_bytes: int | None, comes_back: bool) -> None:
    chat = [1 + i % 50 for i in range(60)]
    others = [[60 + i] * 50 for i in range(3)]
    with open_front(n_sequences=1, prompt_cache_bytes=n_bytes) as front:
        first = front.write(chat)
        for other in others:
            front.write(other)
        number = front.start([*chat, *first])
        end = front.end_of(number)
        assert (end.cached_tokens >= len(chat)) == comes_back
        again = front.tokens_of(number)
    with open_front(n_sequences=1) as fresh:
        assert fresh.write([*chat, *first]) == again


def test_of_sequences_that_begin_alike_one_is_kept(open_front: OpenFront, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []

    def save(context: Context, sequence: int) -> memoryview:
        saved.append(sequence)
        return save_sequence(context, sequence)

    monkeypatch.setattr(Context, "save_sequence", save)
    beginning = [1 + i % 50 for i in range(60)]
    with open_front(n_sequences=2) as front:
        for end in ([70, 71], [72, 73]):  # each in a slot of its own, since both are asked for at once
            front.start([*beginning, *end], max_tokens=30)
        for number in (1, 2):
            front.end_of(number)
        saved.clear()
        for i in range(4):
            front.write([60 + i] * 50, max_tokens=2)
        n_kept = len(saved)
        front.write([90] * 50, max_tokens=2)
        again = front.end_of(front.start([*beginning, 74]))
    assert again.cached_tokens >= len(beginning)
    assert n_kept <= 4 - 2 + 1  # of two slots with one beginning, one; of what came after, each


def test_streams_go_on_between_sequences_that_are_put_away(
    open_front: OpenFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of three prompts that come at once takes the place of a sequence that takes long to copy."""
    done: list[str] = []
    state_of, decode_parts = SequenceCache._state_of, Context.decode_parts
    may_go_on, is_held = threading.Event(), threading.Event()
    may_go_on.set()

    def slowly(cache: SequenceCache, slot: Slot) -> ParkedState:
        cache.copy_seconds += 60
        done.append("copy")
        return state_of(cache, slot)

    def noted(context: Context, parts: Sequence[BatchPart]) -> tuple[int, ...]:
        if not may_go_on.is_set():
            is_held.set()
        assert may_go_on.wait(60)
        done.append("reads" if any(len(p.tokens) > 1 for p in parts) else "a token each")
        return decode_parts(context, parts)

    monkeypatch.setattr(SequenceCache, "_state_of", slowly)
    monkeypatch.setattr(Context, "decode_parts", noted)
    with open_front(n_ctx=LONG) as front:
        stream = front.start([5] * 40, max_tokens=LONG - 100)
        for number in [front.start([10 + i] * 40, max_tokens=2) for i in range(3)]:
            front.end_of(number)
        may_go_on.clear()
        assert is_held.wait(60)  # or the first of the others begins before all are there
        others = [front.start([20 + i] * 40, max_tokens=2) for i in range(3)]
        done.clear()
        may_go_on.set()
        for number in others:
            front.end_of(number)
        front.tell(Cancel(id=stream))
        front.end_of(stream)
    after_copies = [b for a, b in pairwise(done) if a == "copy"]
    assert after_copies == ["a token each"] * 3
