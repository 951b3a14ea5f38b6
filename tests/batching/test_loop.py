"""The engine loop on a real (tiny) model: side by side is as alone, whatever happens in between."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamella.batching import steps
from lamella.batching.cache import SequenceCache
from lamella.batching.embedding import EmbedJobs
from lamella.batching.engine_parts import KEPT_PREFIXES, EngineParts
from lamella.batching.filling import Filling
from lamella.batching.messages import (
    Accepted,
    Cancel,
    Embed,
    Finished,
    FrontMessage,
    Generate,
    Prepare,
    Prepared,
    Refused,
    Sampling,
    SaveCache,
    Scored,
    Step,
    Switch,
    Switched,
    TokenEvent,
)
from lamella.batching.scheduler import Scheduler
from lamella.batching.settings import EngineSettings
from lamella.batching.shelf import ParkedState
from lamella.batching.slots import Slot, SlotTable
from lamella.batching.steps import StepPlan, compose
from lamella.core.errors import CacheFull, ShardDamaged
from lamella.llama import saving
from lamella.llama.batch import BatchPart
from lamella.llama.context import Context
from lamella.llama.sampling import SamplingOptions
from lamella.llama.vocabulary import Vocabulary
from lamella.run.engine import Engine, EngineOptions
from lamella.run.shards import ShardPool
from lamella.store.store import Store
from tests.batching.conftest import GREEDY, FakeFront, OpenFront

save_sequence = Context.save_sequence
LONG = 8192
"""Tokens that no request writes before somebody has cancelled it, however long that one is held up."""
PROMPTS = ["the quick brown fox", "once upon a time", "a b c d e f", "hello", "zzzz yyyy xxxx", "in the beginning was"]


def test_one_stream_writes_what_the_single_engine_writes(front: FakeFront, served_store: Path) -> None:
    with Engine.open(Store.open(served_store), "int8", EngineOptions(layout="mapped")) as engine:
        tokens = engine.tokenize(PROMPTS[0])
        generation = engine.generate(tokens, max_tokens=12, sampling=SamplingOptions(temperature=0))
        expected = [t.id for t in generation if t.id >= 0]
    assert front.write(tokens)[: len(expected)] == expected
    assert expected


def test_a_damaged_shard_is_refused_before_llama_cpp_reads_it(served_store: Path, tmp_path: Path) -> None:
    copy = Store.open(Path(shutil.copytree(served_store, tmp_path / "store", symlinks=True)))
    shard = copy.variant("int8").shards[0]
    path = copy.shard_path(shard.id)
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:8] + b"\xff" * 8 + data[16:])  # the number of tensors
    settings = EngineSettings(store=str(copy.path), variant="int8", n_ctx=128, layout="mapped", check=True)
    with pytest.raises(ShardDamaged, match=shard.id):
        EngineParts.open(settings)


def test_requests_side_by_side_write_what_they_write_alone(front: FakeFront, open_front: OpenFront) -> None:
    with front.at_once():
        numbers = [front.start(p) for p in PROMPTS]
    together = [front.tokens_of(n) for n in numbers]
    assert max(len(m.tokens) for m in front.told if isinstance(m, Step)) > 1
    for prompt, tokens in zip(PROMPTS, together, strict=True):
        with open_front() as other:
            assert other.write(prompt) == tokens


def test_more_requests_than_sequences_wait_and_all_end(open_front: OpenFront) -> None:
    with open_front(n_sequences=2) as front:
        numbers = [front.start(p) for p in PROMPTS]
        assert all(front.end_of(n).generated_tokens == 12 for n in numbers)
        assert max(len(m.tokens) for m in front.told if isinstance(m, Step)) <= 2


def test_requests_of_two_variants_write_what_servers_pinned_to_them_write(open_front: OpenFront) -> None:
    expected = {}
    for variant in ("int8", "int4"):
        with open_front(variant=variant) as pinned:
            expected[variant] = [pinned.write(p) for p in PROMPTS[:2]]
    assert expected["int8"] != expected["int4"]
    with open_front() as front:
        with front.at_once():
            numbers = {v: [front.start(p, variant=v) for p in PROMPTS[:2]] for v in expected}
        for variant, tokens in expected.items():
            assert [front.tokens_of(n) for n in numbers[variant]] == tokens
    assert {m.variant for m in front.told if isinstance(m, Step)} == {"int8", "int4"}


def test_a_switch_in_the_middle_keeps_the_stream(front: FakeFront) -> None:
    number = front.start(PROMPTS[0], max_tokens=80)
    front.wait(lambda m: isinstance(m, Step))
    front.tell(Switch(id=900, variant="int4"))
    report = front.wait(lambda m: isinstance(m, Switched))
    assert (report.before, report.after) == ("int8", "int4")
    assert front.end_of(number).generated_tokens == 80
    variants = [m.variant for m in front.told if isinstance(m, Step)]
    assert variants == sorted(variants, reverse=True)  # int8, then int4
    assert front.loop.status().n_switches == 1


def test_a_step_like_the_one_before_is_not_planned_again(
    open_front: OpenFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[StepPlan] = []

    def counted(*args: Any) -> StepPlan:
        planned.append(compose(*args))
        return planned[-1]

    monkeypatch.setattr(steps, "compose", counted)
    with open_front() as front:
        with front.at_once():
            numbers = [front.start(p, max_tokens=40) for p in PROMPTS[:3]]
        together = [front.tokens_of(n) for n in numbers]
        n_steps = front.loop.status().n_steps
    assert n_steps >= 40
    assert len(planned) < n_steps / 2
    with open_front() as front:
        assert [front.write(p, max_tokens=40) for p in PROMPTS[:3]] == together


def test_whoever_comes_or_goes_among_like_steps_is_seen_at_the_next(open_front: OpenFront) -> None:
    with open_front(n_ctx=LONG) as front:
        stays = front.start(PROMPTS[0], max_tokens=LONG - 100)
        front.wait(lambda m: isinstance(m, Step))
        goes = front.start(PROMPTS[1], max_tokens=LONG - 100)
        front.wait(lambda m: isinstance(m, Step) and len(m.tokens) == 2)
        front.tell(Cancel(id=goes))
        assert front.end_of(goes).reason == "cancelled"
        late = front.start(PROMPTS[2], max_tokens=2)
        assert front.end_of(late).reason == "length"
        front.tell(Cancel(id=stays))
        assert front.end_of(stays).reason == "cancelled"


def test_prepare_reads_a_variant_in(front: FakeFront) -> None:
    front.tell(Prepare(id=900, variant="int4"))
    assert front.wait(lambda m: isinstance(m, Prepared)).variant == "int4"
    assert set(front.loop.status().warm) == {"int8", "int4"}


def test_an_unknown_variant_is_refused_and_the_others_named(front: FakeFront) -> None:
    front.tell(Switch(id=900, variant="int3"))
    refused = front.wait(lambda m: isinstance(m, Refused))
    assert refused.why == "unknown_variant"
    assert "int4, int8" in refused.message
    assert front.refusal_of(front.start("a", variant="int3")).why == "unknown_variant"
    assert front.write("a")


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
        shared = [_events(front, n) for n in numbers]
    for prompt, events in zip(PROMPTS, shared, strict=False):
        with open_front(n_batch=32) as other:
            assert_same_but_for_ties(_events(other, other.start(system + prompt, n_logprobs=2)), events)


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
        moved = [_events(front, n) for n in numbers]
    assert moves
    for prompt, n, events in zip(PROMPTS, lengths, moved, strict=False):
        with open_front() as other:
            assert_same_but_for_ties(_events(other, other.start(prompt, max_tokens=n, n_logprobs=2)), events)


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
        together = [_events(front, n) for n in numbers]
        assert max(passes) == n_slots
        cache = front.loop._cache
        assert all(saving.length(cache._context, s.id) == len(s.tokens) for s in cache.table.slots)
        again = front.end_of(front.start(PROMPTS[0], max_tokens=4))
    assert (again.cached_tokens, again.text) == (again.prompt_tokens - 1, chat.text)
    monkeypatch.setattr(Filling, "rows", lambda _, variant, n: n)
    for prompt, events in zip(PROMPTS[1:], together, strict=False):
        with open_front() as other:
            assert_same_but_for_ties(_events(other, other.start(prompt, max_tokens=40, n_logprobs=2)), events)


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
        written = [_events(front, n) for n in numbers]
        assert all(len(events) == 40 for events in written)
        assert front.loop.status().cells_used <= 128
        assert front.loop.status().n_prompt_tokens == _n_read_once(front, numbers)
    for prompt, events in zip(PROMPTS, written, strict=True):
        with open_front() as other:
            assert_same_but_for_ties(_events(other, other.start(prompt * 2, max_tokens=40, n_logprobs=2)), events)


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
        written = [_events(front, n) for n in numbers]
        assert [len(events) for events in written] == [200, 200]
        status = front.loop.status()
        assert (status.n_prompt_tokens, status.n_cached_tokens) == (800, 0)
    assert len(parked) == 1
    for prompt, events in zip(prompts, written, strict=True):
        with open_front(n_ctx=1024) as other:
            assert_same_but_for_ties(_events(other, other.start(prompt, max_tokens=200, n_logprobs=2)), events)


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
        with front.stopped_at_a_step():
            slow = front.start([5] * 300, max_tokens=200)
            front.wait(lambda m: isinstance(m, Step))
            urgent = front.start([6] * 300, max_tokens=2, priority=1)
        front.end_of(urgent)
        assert slow not in {m.id for m in front.told if isinstance(m, Finished)}
        assert front.end_of(slow).generated_tokens == 200
        assert front.loop.status().n_prompt_tokens == 600


def test_urgent_requests_push_others_aside_and_those_go_on(open_front: OpenFront) -> None:
    with open_front(n_sequences=1) as front:
        with front.stopped_at_a_step():
            slow = front.start(PROMPTS[0], max_tokens=60)
            front.wait(lambda m: isinstance(m, Step))
            urgent = front.start(PROMPTS[1], priority=1)
        front.end_of(urgent)
        assert slow not in {m.id for m in front.told if isinstance(m, Finished)}
        tokens = front.tokens_of(slow)
        assert front.loop.status().n_prompt_tokens == _n_read_once(front, [slow, urgent])
    with open_front() as other:
        assert other.write(PROMPTS[0], max_tokens=60) == tokens


def _n_read_once(front: FakeFront, numbers: Sequence[int]) -> int:
    """Prompt tokens of requests that have ended, where none was read twice."""
    ends = [front.end_of(number) for number in numbers]
    return sum(end.prompt_tokens - end.cached_tokens for end in ends)


def test_an_urgent_request_takes_the_variant_of_the_one_that_it_pushes_aside(open_front: OpenFront) -> None:
    with open_front(n_sequences=1) as front:
        with front.stopped_at_a_step():
            slow = front.start(PROMPTS[0], max_tokens=100, variant="int4")
            front.wait(lambda m: isinstance(m, Step))
            urgent = front.start(PROMPTS[1], priority=1, variant="int4")
        assert front.end_of(urgent).generated_tokens == 12
        assert slow not in {m.id for m in front.told if isinstance(m, Finished)}
        assert front.end_of(slow).generated_tokens == 100


def test_the_variant_of_a_request_that_waits_is_opened_once_and_let_go_after_it(
    open_front: OpenFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    plain = ShardPool.open

    def counted(pool: ShardPool, shard_id: str, *others: Any) -> Any:
        opened.append(shard_id)
        return plain(pool, shard_id, *others)

    with open_front(n_sequences=1, n_warm=1, n_ctx=LONG) as front:
        running = front.start(PROMPTS[0], max_tokens=LONG - 100)
        front.wait(lambda m: isinstance(m, Step))
        monkeypatch.setattr(ShardPool, "open", counted)
        waits, leaves = (front.start(PROMPTS[1], variant="int4") for _ in range(2))
        front.wait(lambda _: "int4" in front.loop._variants._held)
        front.tell(Cancel(id=leaves))
        front.end_of(leaves)
        front.tell(Cancel(id=running))
        assert front.end_of(running).reason == "cancelled"
        assert front.end_of(waits).generated_tokens == 12
        front.write(PROMPTS[2])
        assert front.loop.status().warm == ["int8"]
    assert opened
    assert len(opened) == len(set(opened))


def test_what_an_earlier_engine_wrote_is_continued(front: FakeFront) -> None:
    whole = front.write(PROMPTS[0], max_tokens=20)
    assert front.write(PROMPTS[0], max_tokens=20, generated=whole[:7]) == whole[7:]


def test_sampled_output_is_continued_from_the_same_random_state(front: FakeFront) -> None:
    sampling = Sampling(temperature=1.5, seed=7, frequency_penalty=0.5)
    whole = front.write(PROMPTS[0], max_tokens=20, sampling=sampling)
    assert front.write(PROMPTS[0], max_tokens=20, sampling=sampling, generated=whole[:9]) == whole[9:]
    assert front.write(PROMPTS[0], max_tokens=20, sampling=Sampling(temperature=1.5, seed=8)) != whole


def test_a_stop_string_ends_the_text_before_it(front: FakeFront) -> None:
    text = front.text_of(front.start(PROMPTS[0], max_tokens=30))
    stop = text[4:7]
    number = front.start(PROMPTS[0], max_tokens=30, stop=[stop])
    assert front.end_of(number).reason == "stop"
    assert front.text_of(number) == text[: text.index(stop)]


def test_a_grammar_that_leads_nowhere_ends_its_own_request_only(front: FakeFront) -> None:
    fine = front.start(PROMPTS[0], max_tokens=40)
    vocabulary = front.loop._parts.model.vocabulary
    all_but_a = dict.fromkeys(range(vocabulary.n_tokens), -100.0)
    del all_but_a[vocabulary.tokenize("a", add_special=False)[-1]]
    sampling = Sampling(temperature=0.0, grammar='root ::= "a" "a" "b"', logit_bias=all_but_a)
    lost = front.start(PROMPTS[1], sampling=sampling)
    refused = front.refusal_of(lost)
    assert refused.why == "invalid"
    assert "allows no token" in refused.message
    assert any(t.id == lost for m in front.told if isinstance(m, Step) for t in m.tokens)
    assert front.end_of(fine).generated_tokens == 40
    assert front.loop.status().n_running == 0


def test_cancelled_requests_end_and_free_their_place(open_front: OpenFront) -> None:
    with open_front(n_sequences=1) as front:
        with front.stopped_at_a_step():
            number, waiting = front.start("a", max_tokens=100), front.start("b", max_tokens=100)
            front.wait(lambda m: isinstance(m, Step))
            front.tell(Cancel(id=waiting))
            front.tell(Cancel(id=number))
        assert front.end_of(waiting).reason == "cancelled"
        assert front.end_of(number).reason == "cancelled"
        assert len(front.write("c")) == 12


def test_a_deadline_ends_a_request(front: FakeFront) -> None:
    assert front.end_of(front.start("a", deadline_seconds=0.0)).reason == "deadline"


def test_the_context_bounds_prompt_and_answer(front: FakeFront) -> None:
    refused = front.refusal_of(front.start(list(range(5, 5 + 128))))
    assert refused.why == "context_length"
    assert "128" in refused.message
    end = front.end_of(front.start(list(range(5, 5 + 100)), max_tokens=None))
    assert (end.reason, end.generated_tokens) == ("length", 28)


def test_scores_of_a_prompt_are_those_of_its_tokens_one_by_one(front: FakeFront) -> None:
    tokens = [5, 9, 14, 20, 7, 30, 11] * 7  # longer than one scored piece
    number = front.start(tokens, max_tokens=0, echo=True, n_logprobs=3)
    assert front.end_of(number).generated_tokens == 0
    scored = front.wait(lambda m: isinstance(m, Scored))
    assert [s.chosen.token for s in scored.scores] == tokens
    assert scored.scores[0].is_first
    for n in (1, 6, 40):  # what the model would say of the next token, asked alone
        event = _first_event(front, front.start(tokens[:n], max_tokens=1, n_logprobs=3))
        assert event.score is not None
        assert [t.token for t in scored.scores[n].top] == [t.token for t in event.score.top]
        assert scored.scores[n].top[0].logprob == pytest.approx(event.score.top[0].logprob, abs=1e-3)


def _events(front: FakeFront, number: int) -> list[TokenEvent]:
    front.end_of(number)
    steps = [m for m in front.told if isinstance(m, Step)]
    return [t for m in steps for t in m.tokens if t.id == number]


def _first_event(front: FakeFront, number: int) -> TokenEvent:
    return _events(front, number)[0]


def assert_same_but_for_ties(expected: list[TokenEvent], found: list[TokenEvent]) -> None:
    """Equal up to a token whose two likeliest are as good as equal: sums in another order may then choose the other.

    llama.cpp adds up attention in the order of cells, and by other kernels for other sizes of a batch.
    """
    for a, b in zip(expected, found, strict=True):
        assert a.score is not None
        assert b.score is not None
        if a.token != b.token:
            best, second = a.score.top
            assert best.logprob - second.logprob < 0.1
            assert {a.token, b.token} == {best.token, second.token}
            return
        assert a.score.chosen.logprob == pytest.approx(b.score.chosen.logprob, abs=0.1)


def test_the_end_of_a_scored_prompt_is_a_token_without_text(front: FakeFront) -> None:
    """lm-evaluation-harness cuts the last entry off, whatever it is."""
    ends = Sampling(temperature=0.0, logit_bias={2: 100.0})
    fields = {"sampling": ends, "ignore_end": False, "n_logprobs": 1, "max_tokens": 4}
    number = front.start("hello", echo=True, **fields)
    assert front.end_of(number).reason == "stop"
    assert front.tokens_of(number) == [2]
    assert front.text_of(number) == ""
    assert front.end_of(number).generated_tokens == 0
    assert front.tokens_of(front.start("hello", **fields)) == []
    again = front.start("hello", echo=True, **fields, generated=[2])  # an engine that died just after telling it
    assert (front.end_of(again).reason, front.tokens_of(again)) == ("stop", [])
    assert front.end_of(again).generated_tokens == 0


def test_logprobs_are_a_distribution(front: FakeFront) -> None:
    event = _first_event(front, front.start("a", max_tokens=1, n_logprobs=20))
    assert event.score is not None
    values = [t.logprob for t in event.score.top]
    assert values == sorted(values, reverse=True)
    assert np.exp(values).sum() <= 1 + 1e-6
    assert event.score.chosen == event.score.top[0]  # greedy


def test_a_kept_beginning_is_computed_again_after_a_switch_that_asks_for_it(front: FakeFront) -> None:
    front.write(PROMPTS[0])
    front.tell(Switch(id=900, variant="int4", cache="recompute"))
    _wait_for_recomputing(front)
    end = front.end_of(front.start(PROMPTS[0] + " and", variant="int4"))
    assert end.cached_tokens >= end.prompt_tokens - len(" and")


def _wait_for_recomputing(front: FakeFront) -> None:
    """Until a switch has happened, and there is nothing left to compute again."""
    front.wait(lambda m: isinstance(m, Switched))
    end = time.monotonic() + 60
    while front.loop._recomputes:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_request_waits_for_one_pass_of_what_is_computed_again(
    open_front: OpenFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    asked: list[int] = []
    decode_parts = Context.decode_parts

    def noted(context: Context, parts: Sequence[BatchPart]) -> tuple[int, ...]:
        done.append("asked" if parts[0].n_outputs else "again")
        if not asked:  # while the first pass is computed
            asked.append(front.start([60] * 5, max_tokens=3))
        return decode_parts(context, parts)

    kept = [1 + i % 50 for i in range(100)]
    with open_front(n_batch=32) as front:
        front.write(kept, max_tokens=1)
        monkeypatch.setattr(Context, "decode_parts", noted)
        front.tell(Switch(id=900, variant="int4", cache="recompute"))
        _wait_for_recomputing(front)
        assert front.end_of(*asked).generated_tokens == 3
        assert done == ["again", "asked", "asked", "asked", "again", "again", "again"]
        assert front.end_of(front.start([*kept, 70], variant="int4")).cached_tokens == len(kept)


def test_what_has_no_room_to_be_computed_again_beside_what_it_shared_cells_with_is_left_out(
    open_front: OpenFront,
) -> None:
    beginning = [1 + i % 50 for i in range(120)]
    with open_front(n_ctx=256, n_cells=256) as front:
        numbers = [front.start([*beginning, *[end] * 10], max_tokens=50) for end in (70, 71)]
        assert all(front.end_of(n).generated_tokens == 50 for n in numbers)
        kept = front.loop._cache.table.kept
        assert sum(len(slot.tokens) for slot in kept) > 256  # their beginning is there once
        front.tell(Switch(id=900, variant="int4", cache="recompute"))
        _wait_for_recomputing(front)
        assert front.end_of(front.start([*beginning, 72], variant="int4")).cached_tokens == len(beginning)


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


@pytest.mark.parametrize(
    ("owner", "method", "message"),
    [
        (Context, "decode_parts", Generate(id=900, prompt="a", max_tokens=2)),
        (SequenceCache, "place", Generate(id=900, prompt="a", max_tokens=2)),
        (SequenceCache, "save", SaveCache(id=900, folder="nowhere")),
        (EmbedJobs, "advance", Embed(id=900, inputs=["a"])),
        (Scheduler, "recompute_some", Switch(id=900, variant="int4", cache="recompute")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_pulse_tells_of_whatever_does_not_end(
    open_front: OpenFront, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, message: FrontMessage
) -> None:
    is_at_it, may_go_on = threading.Event(), threading.Event()
    plain = getattr(owner, method)

    def hangs(*args: Any, **options: Any) -> Any:
        is_at_it.set()
        assert may_go_on.wait(60)
        return plain(*args, **options)

    with open_front(pooling="mean") as front:
        front.write("b")
        monkeypatch.setattr(owner, method, hangs)
        front.tell(message)
        assert is_at_it.wait(60)
        before = front.loop.status().step_seconds_now
        time.sleep(0.01)
        assert front.loop.status().step_seconds_now > before > 0
        may_go_on.set()
        end = time.monotonic() + 60
        while front.loop.status().step_seconds_now:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_accepted_comes_before_everything_else(front: FakeFront) -> None:
    number = front.start("a b c")
    front.end_of(number)
    mine = [m for m in front.told if getattr(m, "id", None) == number]
    assert isinstance(mine[0], Accepted)
    assert mine[0].prompt_tokens >= 3


def test_a_prompt_of_several_choices_is_read_once(front: FakeFront, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    tokenize = Vocabulary.tokenize

    def counted(vocabulary: Vocabulary, text: str, **options: Any) -> list[int]:
        read.append(text)
        return tokenize(vocabulary, text, **options)

    monkeypatch.setattr(Vocabulary, "tokenize", counted)
    first, *others = [front.write(PROMPTS[0]) for _ in range(3)]
    assert others == [first, first]
    assert front.write(PROMPTS[1]) != first
    refused = [front.refusal_of(front.start("a " * 200)) for _ in range(2)]
    assert [r.why for r in refused] == ["context_length"] * 2
    assert refused[0].message == refused[1].message
    assert read == [PROMPTS[0], PROMPTS[1], "a " * 200]


def test_an_empty_prompt_is_refused(front: FakeFront) -> None:
    front.tell(Generate(id=77, prompt=[], sampling=GREEDY))
    assert front.refusal_of(77).why == "invalid"
