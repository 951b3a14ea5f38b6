"""Requests of several variants, switches between them, and what is computed again after one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from lamella.batching.messages import (
    Cancel,
    Finished,
    Prepare,
    Prepared,
    Refused,
    Step,
    Switch,
    Switched,
)
from lamella.llama.batch import BatchPart
from lamella.llama.context import Context
from lamella.run.shards import ShardPool
from tests.batching.conftest import LONG, PROMPTS, FakeFront, OpenFront


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
