"""Joint storage: shared shards count once."""

from __future__ import annotations

from lamella.store.store import Store
from lamella.store.usage import Usage, VariantUsage
from tests.store.conftest import MakeVariant, add_shard


def test_an_empty_store_uses_nothing(store: Store) -> None:
    assert store.usage() == Usage(0, 0, 0, ())


def test_shared_shards_count_once(store: Store, make_variant: MakeVariant) -> None:
    make_variant("a", b"x" * 100, b"a" * 10)
    make_variant("b", b"x" * 100, b"b" * 7)
    add_shard(store, "layer 0", b"?" * 5)
    assert store.usage() == Usage(
        117, 217, 5, (VariantUsage("a", 110, 10, "b", 100), VariantUsage("b", 107, 7, "a", 100))
    )


def test_a_shard_twice_in_one_variant_is_its_own_once(store: Store, make_variant: MakeVariant) -> None:
    make_variant("a", b"x" * 100, b"x" * 100)
    assert store.usage() == Usage(100, 200, 0, (VariantUsage("a", 200, 100, None, 0),))


def test_the_nearest_variant_is_the_one_that_shares_most(store: Store, make_variant: MakeVariant) -> None:
    make_variant("a", b"x" * 100, b"y" * 50)
    make_variant("b", b"x" * 100, b"b" * 7)
    make_variant("c", b"y" * 50, b"c" * 7)
    make_variant("d", b"d" * 9)
    assert [(v.nearest, v.nearest_bytes) for v in store.usage().variants] == [
        ("b", 100),
        ("a", 100),
        ("a", 50),
        (None, 0),
    ]
