"""Switches under a memory ceiling, on a real (tiny) model: shard by shard where both variants do not fit."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lamella.core.errors import EngineFailed, ExceedsCeiling, ShardDamaged
from lamella.llama import gguf
from lamella.llama.context import Context, ContextOptions
from lamella.llama.model import Model
from lamella.llama.pages import resident_bytes
from lamella.llama.sampling import SamplingOptions
from lamella.run.ceiling import Ceiling, total_bytes
from lamella.run.engine import Engine
from lamella.run.layouts import Layout
from lamella.run.prepared import PreparedVariant, StagedVariant
from lamella.run.shards import ShardPool
from lamella.run.variants import LiveVariants
from lamella.store.store import Store
from tests.fakes.tiny_model import EOS
from tests.run.conftest import OPTIONS, mapped_resident

CONTEXT = ContextOptions(n_ctx=128, n_batch=64, n_threads=1)
TOKENS = [1, 300, 301, 302, 303]
PAGE = 4096
REPACKED = {"Q4_K": Layout(repack=True)}


class Running:
    """A model under a ceiling that leaves exactly so much room for weights."""

    def __init__(self, store: Store, first: str, room: int, layouts: dict[str, Layout] | None = None) -> None:
        self.store, self.room = store, room
        paths = store.shard_paths(store.variant(first))
        tensors = {n: t.spec for p in paths for n, t in gguf.read_tensors(p).items()}
        self.model = Model.load(paths)
        self.context = Context(self.model, CONTEXT)
        ceiling = Ceiling(room, planned_bytes=0, measure=lambda: 0)
        self.live = LiveVariants(store, self.model, tensors, layouts or {}, n_warm=9, check=False, ceiling=ceiling)
        self.live.change_to(first)

    @property
    def pool(self) -> ShardPool:
        return self.live.memory.pool

    @property
    def open_bytes(self) -> int:
        return total_bytes(self.pool.open_ids, self.pool.footprints)

    def logits(self, n_past: int = 0) -> NDArray[np.float32]:
        assert self.live.current is not None
        self.live.use(self.live.current.token)
        self.context.forget(start=n_past)
        self.context.decode(TOKENS[n_past:], n_past)
        return self.context.logits().copy()

    def close(self) -> None:
        self.context.close()
        self.model.close()
        self.live.close()


Run = Callable[..., Running]


@pytest.fixture
def run(store: Store) -> Iterator[Run]:
    opened: list[Running] = []

    def start(first: str, room: int, layouts: dict[str, Layout] | None = None) -> Running:
        opened.append(Running(store, first, room, layouts))
        return opened[-1]

    yield start
    for running in opened:
        running.close()


def _fresh(paths: list[Path]) -> NDArray[np.float32]:
    with Model.load(paths) as model, Context(model, CONTEXT) as context:
        context.decode(TOKENS, 0)
        return context.logits().copy()


def _paths(store: Store, name: str) -> list[Path]:
    return list(store.shard_paths(store.variant(name)))


def _largest(store: Store, *names: str) -> int:
    return max(store.variant(n).n_bytes for n in names)


@pytest.mark.parametrize("spare", [0, 1 << 20])
def test_logits_after_every_step_equal_those_of_a_fresh_load_of_that_mixture(
    store: Store, run: Run, spare: int
) -> None:
    """With no byte to spare, and with room for one more shard; memory stays within the room all the time."""
    room = _largest(store, "large") + spare
    running = run("large", room)
    for name in ("small", "large", "middle"):
        staged = running.live.prepare(name).result()
        assert isinstance(staged, StagedVariant)
        change = running.live.begin(staged)
        assert change is not None
        while not change.is_over:
            change.open_next()
            assert running.open_bytes <= room
            change.exchange_next()
            assert running.open_bytes <= room
            # a page more for each shard and for each of llama.cpp's own mappings, whose ends are not released
            assert mapped_resident(store.path) <= room + 4 * PAGE * len(staged.paths)
            mixture = [store.shard_path(s.id) for s in change.mixed.variant.shards]
            np.testing.assert_array_equal(running.logits(), _fresh(mixture))
        report = running.live.end(change)
        assert report is not None
        assert (report.after, report.n_steps, report.n_shards) == (name, 3, 3)
        assert report.peak_bytes <= room
        assert running.live.name == name
        np.testing.assert_array_equal(running.logits(), _fresh(_paths(store, name)))


def test_what_was_to_go_shard_by_shard_begins_anew_where_memory_is_plenty_again(store: Store, run: Run) -> None:
    running = run("large", _largest(store, "large"))
    staged = running.live.prepare("small").result()
    assert isinstance(staged, StagedVariant)
    running.live.memory._ceiling_now = None  # as where saving memory ends
    assert not running.live.check_beside(staged)
    assert running.live.begin(staged) is None
    report = running.live.change_to("small")
    assert (running.live.name, report.n_steps) == ("small", 1)
    np.testing.assert_array_equal(running.logits(), _fresh(_paths(store, "small")))


def test_a_variant_that_was_replaced_while_it_ran_gives_way_shard_by_shard(store_folder: Path, tmp_path: Path) -> None:
    """A request has used the new one of its name meanwhile, which stands among the open ones in its place."""
    store = Store.open(Path(shutil.copytree(store_folder, tmp_path / "store", symlinks=True)))
    large, small = store.variant("large"), store.variant("small")
    store.add_variant("current", large.plan, large.shards)
    with contextlib.closing(Running(store, "current", large.n_bytes + small.n_bytes)) as running:
        store.add_variant("current", small.plan, small.shards, replace=True)
        used = running.live.prepare("current").result()
        assert isinstance(used, PreparedVariant)
        assert running.live.hold(used)
        running.live.release("current")
        report = running.live.change_to("middle")
        assert (running.live.name, report.n_steps) == ("middle", 3)
        np.testing.assert_array_equal(running.logits(), _fresh(_paths(store, "middle")))
        assert store.leased_ids() == {shard.id for shard in store.variant("middle").shards}


def test_the_cache_is_kept(store: Store, run: Run) -> None:
    """The last token alone is computed by the new variant: as by a switch in one moment."""
    one, both = run("large", _largest(store, "large")), run("large", 1 << 40)
    for running in (one, both):
        running.logits()
        running.live.change_to("small")
    np.testing.assert_array_equal(one.logits(n_past=4), both.logits(n_past=4))
    assert not np.array_equal(one.logits(n_past=4), one.logits())


def test_repacked_weights_are_exchanged_within_the_ceiling(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q4_K has a repacked layout on every processor that has any; the mapped pages of such weights are not kept."""
    probe = run("small", 1 << 40, REPACKED)
    if not probe.live.memory.repacked_bytes:
        pytest.skip("this processor has no repacked layout of Q4_K")
    room = store.variant("large").n_bytes + max(f.opening_bytes for f in probe.pool.footprints.values())
    running = run("small", room, REPACKED)
    opened: list[int] = []
    plain = running.pool.open

    def watched(*arguments: Any) -> Any:
        states = plain(*arguments)
        opened.append(running.open_bytes)
        return states

    monkeypatch.setattr(running.pool, "open", watched)
    for name in ("large", "small"):
        report = running.live.change_to(name)
        assert report.n_steps == 3
        assert max(opened) <= report.peak_bytes <= room
        probe.live.change_to(name)
        np.testing.assert_array_equal(running.logits(), probe.logits())
    assert running.live.memory.repacked_bytes == probe.live.memory.repacked_bytes > 0


