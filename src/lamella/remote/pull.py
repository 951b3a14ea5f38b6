"""``pull_variant``: a variant of a remote store becomes one of a local store; only what is missing travels.

    with RemoteStore("http://host:8090") as remote:
        report = pull_variant(remote, "int4", Path("model.store"))

In four steps: the manifest is read and checked; missing shards are fetched into part files, on several connections,
and each is verified as it completes; when all are there, the whole is checked against the store's structure; then
shards get their places, and the variant appears last.  Whatever ends this before the last step leaves a store as it
was, and part files that the next pull goes on from.  Where a shard came from is noted with it (``store.origins``).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from lamella.core.artifacts import ShardRef, Variant
from lamella.core.errors import RemoteInvalid, StorageFailed, UnknownVariant
from lamella.core.units import format_bytes
from lamella.remote.checking import check_header, check_structure
from lamella.remote.fetching import fetch_shard
from lamella.remote.headers import ShardHeader, read_header
from lamella.remote.remote_store import RemoteStore
from lamella.store.files import free_bytes
from lamella.store.founding import check_place_for_store
from lamella.store.keeping import TrimReport
from lamella.store.layout import Layout, check_variant_name
from lamella.store.leases import Lease
from lamella.store.parts import PartFile
from lamella.store.store import Store
from lamella.store.variants import variant_exists

DEFAULT_CONNECTIONS = 4


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """Where a pull or push stands.

    Attributes:
        done_bytes, total_bytes: of the shards that travel.
        n_done, n_shards: of the same shards.
    """

    done_bytes: int
    total_bytes: int
    n_done: int
    n_shards: int


OnTransfer = Callable[[TransferProgress], None]
"""Called from one thread at a time."""


@dataclass(frozen=True, slots=True)
class PullReport:
    """What a pull did.

    Attributes:
        n_shards: of the variant.
        n_fetched: shards that the store lacked.
        reused_bytes: of the shards that it had.
        resumed_bytes: of the fetched shards, what an earlier pull had left.
        moved_bytes: bytes of shards that came over the network, those included that had to come twice.
        seconds: from call to variant.
        trimmed: what went to keep the store's quota afterwards; None if it has none.
    """

    variant: Variant
    n_shards: int
    n_fetched: int
    reused_bytes: int
    resumed_bytes: int
    moved_bytes: int
    seconds: float
    trimmed: TrimReport | None = None


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A shard that is here, whole and verified, and not yet visible."""

    part: PartFile
    header: ShardHeader


def pull_variant(
    remote: RemoteStore,
    name: str,
    target: Path,
    *,
    local_name: str | None = None,
    replace: bool = False,
    n_connections: int = DEFAULT_CONNECTIONS,
    on_progress: OnTransfer = lambda _: None,
) -> PullReport:
    """Make a remote variant a variant of the store at ``target``, which is made if it does not exist.

    Args:
        local_name: name of the variant here; None: the same as there.
        replace: take the place of a variant of that name with other contents, once everything is there.

    Raises:
        StoreError: another model, or the name is taken by a variant with other contents.
        UnknownVariant: the remote store has no such variant.
        RemoteInvalid: a document, a shard or its header is not what it should be; nothing became visible.
        RemoteFailed: not reached, refused, or cut too often; what arrived stays for the next pull.
        StorageFailed: the file system refused.
    """
    started, moved_before = time.perf_counter(), remote.moved_bytes
    local_name = check_variant_name(local_name or name)
    store = _existing(target, remote)
    wanted = remote.variant(name)
    with contextlib.ExitStack() as held:
        if store is not None:
            lease = _protect(store, wanted, held)
            if not replace:
                _refuse_taken_name(store, local_name, wanted)
        else:
            held.callback(_remove_if_empty, target, target.exists())
        missing = _missing(store, wanted)
        _check_space(target, missing)
        fetched = _fetch_all(remote, wanted, missing, Layout(target).incoming, n_connections, on_progress, held)
        _check_whole(remote, wanted, target, fetched)
        if store is None:
            store = Store.create(target, remote.identity)
            lease = _protect(store, wanted, held)
        for found in fetched.values():
            found.part.flush()
        for shard_id in fetched:
            store.origins.note(shard_id, remote.url)  # first: what is there can be fetched again
        for shard_id, found in fetched.items():
            lease.place(found.part, shard_id)
        variant = store.add_variant(local_name, wanted.plan, wanted.shards, replace=replace)
    return PullReport(
        variant,
        len(wanted.shards),
        len(missing),
        _unique_bytes(wanted.shards) - _unique_bytes(missing),
        sum(found.part.resumed_bytes for found in fetched.values()),
        remote.moved_bytes - moved_before,
        time.perf_counter() - started,
    )


def _protect(store: Store, wanted: Variant, held: contextlib.ExitStack) -> Lease:
    """Keep the variant's shards from ``gc``, those that are there and those still to come."""
    lease = held.enter_context(store.lease())
    lease.protect(shard.id for shard in wanted.shards)
    return lease


