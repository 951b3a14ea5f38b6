"""The shards that a node keeps: what sessions hold, what is damaged, what goes meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lamella.cluster import shard_cache
from lamella.cluster.shard_cache import ShardCache
from lamella.core.artifacts import ShardRef
from lamella.core.errors import StorageFailed
from lamella.remote.remote_store import RemoteStore
from lamella.store.layout import Layout
from lamella.store.store import Store
from tests.cluster.test_node import layer_shards
from tests.fakes.web import serving_store


@pytest.fixture
def large(store: Store) -> list[ShardRef]:
    return layer_shards(store, "large")


@pytest.fixture
def cache(store: Store, large: Sequence[ShardRef], tmp_path: Path) -> ShardCache:
    """With the layers of the largest variant."""
    found = ShardCache(tmp_path / "cache")
    with serving_store(store.path) as server, RemoteStore(server.url) as remote:
        found.bring(store.identity, large, remote)
    return found


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


def test_a_file_whose_header_is_damaged_costs_its_own_tensors_only(
    cache: ShardCache, large: Sequence[ShardRef], tmp_path: Path
) -> None:
    path = shard_file(tmp_path, large[0])
    damaged = b"XXXX" + path.read_bytes()[4:]
    path.unlink()
    path.write_bytes(damaged)
    with cache.hold(large) as held:
        assert {found.path for found in held.tensors.values()} == {shard_file(tmp_path, shard) for shard in large[1:]}


def test_a_shard_that_goes_while_they_are_counted_is_not_counted(
    cache: ShardCache, large: Sequence[ShardRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Layout.shard_files

    def with_one_that_has_gone(layout: Layout) -> Any:
        yield from listed(layout)
        yield "0" * 64, layout.shard("0" * 64)

    monkeypatch.setattr(Layout, "shard_files", with_one_that_has_gone)
    assert cache.usage() == (sum(shard.n_bytes for shard in large), len(large))
