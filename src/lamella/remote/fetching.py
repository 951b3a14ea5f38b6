"""One shard, from a remote store into a part file, until every byte is there and the hash is right.

with store.lease() as lease, fetch_shard(remote, shard, Layout(store.path).incoming) as part:
    part.flush()
    lease.place(part, shard.id)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lamella.core.artifacts import ShardRef
from lamella.core.errors import RemoteInvalid
from lamella.remote.remote_store import RemoteChanged, RemoteStore
from lamella.store.parts import PartFile

OnBytes = Callable[[int], None]
"""Called with the number of bytes just written; a negative one takes bytes back that have to be fetched again."""

_MOST_RESTARTS = 3


def fetch_shard(remote: RemoteStore, shard: ShardRef, incoming: Path, on_bytes: OnBytes = lambda _: None) -> PartFile:
    """The whole shard, its SHA-256 verified, not yet visible: the caller commits, discards or closes the part.

    What an earlier attempt left in ``incoming`` is hashed and not fetched again.  Should the whole then have the wrong
    hash, that beginning is suspected first: it is thrown away and the shard fetched from its first byte.

    Raises:
        RemoteInvalid: the server's bytes do not hash to the shard's id; none of them stays.
        RemoteFailed: not reached or refused; what arrived stays for the next attempt.
        StorageFailed: the file system refused.
    """
    part = PartFile(incoming, shard.id)
    try:
        _fill(remote, shard, part, on_bytes)
    except BaseException:
        part.close()
        raise
    return part


def _fill(remote: RemoteStore, shard: ShardRef, part: PartFile, on_bytes: OnBytes) -> None:
    if part.n_bytes > shard.n_bytes:
        part.restart()
    on_bytes(part.n_bytes)
    for n_restarts in range(_MOST_RESTARTS + 1):
        resumed = part.n_bytes > 0
        try:
            for data in remote.fetch(shard.id, shard.n_bytes, part.n_bytes):
                part.write(data)
                on_bytes(len(data))
        except RemoteChanged:
            if n_restarts == _MOST_RESTARTS:
                raise
        else:
            if part.sha256 == shard.id:
                return
            if not resumed:
                found = part.sha256
                part.discard()
                raise RemoteInvalid(
                    f"{remote.url} sent wrong bytes for shard {shard.id} ({shard.label}): their SHA-256 is {found}"
                )
        on_bytes(-part.n_bytes)
        part.restart()
