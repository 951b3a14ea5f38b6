"""Quota, pins, dropped shards and use: noted one by one, read strictly, unreadable notes named with a cure."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lamella.core.artifacts import ShardRef
from lamella.core.errors import ShardDamaged, StoreFormatError
from lamella.store.keeping import KeptShard
from lamella.store.store import Store
from tests.store.conftest import MakeVariant, add_shard, write_shard


def kept(shard: ShardRef, *variants: str) -> KeptShard:
    """What is known of a shard when it is chosen to be dropped."""
    return KeptShard(shard, variants, last_used=0, work=0)


def test_a_quota_is_kept_and_forgotten(store: Store) -> None:
    assert store.state.quota_bytes() is None
    store.state.set_quota(123)
    store.state.set_quota(456)
    assert Store.open(store.path).state.quota_bytes() == 456
    store.state.set_quota(None)
    assert store.state.quota_bytes() is None


def test_pins_go_with_their_variants(store: Store, make_variant: MakeVariant) -> None:
    for name in ("a", "b"):
        make_variant(name, b"meta", name.encode())
        store.state.pin(name)
    store.state.unpin("a")
    assert store.state.pinned() == {"b"}
    store.remove("b")
    assert not store.state.pinned()


def test_a_dropped_shard_is_known_as_dropped_until_it_is_back(store: Store, make_variant: MakeVariant) -> None:
    variant = make_variant("v", b"meta", b"layer")
    shard = variant.shards[1]
    assert store.drop([kept(shard, "v")]) == (shard,)
    assert store.is_dropped(shard.id)
    assert store.state.dropped() == {shard.id}
    assert store.recall("ab" * 32) is None
    with pytest.raises(ShardDamaged, match=r"layer 1 of v\) was dropped to keep the quota.*lamella store restore"):
        store.shard_paths(variant)
    report = store.verify()
    assert report.ok
    assert [d.id for d in report.dropped] == [shard.id]
    assert add_shard(store, "layer 1", b"layer") == shard
    assert not store.is_dropped(shard.id)
    assert not list((store.path / "dropped").rglob("*.json"))


def test_what_changed_since_the_look_is_not_dropped(store: Store, make_variant: MakeVariant) -> None:
    """Leased, pinned, used by another variant too, no longer used by one: each stays."""
    variants = [make_variant(name, b"meta", name.encode()) for name in ("a", "b", "c", "d")]
    shards = [variant.shards[1] for variant in variants]
    looked_at = [kept(shard, variant.name) for shard, variant in zip(shards, variants, strict=True)]
    make_variant("z", b"meta", b"c")
    store.remove("d")
    store.state.pin("b")
    with store.lease() as lease:
        lease.hold("a")
        assert store.drop(looked_at) == ()
        assert all(store.shard_path(shard.id).exists() for shard in shards)
    assert store.drop(looked_at) == (shards[0],)


def test_a_shard_that_is_placed_again_is_not_dropped_under_its_lease(store: Store, make_variant: MakeVariant) -> None:
    shard = make_variant("v", b"meta", b"layer").shards[1]
    store.drop([kept(shard, "v")])
    with store.lease() as lease:
        assert write_shard(lease, "layer 1", b"layer") == shard
        assert store.drop([kept(shard, "v")]) == ()
    assert store.drop([kept(shard, "v")]) == (shard,)


def test_a_dropped_shard_that_was_put_back_by_hand_is_not_dropped(store: Store, make_variant: MakeVariant) -> None:
    shard = make_variant("v", b"meta", b"layer").shards[1]
    assert store.drop([kept(shard, "v")]) == (shard,)
    store.shard_path(shard.id).write_bytes(b"layer")
    assert not store.is_dropped(shard.id)
    store.shard_path(shard.id).unlink()
    assert store.is_dropped(shard.id)


def test_gc_keeps_what_is_noted_of_needed_shards_only(store: Store, make_variant: MakeVariant) -> None:
    stays, gone = make_variant("kept", b"meta", b"1").shards[1], make_variant("gone", b"meta", b"2").shards[1]
    store.remember("ab" * 32, {}, stays)
    store.drop([kept(stays, "kept"), kept(gone, "gone")])
    store.remove("gone")
    store.collect_garbage()
    assert store.state.dropped() == {stays.id}
    assert store.remembered("ab" * 32) == stays  # how to make it again
    assert not store.verify().damaged


def test_use_is_the_later_of_building_and_loading(store: Store, make_variant: MakeVariant) -> None:
    variant = make_variant("v", b"meta")
    document = store.path / "variants/v/variant.json"
    os.utime(document, (1000, 1000))
    assert store.state.last_used("v") == 1000
    store.ready_paths(variant)
    assert store.state.last_used("v") > 1000
    os.utime(store.path / "use/v", (500, 500))
    assert store.state.last_used("v") == 1000
    assert store.state.last_used("none") == 0


def test_stored_bytes_count_files_once_and_links_not(store: Store, make_variant: MakeVariant) -> None:
    before = store.state.stored_bytes()
    make_variant("v", b"x" * 1000)
    after = store.state.stored_bytes()
    assert after - before == 1000 + (store.path / "variants/v/variant.json").stat().st_size
    make_variant("w", b"x" * 1000)
    assert store.state.stored_bytes() - after == (store.path / "variants/w/variant.json").stat().st_size


BROKEN = {
    "no JSON": b"{",
    "another format": b'{"format": "lamella.other", "format_version": 1}',
    "newer": b'{"format": "lamella.NAME", "format_version": 2}',
    "no field": b'{"format": "lamella.NAME", "format_version": 1}',
    "wrong type": b'{"format": "lamella.NAME", "format_version": 1, "quota_bytes": "1", "variant": 1, "shard": 1}',
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=list(BROKEN))
def test_unreadable_notes_are_named_with_their_cure(store: Store, make_variant: MakeVariant, broken: bytes) -> None:
    shard = make_variant("v", b"meta", b"layer").shards[1]
    assert store.drop([kept(shard, "v")]) == (shard,)
    store.state.pin("v")
    store.state.set_quota(1)
    dropped = store.path / f"dropped/{shard.id[:2]}/{shard.id}.json"
    for path, kind in ((store.path / "quota.json", "quota"), (store.path / "pins/v.json", "pin"), (dropped, "dropped")):
        path.chmod(0o644)
        path.write_bytes(broken.replace(b"NAME", kind.encode()))
    with pytest.raises(StoreFormatError, match=rf"quota\.json.*lamella store quota {store.path} none"):
        store.state.quota_bytes()
    with pytest.raises(StoreFormatError, match=rf"pins/v\.json.*lamella store unpin {store.path} v"):
        store.state.pinned()
    report = store.verify()
    assert not report.ok
    assert len(report.unreadable_notes) == 3
    assert [d.reason for d in report.damaged] == ["missing"]  # whether it was dropped cannot be told
    store.state.set_quota(None)
    store.state.unpin("v")
    assert [f"lamella store repair {store.path}" in reason for reason in store.state.unreadable()] == [True]


def test_a_store_that_may_not_be_written_notes_no_use(store: Store, make_variant: MakeVariant) -> None:
    variant = make_variant("v", b"meta")
    (store.path / "use").write_bytes(b"")  # no folder can stand here: as good as a read-only disk, for root too
    assert store.ready_paths(variant) == (store.shard_path(variant.shards[0].id),)


def test_a_quota_of_nothing_and_a_pin_of_another_variant_are_named_with_their_cure(store: Store) -> None:
    store.state.set_quota(0)
    store.state.pin("v")
    pin = store.path / "pins/v.json"
    pin.chmod(0o644)
    pin.write_bytes(pin.read_bytes().replace(b'"v"', b'"w"'))
    with pytest.raises(StoreFormatError, match=rf"0 bytes.*lamella store quota {store.path} none"):
        store.state.quota_bytes()
    with pytest.raises(StoreFormatError, match=rf"variant 'w'.*lamella store unpin {store.path} v"):
        store.state.pinned()


def test_a_note_about_another_shard_is_refused(store: Store, make_variant: MakeVariant) -> None:
    a, b = make_variant("v", b"meta", b"layer").shards
    store.state.note_dropped(a)
    path = store.path / f"dropped/{a.id[:2]}/{a.id}.json"
    target = store.path / f"dropped/{b.id[:2]}/{b.id}.json"
    target.parent.mkdir(exist_ok=True)
    Path(path).rename(target)
    assert f"is about shard {a.id}" in store.state.unreadable()[0]
