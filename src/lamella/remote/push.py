"""A variant goes where it is wanted: to a web server that takes ``PUT``, or to another store's folder.

    report = push_to_web(Store.open(Path("model.store")), "int4", Web("https://files.example/model"))

Over HTTP: ``store.json`` first where there is none, then the shards that a ``HEAD`` does not find in their full size,
and ``variant.json`` last, so that whoever pulls meanwhile sees the variant whole or not at all.  nginx
(``dav_methods PUT``), WebDAV servers (folders are made with ``MKCOL`` where the server asks for it) and gateways to
object stores take that.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from lamella.core.artifacts import ShardRef, Variant, to_json
from lamella.core.errors import RemoteFailed, ShardDamaged, StorageFailed, StoreError, UnknownVariant, VariantExists
from lamella.core.model import ModelIdentity
from lamella.core.units import format_bytes
from lamella.remote.manifest import MOST_STORE_BYTES, MOST_VARIANT_BYTES, parse_identity, parse_variant
from lamella.remote.pull import DEFAULT_CONNECTIONS, OnTransfer, Watch
from lamella.remote.remote_store import shard_path, variant_path
from lamella.remote.web import Content, Web
from lamella.store.files import free_bytes, pieces
from lamella.store.founding import store_document
from lamella.store.leases import Lease
from lamella.store.store import Store
from lamella.store.variants import variant_exists
from lamella.store.verify import describe, find_damage, users_of

PRECONDITION_FAILED = 412


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did.

    Attributes:
        n_shards: of the variant.
        n_sent: shards that the other side lacked.
        sent_bytes: of those.
        seconds: from call to variant.
    """

    variant: Variant
    n_shards: int
    n_sent: int
    sent_bytes: int
    seconds: float


def push_to_web(
    store: Store,
    name: str,
    web: Web,
    *,
    n_connections: int = DEFAULT_CONNECTIONS,
    on_progress: OnTransfer = lambda _: None,
) -> PushReport:
    """Send what the store behind a URL lacks of a variant.

    Raises:
        UnknownVariant: this store has no such variant.
        ShardDamaged: a shard here is damaged; it is not sent.
        StoreError: the other store holds another model, or another variant of that name.
        RemoteFailed: not reached, refused, or cut too often; shards that arrived stay there.
    """
    started = time.perf_counter()
    with store.lease(reading=True) as held:
        variant = held.hold(name)
        paths = dict(zip((shard.id for shard in variant.shards), store.ready_paths(variant), strict=True))
        _agree_on_model(web, store.identity)
        is_there = _has_same_variant(web, variant, store.identity)
        unique = list({shard.id: shard for shard in variant.shards}.values())
        missing = [shard for shard in unique if not _has_shard(web, shard)]
        _check_hashes(store, missing, paths)
        _send_all(web, missing, paths, n_connections, on_progress)
        if not is_there:
            _add_variant(web, variant, store.identity)
    return _report(variant, missing, started)


def push_to_folder(store: Store, name: str, folder: Path, *, on_progress: OnTransfer = lambda _: None) -> PushReport:
    """Copy what the store in a folder (of another disk, or mounted) lacks of a variant; it is made if there is none.

    Raises:
        UnknownVariant, ShardDamaged, StoreError: see ``push_to_web``.
        StorageFailed: the file system refused.
    """
    started = time.perf_counter()
    with store.lease(reading=True) as held:
        variant = held.hold(name)
        paths = dict(zip((shard.id for shard in variant.shards), store.ready_paths(variant), strict=True))
        target = Store.create(folder, store.identity)
        with target.lease() as lease:
            lease.protect(shard.id for shard in variant.shards)
            with contextlib.suppress(UnknownVariant):
                if _ids(target.variant(name)) != _ids(variant):
                    raise variant_exists(target.path, target.variant(name))
            unique = {shard.id: shard for shard in variant.shards}.values()
            missing = [shard for shard in unique if not target.has_shard(shard)]
            _check_space(target, missing)
            watch = Watch(sum(shard.n_bytes for shard in missing), len(missing), on_progress)
            for shard in missing:
                _copy(lease, shard, paths[shard.id], watch)
            target.add_variant(name, variant.plan, variant.shards)
    return _report(variant, missing, started)


def _report(variant: Variant, missing: list[ShardRef], started: float) -> PushReport:
    sent_bytes = sum(shard.n_bytes for shard in missing)
    return PushReport(variant, len(variant.shards), len(missing), sent_bytes, time.perf_counter() - started)


def _ids(variant: Variant) -> list[str]:
    return [shard.id for shard in variant.shards]


# to a folder


def _check_space(target: Store, missing: list[ShardRef]) -> None:
    needed, free = sum(shard.n_bytes for shard in missing), free_bytes(target.path)
    if needed > free:
        raise StorageFailed(
            f"cannot push to {target.path}: {len(missing)} shards need {format_bytes(needed)}, "
            f"{format_bytes(free)} are free"
        )


def _copy(lease: Lease, shard: ShardRef, path: Path, watch: Watch) -> None:
    with contextlib.closing(lease.new_shard(shard.label, shard.n_bytes)) as writer:
        for piece in pieces(path):
            writer.write(piece)
            watch.moved(len(piece))
        if writer.sha256 != shard.id:
            raise ShardDamaged(f"shard {shard.id} ({shard.label}) is damaged: its SHA-256 is {writer.sha256}")
        writer.commit()
    watch.finished()


