"""A serving engine under a memory ceiling: changes shard by shard, and requests that have no room."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lamella.batching import engine_parts
from lamella.batching.embedding import embedder_bytes
from lamella.batching.messages import (
    Embed,
    Embedded,
    Prepare,
    Prepared,
    Refused,
    Status,
    Step,
    Switch,
    Switched,
)
from lamella.batching.opened_context import own_cells_where_there_is_room
from lamella.batching.settings import EngineSettings
from lamella.core.errors import ExceedsCeiling, ShardDamaged
from lamella.core.units import format_bytes
from lamella.llama.context import ContextOptions
from lamella.run.ceiling import Ceiling
from lamella.run.shards import ShardPool
from lamella.run.starting import Start
from lamella.store.store import Store
from tests.batching.conftest import FakeFront, OpenFront
from tests.fakes.tiny_model import write_tiny_model

PROMPT = "the quick brown fox"
EMBEDDING = """
import sys
from pathlib import Path
from lamella.llama.embeddings import Embedder
from lamella.llama.model import Model
from lamella.run.process_memory import private_bytes
with Model.load([Path(sys.argv[1])]) as model:
    before = private_bytes()
    with Embedder(model, "mean", 4096) as embedder:
        embedder.embed([[5] * 4096])
        print(private_bytes() - before)
"""
ONE_MORE = 40_000
"""Bytes for one shard of a layer at int4, and not for two."""
OpenTight = Callable[..., AbstractContextManager[FakeFront]]


@pytest.fixture
def open_tight(open_front: OpenFront, served_store: Path, monkeypatch: pytest.MonkeyPatch) -> OpenTight:
    """An engine with room for exactly its larger variant, or ``spare`` bytes more."""

    @contextmanager
    def opened(variant: str = "int8", spare: int = 0, planned_bytes: int = 0, **settings: Any) -> Iterator[FakeFront]:
        room = Store.open(served_store).variant("int8").n_bytes + spare
        start = Start(variant, {}, Ceiling(room, planned_bytes=planned_bytes, measure=lambda: 0))
        monkeypatch.setattr(engine_parts, "plan_start", lambda *_: start)
        with open_front(variant=variant, memory_bytes=room, **settings) as front:
            yield front

    return opened


def _slow_opens(monkeypatch: pytest.MonkeyPatch, n_free: int = 0) -> threading.Event:
    """Shards that are opened from now on, but for the first ``n_free``, wait for the event."""
    go_on, plain, numbers = threading.Event(), ShardPool.open, itertools.count()

    def waits(self: ShardPool, *arguments: Any) -> Any:
        assert next(numbers) < n_free or go_on.wait(60)
        return plain(self, *arguments)

    monkeypatch.setattr(ShardPool, "open", waits)
    return go_on


def _answer(front: FakeFront, number: int) -> Switched:
    answer = front.wait(lambda m: isinstance(m, Switched) and m.id == number)
    assert isinstance(answer, Switched)
    return answer


@pytest.mark.parametrize("spare", [0, ONE_MORE])
def test_a_switch_shard_by_shard_keeps_the_stream(open_tight: OpenTight, open_front: OpenFront, spare: int) -> None:
    other_prompt = "something else entirely"
    with open_front(variant="int4") as pinned:
        expected = pinned.write(other_prompt)
        mapped_bytes = pinned.loop.status().mapped_bytes
    with open_tight(spare=spare) as front:
        number = front.start(PROMPT, max_tokens=100)
        front.wait(lambda m: isinstance(m, Step))
        front.tell(Switch(id=900, variant="int4"))
        report = front.wait(lambda m: isinstance(m, Switched))
        assert (report.before, report.after, report.n_steps, report.n_shards) == ("int8", "int4", 3, 3)
        assert 0 < report.longest_stall_seconds <= report.stall_seconds
        assert front.end_of(number).generated_tokens == 100
        steps = [m.variant for m in front.told if isinstance(m, Step)]
        assert steps == sorted(steps, reverse=True)  # int8, then int4, and no other name
        status = front.loop.status()
        assert (status.variant, status.n_switches, status.warm) == ("int4", 1, ["int4"])
        assert status.mapped_bytes == mapped_bytes
        assert front.write(other_prompt, variant="int4") == expected


def test_steps_run_while_the_next_shard_is_read_in(open_tight: OpenTight, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_tight(spare=ONE_MORE) as front:
        number = front.start(PROMPT, max_tokens=40)
        go_on = _slow_opens(monkeypatch)
        front.tell(Switch(id=900, variant="int4"))
        assert front.end_of(number).generated_tokens == 40
        assert not any(isinstance(m, Switched) for m in front.told)
        go_on.set()
        assert front.wait(lambda m: isinstance(m, Switched)).n_steps == 3


def test_no_step_runs_between_the_shards_of_a_change_that_saves_memory(
    open_tight: OpenTight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is short a step waits for weights that were taken back, and the change would wait for the step."""
    n_steps: list[int] = []
    plain = ShardPool.open

    def slow(self: ShardPool, *arguments: Any) -> Any:
        n_steps.append(sum(isinstance(m, Step) for m in front.told))
        time.sleep(0.1)
        return plain(self, *arguments)

    with open_tight(spare=ONE_MORE) as front:
        number = front.start(PROMPT, max_tokens=100)
        front.wait(lambda m: isinstance(m, Step))
        monkeypatch.setattr(ShardPool, "open", slow)
        front.tell(Switch(id=900, variant="int4", saves_memory=True))
        assert front.wait(lambda m: isinstance(m, Switched)).n_steps == len(n_steps) == 3
        assert n_steps[-1] - n_steps[0] <= 2  # one is under way when the change begins
        assert front.end_of(number).generated_tokens == 100