def test_pages_that_only_copies_were_read_of_are_not_kept(store: Store, run: Run) -> None:
    mapped = run("small", 1 << 40)
    mapped_bytes = mapped.open_bytes
    mapped.close()
    copied = run("small", 1 << 40, REPACKED)
    if not copied.live.memory.repacked_bytes:
        pytest.skip("this processor has no repacked layout of Q4_K")
    assert copied.open_bytes < 1.1 * mapped_bytes
    assert mapped_resident(store.path) < mapped_bytes - copied.live.memory.repacked_bytes / 2
    assert copied.live.memory.mapped_bytes < mapped_bytes - copied.live.memory.repacked_bytes / 2
    copied.logits()  # norms lie between the matrices, and are read from their pages
    cached = sum(resident_bytes(path) for path in _paths(store, "small"))
    assert cached < mapped_bytes - copied.live.memory.repacked_bytes / 2


def test_closed_shards_leave_memory_at_once(store: Store, run: Run) -> None:
    """Their mappings are closed, and their pages have left the page cache too."""
    running = run("large", _largest(store, "large"))
    old = {s.id for s in store.variant("large").shards}
    running.live.change_to("small")
    new = {s.id for s in store.variant("small").shards}
    assert running.pool.open_ids == new
    maps = Path("/proc/self/maps").read_text()
    gone = [store.shard_path(i) for i in old - new]
    assert len(gone) == 3
    # llama.cpp's own mapping of the first variant stays until the model is closed, without pages
    assert all(maps.count(p.name) <= 1 for p in gone)
    assert sum(resident_bytes(p) for p in gone) <= 4 * PAGE * len(gone)
    assert sum(p.stat().st_size for p in gone) > 400 * PAGE
    assert all(resident_bytes(store.shard_path(i)) > 0 for i in new)


