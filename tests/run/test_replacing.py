"""A variant that is replaced in the store while it runs: the engine keeps what it has, until it is switched."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from lamella.core.errors import ShardDamaged
from lamella.run.engine import Engine
from lamella.run.loading import load
from lamella.store.store import Store
from tests.run.conftest import OPTIONS

PROMPT = [1, 300, 301, 302]


@pytest.fixture
def own_store(store_folder: Path, tmp_path: Path) -> Store:
    """Variants current (as large), large, middle and small."""
    made = Store.open(Path(shutil.copytree(store_folder, tmp_path / "store", symlinks=True)))
    large = made.variant("large")
    made.add_variant("current", large.plan, large.shards)
    return made


def put_in_place(store: Store, name: str) -> None:
    """The variant of that name becomes ``current``, and nobody needs the former one any more."""
    other = store.variant(name)
    store.add_variant("current", other.plan, other.shards, replace=True)
    store.remove("large")
    store.collect_garbage()


def test_an_engine_keeps_the_old_one_and_a_switch_gets_the_new_one(own_store: Store) -> None:
    with Engine.open(own_store, "small", OPTIONS) as engine:
        small = engine.logits(PROMPT)
    old = {shard.id for shard in own_store.variant("large").shards}
    with Engine.open(own_store, "current", OPTIONS) as engine:
        large = engine.logits(PROMPT)
        put_in_place(own_store, "small")
        np.testing.assert_array_equal(engine.logits(PROMPT), large)
        assert old <= own_store.leased_ids()
        report = engine.switch("current")
        assert (report.before, report.after, report.n_shards) == ("current", "current", 3)
        np.testing.assert_array_equal(engine.logits(PROMPT), small)
        own_store.collect_garbage()
        assert not any(own_store.shard_path(i).exists() for i in old - own_store.leased_ids())
        assert own_store.leased_ids() == {shard.id for shard in own_store.variant("small").shards}
        assert engine.switch("current").n_weights == 0
    assert own_store.leased_ids() == set()


def test_what_was_prepared_before_it_was_replaced_is_got_anew(own_store: Store) -> None:
    with Engine.open(own_store, "small", OPTIONS) as engine:
        small = engine.logits(PROMPT)
        before = engine.prepare("current").result()
        put_in_place(own_store, "small")
        after = engine.prepare("current").result()
        assert before.variant.shards != after.variant.shards
        engine.switch("current")
        np.testing.assert_array_equal(engine.logits(PROMPT), small)
        assert own_store.leased_ids() == {shard.id for shard in own_store.variant("small").shards}


def test_where_the_new_one_cannot_be_prepared_the_old_one_can_be_let_go(own_store: Store) -> None:
    with load(own_store, "middle", {}, lambda _: OPTIONS.context, n_warm=2, check=False) as loaded:
        live = loaded.live
        live.change_to("current")
        live.change_to("middle")
        small = own_store.variant("small")
        own_store.add_variant("current", small.plan, small.shards, replace=True)
        own_store.shard_path(small.shards[1].id).unlink()
        with pytest.raises(ShardDamaged, match="missing"):
            live.prepare("current").result()
        assert list(live.warm) == ["current", "middle"]
        live.memory.save(is_on=True)
        assert list(live.warm) == ["middle"]
