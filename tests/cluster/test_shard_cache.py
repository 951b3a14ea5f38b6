"""The shards that a node keeps: what sessions hold, what is damaged, what goes meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lamella.cluster import shard_cache
from lamella.cluster.rpc_stream import KNOWN_TENSOR, TENSOR_HEAD_BYTES, Expand, Slice
from lamella.cluster.shard_cache import ShardCache
from lamella.core.artifacts import ShardRef
from lamella.core.errors import RemoteInvalid, StorageFailed, StoreBusy
from lamella.remote.remote_store import RemoteStore
from lamella.store.documents import write_document
from lamella.store.layout import Layout
from lamella.store.store import Store
from tests.cluster.test_node import layer_shards
from tests.fakes.disks import small_disk
from tests.fakes.web import serving_store


@pytest.fixture
def large(store: Store) -> list[ShardRef]:
    return layer_shards(store, "large")


@pytest.fixture
def cache(store: Store, large: Sequence[ShardRef], tmp_path: Path) -> ShardCache:
    """With the layers of the largest variant."""
    return filled(ShardCache(tmp_path / "cache"), store, large)


def filled(cache: ShardCache, store: Store, shards: Sequence[ShardRef]) -> ShardCache:
    with serving_store(store.path) as server, RemoteStore(server.url) as remote:
        cache.bring(store.identity, shards, remote)
    return cache


def shard_file(folder: Path, shard: ShardRef) -> Path:
    (path,) = folder.rglob(f"{shard.id}.gguf")
    return path


def test_what_could_not_be_held_as_a_whole_is_not_held_at_all(
    cache: ShardCache, large: Sequence[ShardRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise StorageFailed("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(shard_cache, "_tensors", fails)
        with pytest.raises(StorageFailed):
            cache.hold(large)
    assert not [path for folder in tmp_path.rglob("leases") for path in folder.iterdir()]
    with cache.hold(large):
        assert [path for folder in tmp_path.rglob("leases") for path in folder.iterdir()]


def test_what_was_brought_is_not_hashed_when_it_is_held(
    cache: ShardCache, large: Sequence[ShardRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = {digest for shard in large for digest in shard_cache._hashed(shard_file(tmp_path, shard), shard)}

    def slow(*_: Any) -> Any:
        raise AssertionError("the coordinator waits")

    monkeypatch.setattr(shard_cache, "_hashed", slow)
    with cache.hold(large) as held:
        assert set(held.tensors) == hashed


def test_a_file_whose_header_is_damaged_costs_its_own_tensors_only(
    cache: ShardCache, large: Sequence[ShardRef], tmp_path: Path
) -> None:
    path = shard_file(tmp_path, large[0])
    damaged = b"XXXX" + path.read_bytes()[4:]
    path.unlink()
    path.write_bytes(damaged)
    for note in tmp_path.rglob("digests/*"):
        note.unlink()
    with cache.hold(large) as held:
        assert {found.path for found in held.tensors.values()} == {shard_file(tmp_path, shard) for shard in large[1:]}


def damage(slice_: Slice) -> None:
    """One byte of a tensor is another."""
    data = bytearray(slice_.path.read_bytes())
    data[slice_.offset + slice_.n_bytes // 2] ^= 1
    slice_.path.unlink()
    slice_.path.write_bytes(data)


def test_a_shard_that_is_damaged_is_removed_when_it_is_used_and_brought_anew(
    cache: ShardCache, store: Store, large: Sequence[ShardRef], tmp_path: Path
) -> None:
    with cache.hold(large) as held:
        digest, found = next(iter(held.tensors.items()))
        damage(found)
        expand = Expand(held.find, held.remove_damaged)
        with pytest.raises(RemoteInvalid, match="damaged"):
            list(expand(set_known_tensor(digest)))
        assert str(found.path) in held.damage
        assert held.find(digest) is None
        assert held.tensors
    assert not found.path.exists()
    assert not list(tmp_path.rglob(f"digests/{found.path.stem}.json"))
    with cache.hold(large) as held:
        assert held.find(digest) is None
    filled(cache, store, large)
    with cache.hold(large) as held:
        assert list(Expand(held.find)(set_known_tensor(digest)))


def set_known_tensor(digest: bytes) -> bytes:
    size = TENSOR_HEAD_BYTES + len(digest)
    return bytes([KNOWN_TENSOR]) + size.to_bytes(8, "little") + bytes(TENSOR_HEAD_BYTES) + digest


def test_notes_go_with_their_shards(store: Store, large: Sequence[ShardRef], tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", limit_bytes=1)
    for shard in large:  # each is the only one that stays
        filled(cache, store, [shard])
        assert [path.stem for path in tmp_path.rglob("cache/*/digests/*")] == [shard.id]


def test_a_note_that_cannot_be_read_is_made_again(cache: ShardCache, large: Sequence[ShardRef], tmp_path: Path) -> None:
    with cache.hold(large) as held:
        known = held.tensors
    for note in tmp_path.rglob("digests/*"):
        note.unlink()
        note.write_bytes(write_document("lamella.digests", {"shard": note.stem, "tensors": [["no digest", 0, 0]]}))
    with cache.hold(large) as held:
        assert held.tensors == known


def test_a_shard_that_goes_while_they_are_counted_is_not_counted(
    cache: ShardCache, large: Sequence[ShardRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Layout.shard_files

    def with_one_that_has_gone(layout: Layout) -> Any:
        yield from listed(layout)
        yield "0" * 64, layout.shard("0" * 64)

    monkeypatch.setattr(Layout, "shard_files", with_one_that_has_gone)
    assert cache.usage() == (sum(shard.n_bytes for shard in large), len(large))


def test_a_session_begins_where_the_cache_has_filled_the_disk(
    store: Store, large: Sequence[ShardRef], tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 16 << 20) as disk:
        cache = filled(ShardCache(disk / "cache"), store, large)
        with contextlib.suppress(OSError), (disk / "more").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with cache.hold(large) as held:
            assert {found.path for found in held.tensors.values()} == {shard_file(disk, shard) for shard in large}


def test_what_was_brought_is_there_though_nothing_can_be_removed_now(
    store: Store, large: Sequence[ShardRef], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(_: Store) -> Any:
        raise StoreBusy("somebody reads it who could not write a lease")

    monkeypatch.setattr(Store, "collect_garbage", busy)
    assert filled(ShardCache(tmp_path / "cache", limit_bytes=1), store, large).usage()[1] == len(large)
