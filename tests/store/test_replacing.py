"""A variant is replaced in one moment: whoever looks finds the old one or the new one, and who holds one keeps it."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from lamella.core.artifacts import ShardRef, Variant
from lamella.core.errors import ShardDamaged, UnknownVariant, VariantExists
from lamella.store.store import Store
from tests.fakes.crashes import run_and_kill, worker
from tests.store.conftest import PLAN, MakeVariant
from tests.store.test_crashes import MANY, N_CRASHES


@pytest.fixture
def new(store: Store, make_variant: MakeVariant) -> Variant:
    """The variant ``new``; ``current`` is another one, with which it shares a shard."""
    make_variant("current", b"shared", b"old")
    return make_variant("new", b"shared", b"new")


def ids_of(variant: Variant) -> tuple[str, ...]:
    return tuple(shard.id for shard in variant.shards)


def links_of(store: Store, name: str) -> list[Path]:
    return sorted((store.path / "variants" / name).glob("*.gguf"))


def test_a_name_that_is_taken_is_replaced_if_asked_for(store: Store, new: Variant) -> None:
    with pytest.raises(VariantExists, match="replace it"):
        store.add_variant("current", PLAN, new.shards)
    store.state.pin("current")
    added = store.add_variant("current", PLAN, new.shards, replace=True)
    assert store.variant("current") == added
    assert added.shards == new.shards
    assert [link.read_bytes() for link in links_of(store, "current")] == [b"shared", b"new"]
    assert store.verify().ok
    assert store.state.pinned() == {"current"}
    assert list((store.path / "incoming").iterdir()) == []


def test_a_name_that_is_free_may_be_asked_for_too(store: Store, new: Variant) -> None:
    store.remove("current")
    assert store.add_variant("current", PLAN, new.shards, replace=True).shards == new.shards
    assert store.verify().ok


def test_what_the_old_one_alone_needed_goes_at_the_next_gc_unless_somebody_holds_it(store: Store, new: Variant) -> None:
    with store.lease(reading=True) as lease:
        old = lease.hold("current")
        store.add_variant("current", PLAN, new.shards, replace=True)
        store.collect_garbage()
        assert [path.read_bytes() for path in store.shard_paths(old)] == [b"shared", b"old"]
    assert store.collect_garbage().n_shards == 1
    assert not store.has_shard(old.shards[1])
    assert store.verify().ok


def test_the_same_contents_are_left_as_they_are(store: Store, new: Variant) -> None:
    store.add_variant("current", PLAN, new.shards, replace=True)
    version = store.version("current")
    store.add_variant("current", PLAN, new.shards, replace=True)
    assert store.version("current") == version
    store.add_variant("current", PLAN, new.shards[::-1], replace=True)
    assert store.version("current") != version


def test_a_variant_that_cannot_be_read_is_replaced(store: Store, new: Variant) -> None:
    document = store.path / "variants/current/variant.json"
    document.write_text("{")
    store.add_variant("current", PLAN, new.shards, replace=True)
    assert store.variant("current").shards == new.shards


def test_a_variant_that_lacks_a_shard_replaces_nothing(store: Store, new: Variant) -> None:
    before = store.variant("current")
    with pytest.raises(ShardDamaged):
        store.add_variant("current", PLAN, [*new.shards, ShardRef("0" * 64, "layer 9", 1)], replace=True)
    assert store.variant("current") == before
    assert store.verify().ok


def test_replacing_and_removing_at_once_leaves_one_or_none(store: Store, new: Variant) -> None:
    """Whoever comes second meets a folder that is gone, or whole."""
    old = store.variant("current")

    def remove() -> None:
        for _ in range(200):
            try:
                store.remove("current")
            except UnknownVariant:
                continue

    thread = threading.Thread(target=remove)
    thread.start()
    for i in range(200):
        store.add_variant("current", PLAN, (old if i % 2 else new).shards, replace=True)
    thread.join()
    assert set(store.variant_names()) <= {"current", "new"}
    for name in store.variant_names():
        store.variant(name)
    assert store.verify().ok
    assert list((store.path / "incoming").iterdir()) == []


def test_broken_links_are_mended(store: Store, new: Variant) -> None:
    first, second = links_of(store, "new")
    first.unlink()
    second.unlink()
    second.symlink_to("elsewhere")
    assert store.verify().broken_links == (f"new/{first.name}", f"new/{second.name}")
    assert store.mend_links(new) == (f"new/{first.name}", f"new/{second.name}")
    assert store.verify().ok
    assert store.mend_links(new) == ()
    assert store.mend_links(store.variant("current")) == ()


def test_a_replacer_killed_at_any_moment_leaves_the_old_one_or_the_new_one(store: Store, new: Variant) -> None:
    """Two variants take each other's place again and again; a reader looks all the time."""
    moments, found, n_mended = random.Random(5), set(), 0
    wanted = {ids_of(store.variant("current")), ids_of(new)}
    store.add_variant("old", PLAN, store.variant("current").shards)
    for _ in range(N_CRASHES):
        seen: set[tuple[str, ...]] = set()
        is_over = threading.Event()

        def read(seen: set[tuple[str, ...]] = seen, is_over: threading.Event = is_over) -> None:
            while not is_over.is_set():
                seen.add(ids_of(store.variant("current")))  # raises if there is none

        reader = threading.Thread(target=read)
        reader.start()
        run_and_kill(worker("replace-on", store.path, "current", 60), moments.uniform(0, 0.05))
        is_over.set()
        reader.join()
        assert seen
        assert seen <= wanted
        found.add(ids_of(store.variant("current")))
        report = store.verify()
        assert not report.damaged
        assert not report.unreadable_variants
        n_mended += bool(store.mend_links(store.variant("current")))
        store.collect_garbage()
        assert store.verify().ok
        assert list((store.path / "incoming").iterdir()) == []
    assert found <= wanted
    if N_CRASHES >= MANY:
        assert len(found) == 2
        assert n_mended > 0  # some kills came between the document and its links
    print(f"{N_CRASHES} kills, links mended after {n_mended}")  # noqa: T201  # the figures of the long run