def test_an_idle_engine_changes_shard_by_shard(open_tight: OpenTight) -> None:
    with open_tight() as front:
        for number, variant in enumerate(("int4", "int8", "int4"), 900):
            front.tell(Switch(id=number, variant=variant))
            answer = _answer(front, number)
            assert (answer.after, answer.n_steps) == (variant, 3)


def test_prepare_says_that_there_is_no_room_for_the_whole(open_tight: OpenTight) -> None:
    with open_tight() as front:
        front.tell(Prepare(id=900, variant="int4"))
        assert not front.wait(lambda m: isinstance(m, Prepared)).is_whole
        assert front.loop.status().warm == ["int8"]


def test_a_request_whose_variant_has_no_room_is_refused_with_facts(open_tight: OpenTight) -> None:
    with open_tight() as front:
        refused = front.refusal_of(front.start(PROMPT, variant="int4"))
        assert refused.why == "no_memory"
        assert "variant 'int4', beside 'int8', which runs, needs" in refused.message
        assert len(front.write(PROMPT)) == 12


def test_a_request_waits_for_the_room_that_another_takes(
    open_tight: OpenTight, open_front: OpenFront, three: Path
) -> None:
    """Beside the default there is room for either of the others, not for both."""
    store = Store.open(three)
    default, *others = (store.variant(n) for n in ("int8", "int4", "int5"))
    beside = max(sum(s.n_bytes for s in o.shards if s not in default.shards) for o in others)
    with open_tight(spare=beside, store=str(three)) as front:
        numbers = [front.start(PROMPT, variant=v, max_tokens=60) for v in ("int4", "int5")]
        for number in numbers:
            assert front.end_of(number).generated_tokens == 60
        variants = [m.variant for m in front.told if isinstance(m, Step)]
        one_after_the_other = [variant for variant, _ in itertools.groupby(variants)]
        assert sorted(one_after_the_other) == ["int4", "int5"]  # whose pages were there first goes first


