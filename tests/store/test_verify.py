"""Damage is found, named and told apart from what is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from lamella.core.errors import ShardDamaged
from lamella.store.store import Store
from tests.store.conftest import MakeVariant, add_shard


@pytest.fixture(autouse=True)
def two_variants(make_variant: MakeVariant) -> None:
    make_variant("a", b"meta", b"layer 0 of a" * 200_000)
    make_variant("b", b"meta", b"layer 0 of b")


def test_a_whole_store_verifies(store: Store) -> None:
    add_shard(store, "layer 0", b"of no variant")
    seen: list[int] = []
    report = store.verify(seen.append)
    assert report.ok
    assert report.n_shards == 4
    assert report.n_bytes == sum(seen) == 4 + 12 * 200_000 + 12 + 13


def test_one_flipped_bit_is_named_with_its_layer_and_variants(store: Store) -> None:
    shard = store.variant("a").shards[1]
    _flip_bit(store.shard_path(shard.id))
    (damaged,) = store.verify().damaged
    assert (damaged.id, damaged.label, damaged.variants) == (shard.id, "layer 1", ("a",))
    assert "its SHA-256 is" in damaged.reason


def test_check_refuses_the_damaged_variant_only(store: Store) -> None:
    shard = store.variant("a").shards[1]
    _flip_bit(store.shard_path(shard.id))
    store.check(store.variant("b"))
    with pytest.raises(ShardDamaged, match=rf"{shard.id} \(layer 1 of a\)"):
        store.check(store.variant("a"))


def test_damage_of_a_shared_shard_names_every_variant(store: Store) -> None:
    shard = store.variant("a").shards[0]
    _flip_bit(store.shard_path(shard.id))
    assert store.verify().damaged[0].variants == ("a", "b")
    with pytest.raises(ShardDamaged, match="layer 0 of a, b"):
        store.check(store.variant("b"))


def test_a_missing_shard_is_reported(store: Store) -> None:
    store.shard_path(store.variant("b").shards[1].id).unlink()
    (damaged,) = store.verify().damaged
    assert (damaged.label, damaged.variants, damaged.reason) == ("layer 1", ("b",), "missing")


def test_a_damaged_shard_of_no_variant_is_reported(store: Store) -> None:
    _flip_bit(store.shard_path(add_shard(store, "layer 0", b"of no variant").id))
    assert store.verify().damaged[0].variants == ()


def test_a_link_to_another_shard_is_reported(store: Store) -> None:
    link = store.path / "variants/a/a-00002-of-00002.gguf"
    link.unlink()
    link.symlink_to(store.variant("b").shards[1].id)
    report = store.verify()
    assert report.broken_links == ("a/a-00002-of-00002.gguf",)
    assert not report.ok


def _flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
