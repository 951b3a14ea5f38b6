"""Shards from elsewhere: another store in a folder, or whatever else can hand over bytes for a hash.

    fetch(lease, shard, FolderSource(Store.open(Path("/mnt/backup/smollm2.store"))))

What arrives is hashed on its way into ``incoming/`` and gets its place only if the hash is the shard's name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from lamella.core.artifacts import ShardRef
from lamella.core.errors import ShardDamaged, StoreError
from lamella.store.files import pieces
from lamella.store.leases import Lease
from lamella.store.store import Store


class ShardSource(Protocol):
    """Somewhere that shards can be had from."""

    @property
    def name(self) -> str:
        """What people call it: a path or an address."""
        ...

    def check(self, shard_id: str, n_bytes: int) -> None:
        """Ask whether the shard is to be had there; its bytes are not looked at.

        Raises:
            StoreError: it is not, or has another size.
            LamellaError: nobody can be asked.
        """
        ...

    def fetch(self, shard_id: str, n_bytes: int) -> Iterator[bytes | memoryview]:
        """The shard's bytes in order; nobody needs to trust them.  A piece may be overwritten by the next.

        Raises:
            LamellaError: it has no such shard, or cannot be reached; raised before or between pieces.
        """
        ...


Reach = Callable[[str], AbstractContextManager[ShardSource]]
"""Opens the source that a folder or URL names, or raises ``LamellaError``; ``api.reach`` is one."""


class FolderSource:
    """Another store of this machine."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def name(self) -> str:
        return str(self._store.path)

    def check(self, shard_id: str, n_bytes: int) -> None:
        """See whether the shard is there.

        Raises:
            StoreError: it is not, or has another size.
        """
        self._path(shard_id, n_bytes)

    def fetch(self, shard_id: str, n_bytes: int) -> Iterator[memoryview]:
        """The shard's bytes.

        Raises:
            StoreError: it is not there, in its full size.
            StorageFailed: it cannot be read.
        """
        yield from pieces(self._path(shard_id, n_bytes))

    def _path(self, shard_id: str, n_bytes: int) -> Path:
        path = self._store.shard_path(shard_id)
        if not path.exists():
            raise StoreError(f"{self.name} has no shard {shard_id}")
        if (found := path.stat().st_size) != n_bytes:
            raise StoreError(f"{self.name}: shard {shard_id} has {found} bytes instead of {n_bytes}")
        return path


def fetch(lease: Lease, shard: ShardRef, source: ShardSource) -> None:
    """Take a shard over into the store of the lease, under which it stays.

    Raises:
        ShardDamaged: other bytes than it is named for arrived, or more of them; nothing of them is kept.
        LamellaError: the source does not have it.
        StorageFailed: the file system refused.
    """
    with contextlib.closing(lease.new_shard(shard.label, shard.n_bytes)) as writer:
        for piece in source.fetch(shard.id, shard.n_bytes):
            if writer.n_bytes + len(piece) > shard.n_bytes:
                raise ShardDamaged(f"{source.name} sent more than the {shard.n_bytes} bytes of shard {shard.id}")
            writer.write(piece)
        writer.commit(shard.id)