# to a web server


def _agree_on_model(web: Web, mine: ModelIdentity) -> None:
    """The other store is of the same model; where there is none, it is founded."""
    if not _is_same_model(web, mine):
        _put(web, "store.json", store_document(mine), {"If-None-Match": "*"})
        if not _is_same_model(web, mine):
            raise RemoteFailed(f"{web.url} took store.json, and does not give it back")


def _is_same_model(web: Web, mine: ModelIdentity) -> bool:
    """False if there is no store yet.

    Raises:
        StoreError: it is of another model.
    """
    data = web.body("store.json", MOST_STORE_BYTES)
    if data is None:
        return False
    theirs = parse_identity(data, f"{web.url}/store.json")
    if (theirs.structure, theirs.weights) != (mine.structure, mine.weights):
        raise StoreError(
            f"{web.url} holds {theirs.name} ({theirs.architecture}), not {mine.name}. One store, one model"
        )
    return True


def _has_same_variant(web: Web, variant: Variant, identity: ModelIdentity) -> bool:
    path = variant_path(variant.name)
    data = web.body(path, MOST_VARIANT_BYTES)
    if data is None:
        return False
    if _ids(parse_variant(data, variant.name, identity, f"{web.url}/{path}")) != _ids(variant):
        raise VariantExists(f"{web.url} has a variant '{variant.name}' with other contents: push under another name")
    return True


def _add_variant(web: Web, variant: Variant, identity: ModelIdentity) -> None:
    """Give the other store a variant of shards that it has, and replace none that came there meanwhile.

    Where the server knows no ``If-None-Match``, a moment is left in which one could come.

    Raises:
        VariantExists: another one has the name.
    """
    if _has_same_variant(web, variant, identity):
        return
    path = variant_path(variant.name)
    status = _put(web, path, to_json(variant), {"If-None-Match": "*"})
    if status == PRECONDITION_FAILED and not _has_same_variant(web, variant, identity):
        raise RemoteFailed(f"PUT {web.url}/{path}: {status}, though nothing is there")


def _has_shard(web: Web, shard: ShardRef) -> bool:
    """Whether the server has the shard in its full size; one that cannot say is sent it again."""

    def ask() -> bool:
        with web.request("HEAD", shard_path(shard.id)) as response:
            if response.status_code in (404, 405, 501):
                return False
            web.expect(response, 200)
            return bool(response.headers.get("Content-Length") == str(shard.n_bytes))

    return web.patiently(ask)


def _check_hashes(store: Store, shards: list[ShardRef], paths: dict[str, Path]) -> None:
    damage = find_damage({shard.id: paths[shard.id] for shard in shards})
    for shard in shards:
        if shard.id in damage:
            users = users_of(shard.id, store.readable_variants()[0])
            raise ShardDamaged(describe(shard, users, damage[shard.id]))


def _send_all(
    web: Web, shards: list[ShardRef], paths: dict[str, Path], n_connections: int, on_progress: OnTransfer
) -> None:
    """The first failure, Ctrl-C included, ends all connections."""
    watch = Watch(sum(shard.n_bytes for shard in shards), len(shards), on_progress)

    def send(shard: ShardRef) -> None:
        body = _CountedFile(paths[shard.id], watch)
        _put(web, shard_path(shard.id), body.from_start, {"Content-Length": str(shard.n_bytes)})
        watch.finished()

    with ThreadPoolExecutor(max(1, n_connections)) as pool:
        futures = [pool.submit(send, shard) for shard in shards]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            web.stop()
            pool.shutdown(cancel_futures=True)
            raise


class _CountedFile:
    """A file as a request's body; sent again, its first sending is taken back from the count."""

    def __init__(self, path: Path, watch: Watch) -> None:
        self._path, self._watch, self._n_sent = path, watch, 0

    def from_start(self) -> Iterator[bytes]:
        self._watch.moved(-self._n_sent)
        self._n_sent = 0
        for piece in pieces(self._path):
            yield bytes(piece)
            self._n_sent += len(piece)
            self._watch.moved(len(piece))


def _put(web: Web, path: str, content: Content, headers: dict[str, str] | None = None) -> int:
    """Send a file; returns the status.  412 (somebody else was first) is left to the caller to look into."""

    def attempt() -> int:
        with web.request("PUT", path, headers, content) as response:
            if response.status_code != 409:
                web.expect(response, 200, 201, 202, 204, PRECONDITION_FAILED)
            return response.status_code

    status = web.patiently(attempt)
    if status == 409:  # WebDAV: no such folder (RFC 4918, 9.7.1)
        _make_folders(web, path)
        status = web.patiently(attempt)
        if status == 409:
            raise RemoteFailed(f"PUT {web.url}/{path}: 409, even after its folders were made with MKCOL")
    return status


def _make_folders(web: Web, path: str) -> None:
    for folder in reversed(PurePosixPath(path).parents):
        web.patiently(partial(_make_folder, web, "" if str(folder) == "." else f"{folder}/"))


def _make_folder(web: Web, path: str) -> None:
    with web.request("MKCOL", path) as response:
        web.expect(response, 200, 201, 405)  # 405: it is there already