def test_warm_variants_are_closed_before_a_switch_goes_step_by_step(store: Store, run: Run) -> None:
    large, middle, small = (store.variant(n) for n in ("large", "middle", "small"))
    joint = sum({s.id: s.n_bytes for v in (large, small) for s in v.shards}.values())
    running = run("large", joint)
    assert running.live.change_to("small").n_steps == 1
    assert set(running.live.warm) == {"large", "small"}
    report = running.live.change_to("middle")  # fits beside small when large has gone
    assert report.n_steps == 1
    assert set(running.live.warm) == {"small", "middle"}
    assert running.open_bytes <= joint
    assert {s.id for s in (*middle.shards, *small.shards)} == running.pool.open_ids


def test_a_variant_that_does_not_fit_alone_is_refused_with_facts(store: Store, run: Run) -> None:
    running = run("small", _largest(store, "small"))
    before = running.logits()
    with pytest.raises(ExceedsCeiling, match=r"variant 'large' needs .* there is room for .*; a smaller variant"):
        running.live.change_to("large")
    np.testing.assert_array_equal(running.logits(), before)


def test_held_variants_are_not_pushed_out(store: Store, run: Run) -> None:
    """There is room for large and middle; beside small too, which is held, middle can only take large's place."""
    shards = {s.id: s.n_bytes for n in ("large", "middle") for s in store.variant(n).shards}
    running = run("large", sum(shards.values()))
    small = running.live.prepare("small").result()
    assert isinstance(small, PreparedVariant)
    assert running.live.hold(small)
    staged = running.live.prepare("middle").result()
    assert isinstance(staged, StagedVariant)
    running.live.check_beside(staged)  # beside large alone it would fit
    change = running.live.begin(staged)  # and in place of large it does
    assert change is not None
    while not change.is_over:
        change.exchange_next()
        assert running.open_bytes <= running.room
    running.live.end(change)
    assert {s.id for s in small.variant.shards} <= running.pool.open_ids
    running.live.release("small")


def test_a_switch_that_does_not_fit_beside_held_variants_changes_nothing(store: Store, run: Run) -> None:
    running = run("small", _largest(store, "large"))
    before = running.logits()
    small = running.live.current
    assert small is not None
    assert running.live.hold(small)
    with pytest.raises(ExceedsCeiling, match="beside 'small'"):
        running.live.change_to("large")
    np.testing.assert_array_equal(running.logits(), before)
    running.live.release("small")
    assert running.live.change_to("large").n_steps == 3


