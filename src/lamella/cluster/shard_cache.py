"""The shards that a node was given: a store for each model, without variants, and an index of the tensors in them.

n_fetched, moved = cache.bring(identity, shards, remote)         # what is missing, through ``remote``
with cache.hold(shards) as held:                                # and stays
    held.find(sha256_of_a_tensor)
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lamella.cluster.rpc_stream import LEAST_KNOWN_BYTES, Slice
from lamella.core.artifacts import ShardRef
from lamella.core.closing import Closing
from lamella.core.errors import InvalidRequest, LamellaError, RemoteInvalid, StorageFailed, StoreBusy
from lamella.core.model import ModelIdentity
from lamella.llama.gguf import padding
from lamella.remote.fetching import fetch_shard
from lamella.remote.headers import read_header
from lamella.remote.remote_store import RemoteStore
from lamella.store.documents import read_note, write_document
from lamella.store.files import storage_errors, write_atomically
from lamella.store.layout import Layout, check_sha256
from lamella.store.store import Store

DIGESTS_FORMAT = "lamella.digests"


@dataclass(frozen=True, slots=True)
class _Digests:
    """What is noted of a shard: SHA-256, offset and size of each of its tensors that need not travel."""

    shard: str
    tensors: list[tuple[str, int, int]]


@dataclass(slots=True)
class HeldShards(Closing):
    """Shards that stay until ``close``.

    Attributes:
        tensors: SHA-256 of a tensor's bytes -> where they are.
        damage: what was found otherwise than it was noted; "" as long as nothing was.
    """

    tensors: dict[bytes, Slice]
    _leases: contextlib.ExitStack
    damage: str = ""

    def find(self, digest: bytes) -> Slice | None:
        """Where these bytes are; None if no shard has them."""
        return self.tensors.get(digest)

    def remove_damaged(self, digest: bytes, why: str) -> None:
        """The bytes are not where they were noted: that shard goes, with its note, and is fetched anew."""
        found = self.tensors.get(digest)
        if found is None:
            return
        self.damage = why
        self.tensors = {other: at for other, at in self.tensors.items() if at.path != found.path}
        for path in (Layout(found.path.parents[2]).digests(found.path.stem), found.path):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        self._leases.close()


class ShardCache:
    """Owns a folder of stores.  Its methods take as long as disk and network do: call them in a thread."""

    def __init__(self, path: Path, limit_bytes: int = 0) -> None:
        """Use a folder, which may not exist yet.

        Args:
            limit_bytes: shards that nobody holds go where there are more; 0 keeps all.
        """
        self._path, self._limit_bytes = path, limit_bytes

    def bring(self, model: ModelIdentity, shards: Sequence[ShardRef], remote: RemoteStore) -> tuple[int, int]:
        """Have shards of a model; returns how many were missing, and the bytes that travelled for them.

        Their tensors are hashed here, where nobody waits for an answer within seconds, and not when they are held.

        Raises:
            RemoteFailed: not reached, refused, or not what it should be; what arrived stays for the next time.
            StorageFailed: the file system refused.
        """
        store = self._store(model)
        before = remote.moved_bytes
        with store.lease() as lease:
            lease.protect(shard.id for shard in shards)
            missing = [shard for shard in dict.fromkeys(shards) if not store.has_shard(shard)]
            for shard in missing:
                with contextlib.closing(fetch_shard(remote, shard, Layout(store.path).incoming)) as part:
                    part.flush()
                    lease.place(part, shard.id)
            for shard in dict.fromkeys(shards):
                with contextlib.suppress(RemoteInvalid):  # its header: see ``hold``
                    _tensors(store, shard)
            self._keep_below_the_limit()
        return len(missing), remote.moved_bytes - before

    def hold(self, shards: Sequence[ShardRef]) -> HeldShards:
        """Keep those of some shards that are here; one whose header is damaged has no tensor that anybody could find.

        A full disk is no reason against it: the cache itself may have filled it.

        Raises:
            StorageFailed: the file system refused; nothing is kept then.
        """
        with contextlib.ExitStack() as leases:
            tensors: dict[bytes, Slice] = {}
            for store in self._stores():
                lease = leases.enter_context(store.lease(reading=True))
                lease.protect(shard.id for shard in shards)
                for shard in shards:
                    if store.has_shard(shard):
                        with contextlib.suppress(RemoteInvalid):
                            tensors.update(_tensors(store, shard))
            return HeldShards(tensors, leases.pop_all())

    def usage(self) -> tuple[int, int]:
        """Bytes and number of the shards that are here; one may go meanwhile, to keep the limit."""
        sizes = []
        for store in self._stores():
            for _, path in Layout(store.path).shard_files():
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(path.stat().st_size)
        return sum(sizes), len(sizes)

    def _store(self, model: ModelIdentity) -> Store:
        if not model.weights:
            raise InvalidRequest(f"{model.name} is a specification without weights")
        name = hashlib.sha256(f"{check_sha256(model.structure, 'structure')} {model.weights}".encode()).hexdigest()[:16]
        path = self._path / name
        return Store.open(path) if Layout(path).document.exists() else Store.create(path, model)

    def _stores(self) -> list[Store]:
        if not self._path.is_dir():
            return []
        return [Store.open(path) for path in sorted(self._path.iterdir()) if Layout(path).document.exists()]

    def _keep_below_the_limit(self) -> None:
        if self._limit_bytes and self.usage()[0] > self._limit_bytes:
            for store in self._stores():
                with contextlib.suppress(StoreBusy):  # a session could not write its lease: next time
                    store.collect_garbage()
                _forget_removed(Layout(store.path))


def _forget_removed(layout: Layout) -> None:
    """Notes of shards that are gone."""
    for shard_id, note in layout.digest_files():
        if not layout.shard(shard_id).exists():
            with storage_errors(note, "remove"):
                note.unlink(missing_ok=True)


def _tensors(store: Store, shard: ShardRef) -> dict[bytes, Slice]:
    """The tensors of a shard by their digest; hashed once, and noted beside the shards."""
    layout = Layout(store.path)
    note, path = layout.digests(shard.id), layout.shard(shard.id)
    with contextlib.suppress(LamellaError, ValueError):  # a cache of a cache: what cannot be read is made again
        noted = read_note(note, DIGESTS_FORMAT, _Digests, f"rm {note}")
        if noted is not None and noted.shard == shard.id:
            return {bytes.fromhex(digest): Slice(path, offset, n_bytes) for digest, offset, n_bytes in noted.tensors}
    found = _hashed(path, shard)
    tensors = [(digest.hex(), place.offset, place.n_bytes) for digest, place in found.items()]
    with contextlib.suppress(StorageFailed):
        document = write_document(DIGESTS_FORMAT, asdict(_Digests(shard.id, tensors)))
        write_atomically(layout.incoming, note, document, durable=False)
    return found


def _hashed(path: Path, shard: ShardRef) -> dict[bytes, Slice]:
    specs = read_header(path, f"shard {shard.id[:12]} ({shard.label})").tensors
    with storage_errors(path, "read"):
        at = path.stat().st_size - sum(spec.n_bytes + padding(spec.n_bytes) for spec in specs)
    found = {}
    for spec in specs:
        place = Slice(path, at, spec.n_bytes)
        at += spec.n_bytes + padding(spec.n_bytes)
        if spec.n_bytes >= LEAST_KNOWN_BYTES:
            digest = hashlib.sha256()
            for piece in place.pieces():
                digest.update(piece)
            found[digest.digest()] = place
    return found
