"""Leases: what somebody relies on, and ``gc`` therefore leaves alone (docs/store-format.md, "Leases").

    with store.lease() as lease:
        shard = lease.recall(recipe_id)              # a shard that is there and stays there
        variant = lease.hold("int8")                 # a variant whose shards stay, even if rm takes the variant

A lease is a file in ``leases/`` that lists ids of shards and hashes of importance matrices, and is its owner's while
that process lives and holds its ``flock``.  Ids are added under the store's lock, shared; ``gc`` reads them holding it
alone.  So a shard is either in a lease before ``gc`` looks, or gone before its owner finds it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lamella.core.artifacts import ShardRef, Variant
from lamella.core.closing import Closing
from lamella.core.errors import ShardDamaged, StoreFormatError
from lamella.core.input_files import check_file
from lamella.store import locks
from lamella.store.files import IncomingFile, OwnedFile, create_owned, has_living_owner, storage_errors, sync_folder
from lamella.store.layout import Layout, check_sha256

if TYPE_CHECKING:
    from lamella.store.store import Store

HEADER = "lamella.lease 1"
"""First line of a lease: format and version.  Each further line is an id: of a shard, or of an importance matrix."""

_CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """A shard being written.  ``close()`` it, or leave its ``with`` block: what was not committed is removed."""

    label: str
    _file: IncomingFile
    _lease: Lease

    @property
    def n_bytes(self) -> int:
        return self._file.n_bytes

    @property
    def sha256(self) -> str:
        """Of everything written so far."""
        return self._file.sha256

    def write(self, data: bytes | memoryview) -> None:
        """Append.

        Raises:
            StorageFailed: the file system refused.
        """
        self._file.write(data)

    def commit(self, expected_id: str | None = None) -> ShardRef:
        """Flush the shard and give it its place under its hash; what stands there, damaged or not, is replaced.

        Args:
            expected_id: the hash that it must have.

        Raises:
            ShardDamaged: it has another; nothing was given a place.
            StorageFailed: the file system refused.
        """
        ref = ShardRef(self._file.sha256, self.label, self._file.n_bytes)
        if expected_id not in (None, ref.id):
            raise ShardDamaged(f"{self.label} came out as {ref.id}, not as {expected_id}; nothing was stored")
        self._file.flush()
        self._lease.place(self._file, ref.id)
        return ref

    def close(self) -> None:
        self._file.discard()


class Lease(Closing):
    """Shards that stay until ``close``; may be used from several threads.

    A reader's lease that cannot be written (a store that may only be read, a full disk) holds the store's lock instead,
    until ``close`` or ``settle``: nothing is collected meanwhile.
    """

    def __init__(self, store: Store, layout: Layout, *, reading: bool) -> None:
        """Use ``Store.lease``."""
        self._store, self._layout, self._reading = store, layout, reading
        self._path = layout.leases / uuid.uuid4().hex
        self._lock = threading.Lock()  # of the fields below
        self._fd: int | None = None
        self._held: set[str] = set()
        self._store_lock: contextlib.ExitStack | None = None
        with storage_errors(self._path, "write"), self._or_lock_the_store():
            layout.leases.mkdir(exist_ok=True)
            self._fd = create_owned(self._path, 0o644)  # whoever collects must be able to read it

    def protect(self, ids: Iterable[str]) -> None:
        """Keep these shards and importance matrices from now on, be they there already or still to come.

        Raises:
            StorageFailed: the lease cannot be written.
        """
        with locks.shared_lock(self._layout):
            self._add(ids)

    def hold(self, name: str) -> Variant:
        """The variant of that name, whose shards stay.

        Raises:
            UnknownVariant: there is none; lists those there are.
            StoreFormatError: its document is damaged or of a newer format.
            StorageFailed: the lease cannot be written.
        """
        with locks.shared_lock(self._layout):
            variant = self._store.variant(name)
            self._add(shard.id for shard in variant.shards)
        return variant

    def hold_everything(self) -> tuple[tuple[Variant, ...], dict[str, str]]:
        """All shards stay, and those that come to be of a variant; returns ``Store.readable_variants``."""
        with locks.shared_lock(self._layout):
            readable, reasons = self._store.readable_variants()
            self._add(shard_id for shard_id, _ in self._layout.shard_files())
            self._add(shard.id for variant in readable for shard in variant.shards)
        return readable, reasons

    def recall(self, recipe_id: str) -> ShardRef | None:
        """The shard that a recipe once made, if it is still there in its full size; from now on it stays.

        Raises:
            StorageFailed: the lease cannot be written.
        """
        with locks.shared_lock(self._layout):
            shard = self._store.recall(recipe_id)
            if shard is not None:
                self._add([shard.id])
        return shard

    def new_shard(self, label: str, needed_bytes: int) -> ShardWriter:
        """Begin a shard; once committed it stays.

        Raises:
            StorageFailed: the file system refused.
        """
        return ShardWriter(label, IncomingFile(self._layout.incoming, needed_bytes), self)

    def place(self, file: OwnedFile, shard_id: str) -> None:
        """Give a flushed file its place among the shards; the caller answers for its hash.

        Raises:
            StorageFailed: the file system refused.
        """
        target = self._layout.shard(shard_id)
        with locks.shared_lock(self._layout):
            self._add([shard_id])
            file.place(target)
            self._store.state.note_present(shard_id)
        sync_folder(target.parent)

    def settle(self) -> None:
        """What is open now needs no protection by the store's lock, where that stands in for a written lease."""
        with self._lock:
            self._unlock_the_store()

    def close(self) -> None:
        """Let go; later calls do nothing."""
        with self._lock:
            self._unlock_the_store()
            fd, self._fd = self._fd, None
            if fd is not None:
                with contextlib.suppress(OSError):  # a dead lease is gc's
                    self._path.unlink(missing_ok=True)
                os.close(fd)

    def _add(self, ids: Iterable[str]) -> None:
        """Note ids in the lease.  The caller holds the store's lock, which waits for nobody here."""
        with self._lock, storage_errors(self._path, "write"), self._or_lock_the_store():
            new = [i for i in dict.fromkeys(ids) if i not in self._held]
            if self._fd is None:
                self._lock_the_store()
            elif new:
                _append(self._fd, new)
            self._held.update(new)

    @contextlib.contextmanager
    def _or_lock_the_store(self) -> Iterator[None]:
        """What the file system refuses a reader, the store's lock does, held for longer than moments."""
        try:
            yield
        except OSError as error:
            if not self._reading or error.errno not in _CANNOT_WRITE:
                raise
            self._lock_the_store()

    def _lock_the_store(self) -> None:
        if self._store_lock is None:
            with contextlib.ExitStack() as stack:
                stack.enter_context(locks.shared_lock(self._layout))
                self._store_lock = stack.pop_all()

    def _unlock_the_store(self) -> None:
        stack, self._store_lock = self._store_lock, None
        if stack is not None:
            stack.close()