@pytest.mark.parametrize("spare", [0, 1 << 20])
def test_a_change_that_fails_on_its_way_leaves_a_model_that_computes(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    """The model runs on at the mixture, keeps the shards of both in the store, and can be switched again."""
    running = run("large", _largest(store, "large") + spare)
    plain, n_opened = ShardPool.open, 0

    def fails_at_the_second(self: ShardPool, *arguments: Any) -> Any:
        nonlocal n_opened
        n_opened += 1
        if n_opened == 2:
            raise ShardDamaged("the disk is gone")
        return plain(self, *arguments)

    monkeypatch.setattr(ShardPool, "open", fails_at_the_second)
    with pytest.raises(ShardDamaged):
        running.live.change_to("small")
    monkeypatch.undo()
    assert running.live.name == "large"
    assert running.live.warm == ()
    mixed = running.live.current
    assert mixed is not None
    assert mixed.variant.name == "large>small"
    mixture = [store.shard_path(s.id) for s in mixed.variant.shards]
    assert mixture not in (_paths(store, "large"), _paths(store, "small"))
    np.testing.assert_array_equal(running.logits(), _fresh(mixture))
    assert store.leased_ids() >= {s.id for n in ("large", "small") for s in store.variant(n).shards}
    for name in ("small", "large"):
        running.live.change_to(name)
        np.testing.assert_array_equal(running.logits(), _fresh(_paths(store, name)))
        assert running.open_bytes <= running.room
    assert store.leased_ids() == {s.id for s in store.variant("large").shards}


def test_an_engine_that_is_closed_in_the_middle_of_a_change_ends(store: Store, run: Run) -> None:
    running = run("large", _largest(store, "large"))
    staged = running.live.prepare("small").result()
    assert isinstance(staged, StagedVariant)
    change = running.live.begin(staged)
    assert change is not None
    change.exchange_next()
    waiting = running.live.prepare("middle")
    running.close()
    assert waiting.cancelled() or waiting.exception() is not None
    with pytest.raises(EngineFailed):
        change.open_next()
    assert store.leased_ids() == set()


def test_an_engine_generates_on_while_it_is_switched_step_by_step(store: Store) -> None:
    with Engine.open(store, "large", OPTIONS) as engine:
        engine.switch("small")
        expected = engine.logits(TOKENS)
    needed = _ceiling_of_nothing_to_spare(store, "large")
    with Engine.open(store, "large", replace(OPTIONS, memory_bytes=needed)) as engine:
        endless = SamplingOptions(logit_bias={EOS: -100.0})
        generation = engine.generate([1, 7], max_tokens=30, sampling=endless)
        next(generation)
        engine.switch("small")
        assert engine.variant == "small"
        tokens = [t for t in generation if t.id >= 0]  # without the rest of a character, which comes last
        assert [t.variant for t in tokens] == ["small"] * 29
        np.testing.assert_array_equal(engine.logits(TOKENS), expected)


def _ceiling_of_nothing_to_spare(store: Store, name: str) -> int:
    """What the error says that a variant needs."""
    with pytest.raises(ExceedsCeiling) as caught:
        Engine.open(store, name, replace(OPTIONS, memory_bytes=1))
    return caught.value.needed_bytes + (1 << 20)  # the process measures itself again, a little larger


def test_saving_memory_closes_what_is_warm_and_takes_no_more_than_was_taken(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lamella.run.weight_memory.SAVING_SLACK_BYTES", 0)
    running = run("large", 1 << 40)
    running.live.change_to("small")
    assert set(running.live.warm) == {"large", "small"}
    running.live.change_to("large")
    running.live.memory.save(is_on=True)
    assert set(running.live.warm) == {"large"}
    taken = running.open_bytes
    report = running.live.change_to("small")
    assert report.n_steps > 1
    assert report.peak_bytes <= taken
    running.live.memory.save(is_on=False)
    assert running.live.change_to("large").n_steps == 1
    assert set(running.live.warm) == {"large", "small"}
