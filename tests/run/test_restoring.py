"""A variant whose shards were dropped or lost is loaded all the same, and computes the same."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lamella import api
from lamella.core.artifacts import Variant
from lamella.core.errors import ShardDamaged
from lamella.evaluating import Exams
from lamella.llama.context import ContextOptions
from lamella.quantize import rebuild
from lamella.quantize.trimming import trim
from lamella.run.engine import Engine, EngineOptions
from lamella.store.store import Store
from tests.fakes.tiny_model import write_tiny_model
from tests.run.conftest import OPTIONS

PROMPT = [1, 300, 301, 302]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf", n_embd=256, n_ff=512)


@pytest.fixture
def store(model: Path, tmp_path: Path) -> Store:
    for name, precision in (("large", "int8"), ("small", "int4")):
        api.build(model, tmp_path / "store", api.plan(model, "uniform", precision=precision), name)
    return Store.open(tmp_path / "store")


def drop_all(store: Store) -> int:
    store.state.set_quota(1)
    dropped = trim(store).dropped
    store.state.set_quota(None)
    return len(dropped)


def test_loading_and_switching_make_dropped_shards_again(store: Store) -> None:
    with Engine.open(store, "large", OPTIONS) as engine:
        large = engine.logits(PROMPT)
        engine.switch("small")
        small = engine.logits(PROMPT)
    assert drop_all(store) == 8
    with api.open_engine(store.path, "large", OPTIONS) as engine:
        np.testing.assert_array_equal(engine.logits(PROMPT), large)
        assert len(store.state.dropped()) == 3
        engine.switch("small")
        np.testing.assert_array_equal(engine.logits(PROMPT), small)
    assert not store.state.dropped()
    assert store.verify().ok


def test_a_switch_makes_them_again_in_the_background(store: Store) -> None:
    with api.open_engine(store.path, "large", OPTIONS) as engine:
        for shard in store.variant("small").shards:
            if shard not in store.variant("large").shards:
                store.shard_path(shard.id).unlink()
        prepared = engine.prepare("small")
        engine.logits(PROMPT)
        assert prepared.result(timeout=60).variant.name == "small"
    assert store.verify().ok


def test_a_variant_that_cannot_be_made_again_leaves_the_engine_as_it_is(store: Store, model: Path) -> None:
    with api.open_engine(store.path, "large", OPTIONS) as engine:
        before = engine.logits(PROMPT)
        store.shard_path(store.variant("small").shards[1].id).unlink()
        model.unlink()
        with pytest.raises(ShardDamaged, match=r"layer 0 of small\).*cannot be made again.*tiny\.gguf"):
            engine.switch("small")
        assert engine.variant == "large"
        np.testing.assert_array_equal(engine.logits(PROMPT), before)


def test_closing_the_engine_does_not_wait_for_shards_to_be_made(store: Store) -> None:
    begun, stopped = threading.Event(), threading.Event()

    def restore(_store: Store, _variant: Variant, should_stop: Callable[[], bool] | None) -> None:
        begun.set()
        assert should_stop is not None
        while not should_stop():
            time.sleep(0.01)
        stopped.set()

    store.shard_path(store.variant("small").shards[1].id).unlink()
    with Engine.open(Store.open(store.path, restore), "large", OPTIONS) as engine:
        engine.prepare("small")
        assert begun.wait(60)
    assert stopped.is_set()


def test_what_an_engine_runs_is_not_dropped_and_what_it_left_is(store: Store) -> None:
    options = dataclasses.replace(OPTIONS, n_warm=1)
    with api.open_engine(store.path, "large", options) as engine:
        before = engine.logits(PROMPT)
        drop_all(store)
        assert not any(map(store.is_dropped, (s.id for s in store.variant("large").shards)))
        engine.switch("small")  # makes its shards again
        drop_all(store)
        assert not any(map(store.is_dropped, (s.id for s in store.variant("small").shards)))
        assert len(store.state.dropped()) == 3
        engine.switch("large")
        np.testing.assert_array_equal(engine.logits(PROMPT), before)


def test_restoring_takes_the_threads_of_the_engine(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[object] = []

    def noted(*_: object, n_threads: int | None = None, **__: object) -> None:
        taken.append(n_threads)

    monkeypatch.setattr(rebuild, "make_again", noted)
    store.shard_path(store.variant("small").shards[1].id).unlink()
    with (
        pytest.raises(ShardDamaged),
        api.open_engine(store.path, "small", EngineOptions(ContextOptions(n_ctx=64, n_threads=1))),
    ):
        pass
    assert taken == [1]


def test_loading_notes_the_use(store: Store) -> None:
    with api.open_engine(store.path, "large", OPTIONS):
        assert [path.name for path in (store.path / "use").iterdir()] == ["large"]


def test_evaluating_exporting_and_importing_make_them_again(store: Store, model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("abcdefgh " * 100)
    exams = Exams(text=text, window_tokens=64, n_windows=1, n_threads=1)
    before = api.evaluate(store.path, exams=exams)
    drop_all(store)
    after = api.evaluate(store.path, exams=exams)
    for name, row in before.rows.items():
        assert row.text is not None
        assert after.rows[name].text == row.text
    api.export(store.path, tmp_path / "before.gguf", "small")
    drop_all(store)
    api.export(store.path, tmp_path / "after.gguf", "small")
    assert (tmp_path / "after.gguf").read_bytes() == (tmp_path / "before.gguf").read_bytes()
    drop_all(store)
    assert api.import_file(tmp_path / "after.gguf", store.path, "again").n_shared == 6


def test_an_imported_variant_comes_back_from_its_file(store: Store, tmp_path: Path) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", n_embd=256, n_ff=512, dtype="Q8_0")
    api.import_file(other, store.path, "imported")
    assert drop_all(store) == 8 + 5
    api.restore(store.path, "imported")
    store.check(store.variant("imported"))


def test_a_build_keeps_the_quota_and_its_own_variant_longest(store: Store, model: Path) -> None:
    for name in ("large", "small"):
        os.utime(store.path / f"variants/{name}/variant.json", (1000, 1000))
    stored = store.state.stored_bytes()
    store.state.set_quota(stored)
    report = api.build(model, store.path, api.plan(model, "uniform", precision="int6"), "middle")
    assert report.trimmed is not None
    assert report.trimmed.dropped
    assert store.state.stored_bytes() <= stored
    assert not any(map(store.quick_damage, report.variant.shards))