def _append(fd: int, ids: Iterable[str]) -> None:
    """Write whole lines, or none."""
    before = os.fstat(fd).st_size
    lines = [*ids] if before else [HEADER, *ids]
    data = "".join(f"{line}\n" for line in lines).encode()
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BaseException:
        os.ftruncate(fd, before)
        os.lseek(fd, before, os.SEEK_SET)
        raise


def leased_ids(layout: Layout) -> set[str]:
    """Ids in the leases of the living: all of them, if the caller holds the store's lock alone.

    Raises:
        StoreFormatError: a lease of another version, whose ids are not known.
    """
    found: set[str] = set()
    for path in layout.lease_files():
        if has_living_owner(path):
            found |= _read_lease(path)
    return found


def dead_leases(layout: Layout) -> list[Path]:
    """Leases of processes that ended without closing them."""
    return [path for path in layout.lease_files() if not has_living_owner(path)]


def _read_lease(path: Path) -> set[str]:
    with contextlib.suppress(FileNotFoundError):  # closed just now
        check_file(path)
        whole_lines = path.read_text("utf-8", "replace").rpartition("\n")[0]
        header, *ids = whole_lines.splitlines() or [HEADER]
        if header != HEADER:
            raise StoreFormatError(
                f"nothing was deleted, because {path} is in use and is no '{HEADER}' but {header[:40]!r}: another "
                "version of Lamella is at work; use that one, or try again when it is done"
            )
        return {check_sha256(found, f"{path}: id") for found in ids}
    return set()