def _existing(target: Path, remote: RemoteStore) -> Store | None:
    """The local store, if there is one; it is of the same model, and where there is none, one can be made."""
    if Layout(target).document.exists():
        store = Store.open(target)
        store.check_same_model(remote.identity)
        return store
    check_place_for_store(target)
    return None


def _refuse_taken_name(store: Store, name: str, wanted: Variant) -> None:
    """Say at once, not after an hour of fetching, that the name is taken by other contents."""
    with contextlib.suppress(UnknownVariant):
        found = store.variant(name)
        if [shard.id for shard in found.shards] != [shard.id for shard in wanted.shards]:
            raise variant_exists(store.path, found)


def _missing(store: Store | None, wanted: Variant) -> list[ShardRef]:
    """Shards that the store lacks, each once."""
    unique = {shard.id: shard for shard in wanted.shards}
    return [shard for shard in unique.values() if store is None or not store.has_shard(shard)]


def _check_space(target: Path, missing: Sequence[ShardRef]) -> None:
    incoming, free = Layout(target).incoming, free_bytes(target)
    there = [incoming / f"{shard.id}.part" for shard in missing]
    needed = _unique_bytes(missing) - sum(path.stat().st_size for path in there if path.exists())
    if needed > free:
        raise StorageFailed(
            f"cannot pull into {target}: {len(missing)} shards need {format_bytes(needed)}, "
            f"{format_bytes(free)} are free"
        )


def _unique_bytes(shards: Sequence[ShardRef]) -> int:
    return sum({shard.id: shard.n_bytes for shard in shards}.values())


def _fetch_all(
    remote: RemoteStore,
    wanted: Variant,
    missing: Sequence[ShardRef],
    incoming: Path,
    n_connections: int,
    on_progress: OnTransfer,
    held: contextlib.ExitStack,
) -> dict[str, _Fetched]:
    """The missing shards, each verified against its hash and the plan; by id, let go of at the end of ``held``.

    The first failure, Ctrl-C included, ends all connections, and ``remote`` can be used no more.
    """
    watch = Watch(_unique_bytes(missing), len(missing), on_progress)
    numbers = {shard.id: number for number, shard in enumerate(wanted.shards)}

    def fetch(shard: ShardRef) -> _Fetched:
        part = fetch_shard(remote, shard, incoming, watch.moved)
        held.callback(part.close)
        try:
            header = read_header(part.path, _described(shard))
            check_header(header, numbers[shard.id], wanted)
        except RemoteInvalid:
            part.discard()  # its bytes are what the other side meant; no use in resuming them
            raise
        watch.finished()
        return _Fetched(part, header)

    with ThreadPoolExecutor(max(1, n_connections)) as pool:
        futures = {pool.submit(fetch, shard): shard.id for shard in missing}
        try:
            return {futures[future]: future.result() for future in as_completed(futures)}
        except BaseException:
            remote.web.stop()
            pool.shutdown(cancel_futures=True)
            raise


def _check_whole(remote: RemoteStore, wanted: Variant, target: Path, fetched: Mapping[str, _Fetched]) -> None:
    """The headers of all shards, those that the store had included, add up to the remote store's structure."""
    layout, headers = Layout(target), []
    for number, shard in enumerate(wanted.shards):
        if shard.id in fetched:
            headers.append(fetched[shard.id].header)
        else:
            headers.append(read_header(layout.shard(shard.id), _described(shard)))
            check_header(headers[-1], number, wanted)
    first = wanted.shards[0].id
    metadata_file = fetched[first].part.path if first in fetched else layout.shard(first)
    check_structure(remote.identity, metadata_file, headers)


def _described(shard: ShardRef) -> str:
    return f"shard {shard.id[:12]} ({shard.label})"


def _remove_if_empty(target: Path, had_folder: bool) -> None:
    """A pull that was refused leaves no folder behind that it made; parts to resume from stay."""
    if Layout(target).document.exists():
        return
    with contextlib.suppress(OSError):
        Layout(target).incoming.rmdir()
        if not had_folder:
            target.rmdir()


class Watch:
    """Adds up what several threads move, and tells."""

    def __init__(self, total_bytes: int, n_shards: int, on_progress: OnTransfer) -> None:
        self._lock = threading.Lock()
        self._done_bytes, self._total_bytes = 0, total_bytes
        self._n_done, self._n_shards = 0, n_shards
        self._on_progress = on_progress

    def moved(self, n_bytes: int) -> None:
        self._tell(n_bytes, 0)

    def finished(self) -> None:
        self._tell(0, 1)

    def _tell(self, n_bytes: int, n_shards: int) -> None:
        with self._lock:
            self._done_bytes += n_bytes
            self._n_done += n_shards
            self._on_progress(TransferProgress(self._done_bytes, self._total_bytes, self._n_done, self._n_shards))