def test_requests_that_wait_for_a_place_do_not_push_out_each_others_variants(
    open_tight: OpenTight, three: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither can begin, because another has the only place; what one of them asks for is opened, and stays."""
    store = Store.open(three)
    default, *others = (store.variant(n) for n in ("int8", "int4", "int5"))
    beside = max(sum(s.n_bytes for s in o.shards if s not in default.shards) for o in others)
    opened: list[str] = []
    plain = ShardPool.open

    def notes(self: ShardPool, shard_id: str, *arguments: Any) -> Any:
        opened.append(shard_id)
        return plain(self, shard_id, *arguments)

    with open_tight(spare=beside, store=str(three), n_sequences=1) as front:
        slow = front.start(PROMPT, max_tokens=100)
        front.wait(lambda m: isinstance(m, Step))
        monkeypatch.setattr(ShardPool, "open", notes)
        numbers = [front.start(PROMPT, variant=v, max_tokens=4) for v in ("int4", "int5", "int4")]
        assert front.end_of(slow).generated_tokens == 100
        for number in numbers:
            assert front.end_of(number).generated_tokens == 4
        assert len(opened) == sum(len(o.shards) for o in others)  # each variant was opened once
        variants = [m.variant for m in front.told if isinstance(m, Step)]
        assert [variant for variant, _ in itertools.groupby(variants)] == ["int8", "int4", "int5"]


def test_a_pinned_request_waits_for_the_end_of_a_change(
    open_tight: OpenTight, open_front: OpenFront, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a mixture computed is never taken for either variant's work."""
    expected = {}
    for variant in ("int4", "int8"):
        with open_front(variant=variant) as pinned:
            expected[variant] = pinned.write(PROMPT)
    with open_tight(spare=ONE_MORE) as front:
        go_on = _slow_opens(monkeypatch, n_free=2)
        front.tell(Switch(id=900, variant="int4"))
        mixed = front.write(PROMPT)  # and kept
        while mixed in expected.values():  # no shard was exchanged yet
            mixed = front.write(PROMPT)
        other = "whatever a mixture reads"
        front.write(other)
        number = front.start(PROMPT, variant="int4")
        go_on.set()
        assert front.tokens_of(number) == expected["int4"]
        front.tell(Switch(id=901, variant="int8"))
        _answer(front, 901)
        assert front.write(PROMPT, variant="int8") == expected["int8"]
        n_shared = 2  # with PROMPT, which int8 itself has read: the beginning and a space
        assert front.end_of(front.start(other, variant="int8")).cached_tokens <= n_shared
        assert front.end_of(front.start(other)).cached_tokens > n_shared  # who asks for no variant may use it


def test_a_switch_that_fails_on_its_way_is_refused_and_the_engine_serves_on(
    open_tight: OpenTight, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise ShardDamaged("the disk is gone")

    with open_tight() as front:
        with monkeypatch.context() as broken:
            broken.setattr(ShardPool, "open", fails)
            front.tell(Switch(id=900, variant="int4"))
            refused = front.wait(lambda m: isinstance(m, Refused))
        assert refused.message == "the disk is gone"
        assert len(front.write(PROMPT)) == 12
        status: Status = front.loop.status()
        assert status.variant == "int8"
        assert {m.variant for m in front.told if isinstance(m, Step)} == {"int8"}
        front.tell(Switch(id=901, variant="int4"))
        assert front.wait(lambda m: isinstance(m, Switched)).after == "int4"


def test_a_start_without_room_says_what_would_do_and_that_does(open_front: OpenFront) -> None:
    with (
        pytest.raises(ExceedsCeiling, match=r"variant, 'int4', needs .* KV cache of 512 tokens") as caught,
        open_front(variant=None, memory_bytes=1),
    ):
        pass
    needed = caught.value.needed_bytes
    with open_front(variant=None, memory_bytes=needed + (4 << 20)) as front:  # the process has grown meanwhile
        assert front.loop.status().variant in ("int8", "int4")
        assert len(front.write(PROMPT)) == 12


def test_embeddings_have_the_room_that_the_ceiling_leaves(served_store: Path, open_front: OpenFront) -> None:
    store = Store.open(served_store)
    paths = store.ready_paths(store.variant("int8"))
    with open_front(pooling="mean", memory_bytes=1 << 40) as front:
        parts = front.loop._parts
        needed = embedder_bytes(paths, "mean", 128)
        usual, spare = parts.live.memory.ceiling, parts.live.memory.spare_bytes
        assert usual is not None
        assert spare is not None
        parts.live.memory.ceiling = replace(usual, n_bytes=usual.n_bytes - spare + needed // 2)
        front.tell(Embed(id=900, inputs=["a"]))
        refused = front.wait(lambda m: isinstance(m, Embedded | Refused))
        assert (refused.why, parts.bytes_to_embed) == ("no_memory", needed)
        assert f"embeddings need {format_bytes(needed)} for texts of up to 128 tokens" in refused.message
        parts.live.memory.ceiling = usual
        front.tell(Embed(id=901, inputs=["a"]))
        assert front.wait(lambda m: isinstance(m, Embedded)).id == 901


def test_embeddings_do_not_take_what_is_planned_for_requests(open_tight: OpenTight) -> None:
    """Buffers of the model's own context are taken with its first steps."""
    with open_tight(spare=1 << 30, planned_bytes=1 << 30, pooling="mean") as front:
        front.tell(Embed(id=900, inputs=["a"]))
        assert front.wait(lambda m: isinstance(m, Embedded | Refused)).why == "no_memory"
    with open_tight(spare=2 << 30, planned_bytes=1 << 30, pooling="mean") as front:
        front.tell(Embed(id=900, inputs=["a"]))
        assert isinstance(front.wait(lambda m: isinstance(m, Embedded | Refused)), Embedded)


def test_what_embeddings_need_is_what_they_take(tmp_path: Path) -> None:
    """In a process of their own: this one has memory of others to give."""
    path = write_tiny_model(tmp_path / "tiny.gguf")
    command = [sys.executable, "-c", EMBEDDING, str(path)]
    took = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert embedder_bytes([path], "mean", 4096) == pytest.approx(took, rel=0.15)


def test_a_request_that_is_pushed_aside_is_copied_out_where_the_ceiling_has_room(open_front: OpenFront) -> None:
    for has_room in (True, False):
        with open_front(n_sequences=1, memory_bytes=1 << 40) as front:
            if not has_room:
                live = front.loop._parts.live
                assert live.memory.ceiling is not None
                live.memory.ceiling = replace(live.memory.ceiling, n_bytes=1)
            slow, _ = front.push_aside([5] * 60, [6] * 20, max_tokens=60)
            assert front.end_of(slow).generated_tokens == 60
            assert (front.loop.status().n_prompt_tokens == 80) == has_room


def test_sequences_have_cells_of_their_own_where_memory_is_plenty() -> None:
    settings = EngineSettings(store="", n_ctx=1000, n_sequences=4)
    shared = ContextOptions(n_ctx=1000, n_sequences=12, n_cells=4000)
    for available, has_own in [(8 * 4_000_000, True), (8 * 4_000_000 - 1, False)]:
        options = own_cells_where_there_is_room(shared, settings, 1000, available)
        assert options.has_shared_cells is not has_own
        assert (options.n_sequences, options.cells) == ((4, 4000) if has_own else (12, 4000))
    small = EngineSettings(store="", n_ctx=1000, n_sequences=4, kv_type="Q8_0")  # 8.5 bits in place of 16
    assert not own_cells_where_there_is_room(shared, small, 1000, 8 * 2_200_000).has_shared_cells


def test_a_ceiling_or_a_number_of_cells_means_shared_cells(open_front: OpenFront) -> None:
    for settings, is_shared in [({}, False), ({"n_cells": 512}, True), ({"memory_bytes": 1 << 30}, True)]:
        with open_front(**settings) as front:
            assert front.loop._parts.context.options.has_shared_cells is is_shared
            assert front.write("a b c")
