"""Opening, reading and naming: what is there is found, what is wrong is refused with the facts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from lamella.core.errors import (
    InvalidRequest,
    ShardDamaged,
    StorageFailed,
    StoreError,
    StoreFormatError,
    UnknownVariant,
    VariantExists,
)
from lamella.store.store import Store
from tests.fakes.disks import make_read_only, small_disk
from tests.store.conftest import IDENTITY, PLAN, MakeVariant, add_shard


def test_an_opened_store_is_the_created_one(store: Store) -> None:
    assert Store.open(store.path).identity == IDENTITY
    assert Store.create(store.path, IDENTITY).identity == IDENTITY


@pytest.mark.parametrize("field", ["structure", "weights"])
def test_another_model_is_refused_by_both_names(store: Store, field: str) -> None:
    other = dataclasses.replace(IDENTITY, name="other", **{field: "0" * 64})
    with pytest.raises(StoreError, match=r"holds tiny .* not other"):
        Store.create(store.path, other)


def test_a_renamed_file_of_the_same_model_is_the_same_model(store: Store) -> None:
    assert Store.create(store.path, dataclasses.replace(IDENTITY, name="renamed")).identity == IDENTITY
    assert Store.open(store.path).identity == IDENTITY


def test_a_specification_without_weights_gets_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="without weights"):
        Store.create(tmp_path / "s", dataclasses.replace(IDENTITY, weights=""))
    assert not (tmp_path / "s").exists()


def test_a_folder_with_other_things_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear to me")
    with pytest.raises(StoreFormatError, match=r"not empty: thesis\.txt"):
        Store.create(tmp_path, IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreFormatError):
        Store.open(tmp_path / "file")
    with pytest.raises(StoreFormatError, match="is a file"):
        Store.create(tmp_path / "file", IDENTITY)


def test_a_missing_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreFormatError, match=r"no store\.json"):
        Store.open(tmp_path)


def test_a_newer_store_is_refused_and_left_untouched(store: Store) -> None:
    document = store.path / "store.json"
    newer = json.dumps({**json.loads(document.read_text()), "format_version": 2, "model": "of another shape"})
    document.unlink()
    document.write_text(newer)
    with pytest.raises(StoreFormatError, match=r"format version 2.*reads 1 to 1"):
        Store.open(store.path)
    with pytest.raises(StoreFormatError, match=r"format version 2"):
        Store.create(store.path, IDENTITY)
    assert document.read_text() == newer


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": "lamella.plan"}', '{"format": "lamella.store", "format_version": true}']
)
def test_a_damaged_store_document_is_refused_by_path(store: Store, text: str) -> None:
    (store.path / "store.json").unlink()
    (store.path / "store.json").write_text(text)
    with pytest.raises(StoreFormatError, match=r"store\.json"):
        Store.open(store.path)


def _create(path: Path, start: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    Store.create(path, IDENTITY)


def test_two_processes_may_create_one_store_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for round_number in range(2):
        path, start = tmp_path / str(round_number), context.Barrier(3)
        creators = [context.Process(target=_create, args=(path, start)) for _ in range(3)]
        for creator in creators:
            creator.start()
        for creator in creators:
            creator.join()
        assert [creator.exitcode for creator in creators] == [0, 0, 0]
        assert Store.open(path).identity == IDENTITY


def test_a_shard_is_named_by_its_hash_and_read_only(store: Store) -> None:
    ref = add_shard(store, "layer 0", b"weights")
    path = store.shard_path(ref.id)
    assert ref.id == hashlib.sha256(b"weights").hexdigest() == path.stem
    assert path.parent.name == ref.id[:2]
    assert path.stat().st_mode & 0o777 == 0o444
    assert list((store.path / "incoming").iterdir()) == []


def test_a_shard_not_committed_leaves_nothing(store: Store) -> None:
    with store.lease() as lease:
        writer = lease.new_shard("layer 0", 4)
        writer.write(b"weig")
        writer.close()
    assert not (store.path / "shards").exists()
    assert list((store.path / "incoming").iterdir()) == []


def test_writing_a_damaged_shard_again_repairs_it(store: Store) -> None:
    path = store.shard_path(add_shard(store, "layer 0", b"weights").id)
    _flip_bit(path)
    add_shard(store, "layer 0", b"weights")
    assert path.read_bytes() == b"weights"


def test_variants_are_listed_by_name(store: Store, make_variant: MakeVariant) -> None:
    written = [make_variant(name, b"meta", name.encode()) for name in ("b", "a", "C")]
    assert [v.name for v in store.variants()] == ["C", "a", "b"]
    assert store.variant("a") == written[1]


def test_an_unknown_variant_is_refused_with_those_there_are(store: Store, make_variant: MakeVariant) -> None:
    with pytest.raises(UnknownVariant, match="there are: none"):
        store.variant("x")
    make_variant("int8", b"1")
    make_variant("int4", b"2")
    with pytest.raises(UnknownVariant, match="'x'; there are: int4, int8"):
        store.variant("x")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "-rf", "a" * 65, "a b", "ä", "a\n"])
def test_names_that_are_no_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(InvalidRequest):
        store.variant(name)
    with pytest.raises(InvalidRequest):
        store.add_variant(name, PLAN, [])
    with pytest.raises(InvalidRequest):
        store.remove(name)


def test_the_same_variant_again_is_returned_as_it_is(store: Store, make_variant: MakeVariant) -> None:
    first = make_variant("v", b"a", b"b")
    before = (store.path / "variants/v").stat().st_ino
    assert make_variant("v", b"a", b"b") == first
    assert (store.path / "variants/v").stat().st_ino == before


def test_a_name_taken_by_other_contents_is_refused(store: Store, make_variant: MakeVariant) -> None:
    first = make_variant("v", b"a", b"b")
    with pytest.raises(VariantExists, match="'v' with other contents"):
        make_variant("v", b"a", b"c")
    assert store.variant("v") == first
    assert list((store.path / "incoming").iterdir()) == []


def test_links_lead_to_the_shards_also_after_the_store_moved(
    store: Store, make_variant: MakeVariant, tmp_path: Path
) -> None:
    make_variant("v", b"a", b"b")
    moved = Store.open(store.path.rename(tmp_path / "moved"))
    links = sorted((moved.path / "variants/v").glob("*.gguf"))
    assert [link.name for link in links] == ["v-00001-of-00002.gguf", "v-00002-of-00002.gguf"]
    assert [link.read_bytes() for link in links] == [b"a", b"b"]
    assert moved.first_link("v") == links[0]
    assert [path.read_bytes() for path in moved.shard_paths(moved.variant("v"))] == [b"a", b"b"]


@pytest.mark.parametrize("evil", ["../../../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "/..", ""])
def test_a_variant_document_cannot_lead_out_of_the_store(store: Store, make_variant: MakeVariant, evil: str) -> None:
    make_variant("v", b"a")
    _edit(store.path / "variants/v/variant.json", lambda d: d["shards"][0].update(id=evil))
    with pytest.raises(StoreFormatError, match="shard id"):
        store.variant("v")


def test_a_variant_document_under_another_name_is_refused(store: Store, make_variant: MakeVariant) -> None:
    make_variant("v", b"a")
    shutil.copytree(store.path / "variants/v", store.path / "variants/w", symlinks=True)
    with pytest.raises(StoreFormatError, match=r"variants/w/variant\.json describes the variant 'v'"):
        store.variants()


def test_a_newer_variant_is_refused(store: Store, make_variant: MakeVariant) -> None:
    make_variant("v", b"a")
    _edit(store.path / "variants/v/variant.json", lambda d: d.update(format_version=9))
    with pytest.raises(StoreFormatError, match="version 9"):
        store.variant("v")


def test_a_missing_shard_is_damage(store: Store, make_variant: MakeVariant) -> None:
    variant = make_variant("v", b"a", b"b")
    store.shard_path(variant.shards[1].id).unlink()
    with pytest.raises(ShardDamaged, match=rf"{variant.shards[1].id} \(layer 1 of v\) is damaged: missing"):
        store.shard_paths(variant)


def test_a_shard_of_another_size_is_damage_seen_without_reading_it(store: Store, make_variant: MakeVariant) -> None:
    variant = make_variant("v", b"aaaa")
    path = store.shard_path(variant.shards[0].id)
    path.chmod(0o644)
    os.truncate(path, 2)
    with pytest.raises(ShardDamaged, match="2 bytes instead of 4"):
        store.shard_paths(variant)


def test_a_recipe_is_recalled_as_long_as_its_shard_is_there(store: Store) -> None:
    ref = add_shard(store, "layer 0", b"weights")
    recipe_id = "ab" * 32
    assert store.recall(recipe_id) is None
    store.remember(recipe_id, {"shard": 1}, ref)
    assert store.recall(recipe_id) == ref
    store.shard_path(ref.id).unlink()
    assert store.recall(recipe_id) is None


@pytest.mark.parametrize(
    "text", ["", "{}", '{"format": "lamella.recipe", "format_version": 1, "shard": {"id": "../x"}}']
)
def test_a_damaged_recipe_is_ignored(store: Store, text: str) -> None:
    recipe_id = "ab" * 32
    store.remember(recipe_id, {}, add_shard(store, "layer 0", b"weights"))
    path = store.path / f"recipes/ab/{recipe_id}.json"
    path.unlink()
    path.write_text(text)
    assert store.recall(recipe_id) is None


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        store = Store.create(disk / "store", IDENTITY)
        with store.lease() as lease:
            writer = lease.new_shard("layer 0", 4 << 20)
            writer.write(bytes(1 << 18))
            with pytest.raises(StorageFailed, match=r"No space left on device \(needs 4.00 MiB, .* are free\)"):
                writer.write(bytes(1 << 20))
            writer.close()
        assert list((store.path / "incoming").iterdir()) == []
        add_shard(store, "layer 0", bytes(1 << 19))  # the space is there again


def test_a_read_only_store_can_be_read_and_not_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        store = Store.create(disk / "store", IDENTITY)
        store.add_variant("v", PLAN, [add_shard(store, "layer 0", b"a")])
        for lock_is_there in (True, False):
            if not lock_is_there:
                (store.path / "lock").unlink()
                make_read_only(disk)
            with Store.open(store.path).lease(reading=True) as lease:
                assert store.shard_paths(lease.hold("v"))[0].read_bytes() == b"a"
            assert store.verify().ok
        for attempt in (
            store.lease,
            lambda: store.remove("v"),
            store.collect_garbage,
            lambda: Store.create(disk / "new", IDENTITY),
        ):
            with pytest.raises(StorageFailed, match="Read-only file system"):
                attempt()


def _flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def _edit(path: Path, change: object) -> None:
    document = json.loads(path.read_text())
    change(document)  # type: ignore[operator]
    path.write_text(json.dumps(document))
