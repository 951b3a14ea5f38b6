"""Shards from elsewhere get their place only if they are what they are named for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.core.artifacts import ShardRef
from lamella.core.errors import LamellaError, ShardDamaged, StoreError
from lamella.store.fetching import FolderSource, fetch
from lamella.store.store import Store
from tests.store.conftest import IDENTITY, MakeVariant, add_shard


class Pieces:
    """A source that sends what it was told to, whatever it is asked for."""

    name = "pieces"

    def __init__(self, *sent: bytes) -> None:
        self._sent = sent

    def check(self, shard_id: str, n_bytes: int) -> None:
        pass

    def fetch(self, shard_id: str, n_bytes: int) -> Iterator[bytes]:
        yield from self._sent


@pytest.fixture
def shard(store: Store, make_variant: MakeVariant) -> ShardRef:
    """A shard that is missing."""
    found = make_variant("v", b"meta", b"layer").shards[1]
    store.shard_path(found.id).unlink()
    return found


def test_a_shard_comes_in_pieces(store: Store, shard: ShardRef) -> None:
    with store.lease() as lease:
        fetch(lease, shard, Pieces(b"la", b"", b"yer"))
    assert store.verify().ok


@pytest.mark.parametrize("sent", [(b"lay",), (b"laxer",), (b"layer", b"s"), ()], ids=["less", "other", "more", "none"])
def test_other_bytes_are_refused_and_leave_nothing(store: Store, shard: ShardRef, sent: tuple[bytes, ...]) -> None:
    before = sorted(store.path.rglob("*"))
    with store.lease() as lease, pytest.raises(ShardDamaged, match=shard.id):
        fetch(lease, shard, Pieces(*sent))
    assert sorted(store.path.rglob("*")) == before


def test_another_folder_has_it_or_says_so(store: Store, shard: ShardRef, tmp_path: Path) -> None:
    other = Store.create(tmp_path / "other", IDENTITY)
    with store.lease() as lease, pytest.raises(StoreError, match=f"other has no shard {shard.id}"):
        fetch(lease, shard, FolderSource(other))
    there = other.shard_path(add_shard(other, "layer 1", b"layer").id)
    with store.lease() as lease:
        fetch(lease, shard, FolderSource(other))
    assert store.verify().ok
    there.chmod(0o644)
    there.write_bytes(b"lay")
    with store.lease() as lease, pytest.raises(LamellaError, match="has 3 bytes instead of 5"):
        fetch(lease, shard, FolderSource(other))
