"""Only what nobody needs is removed."""

from __future__ import annotations

import pytest

from lamella.core.errors import StoreFormatError, UnknownVariant
from lamella.store.files import IncomingFile
from lamella.store.gc import GarbageReport
from lamella.store.store import Store
from tests.store.conftest import MakeVariant

NOTHING = GarbageReport(0, 0, 0, 0)


def test_a_store_in_use_has_no_garbage(store: Store, make_variant: MakeVariant) -> None:
    variant = make_variant("v", b"a", b"b")
    store.remember("ab" * 32, {}, variant.shards[0])
    assert store.collect_garbage() == NOTHING
    assert store.verify().ok
    assert store.recall("ab" * 32) == variant.shards[0]


def test_removing_a_variant_frees_what_only_it_used(store: Store, make_variant: MakeVariant) -> None:
    kept, gone = make_variant("kept", b"meta", b"1"), make_variant("gone", b"meta", b"twenty-two")
    store.remember("ab" * 32, {}, gone.shards[1])
    store.remember("cd" * 32, {}, gone.shards[0])
    store.remove("gone")
    assert [v.name for v in store.variants()] == ["kept"]
    assert store.shard_path(gone.shards[1].id).exists()  # rm alone deletes no shard
    report = store.collect_garbage()
    assert (report.n_shards, report.n_recipes, report.n_incoming) == (1, 1, 0)
    assert report.freed_bytes >= len(b"twenty-two")
    assert not store.shard_path(gone.shards[1].id).exists()
    store.check(kept)
    assert store.recall("cd" * 32) == gone.shards[0]


def test_removing_an_unknown_variant_is_refused(store: Store) -> None:
    with pytest.raises(UnknownVariant):
        store.remove("x")


def test_what_dead_writers_left_is_removed(store: Store) -> None:
    (store.path / "incoming" / "dead").write_bytes(b"12345")
    (store.path / "incoming" / "folder").mkdir()
    (store.path / "incoming" / "folder" / "variant.json").write_bytes(b"123")
    assert store.collect_garbage() == GarbageReport(0, 0, 2, 8)
    assert list((store.path / "incoming").iterdir()) == []


def test_a_living_writers_file_is_left_alone(store: Store) -> None:
    with IncomingFile(store.path / "incoming") as file:
        file.write(b"half a shard")
        assert store.collect_garbage() == NOTHING
        assert file.path.read_bytes() == b"half a shard"


def test_files_of_other_names_are_left_alone(store: Store) -> None:
    notes = store.path / "shards" / "ab" / "notes.gguf"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    assert store.collect_garbage() == NOTHING
    assert notes.exists()


def test_gc_deletes_nothing_when_a_variant_cannot_be_read(store: Store, make_variant: MakeVariant) -> None:
    make_variant("v", b"a")
    (store.path / "variants/v/variant.json").write_text("{")
    make_variant("w", b"b")
    with pytest.raises(StoreFormatError, match=rf"nothing was deleted.*what v needs.*store rm {store.path} v"):
        store.collect_garbage()
    assert store.verify().n_shards == 2
    store.remove("v")  # a damaged variant can still be removed
    assert store.collect_garbage().n_shards == 1
