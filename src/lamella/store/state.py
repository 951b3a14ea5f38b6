"""What a store notes about keeping its shards: quota, pins, what was dropped, when variants were used last.

    store.state.set_quota(2 * GIB)
    store.state.pin("large")
    store.state.is_dropped(shard_id)

Each fact is a file of its own, written whole or not at all, so writers of different facts need no lock.  Nothing here
decides (``keeping``) or deletes shards (``gc``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lamella.core.artifacts import ShardRef
from lamella.core.errors import StoreFormatError
from lamella.store.documents import read_note, write_document
from lamella.store.files import storage_errors, stored_bytes, write_atomically
from lamella.store.layout import Layout

QUOTA_FORMAT, PIN_FORMAT, DROPPED_FORMAT = "lamella.quota", "lamella.pin", "lamella.dropped"


@dataclass(frozen=True, slots=True)
class _Quota:
    quota_bytes: int


@dataclass(frozen=True, slots=True)
class _Pin:
    variant: str


@dataclass(frozen=True, slots=True)
class _Dropped:
    shard: ShardRef


class State:
    """The facts that a store notes.  Holds no file open."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    # quota

    def quota_bytes(self) -> int | None:
        """What all files of the store may take together; None for no limit.

        Raises:
            StoreFormatError: the note cannot be read; names it and the cure.
        """
        path, cure = self._layout.quota, f"lamella store quota {self._layout.root} none"
        found = read_note(path, QUOTA_FORMAT, _Quota, cure)
        if found is not None and found.quota_bytes <= 0:
            raise StoreFormatError(
                f"{path} allows {found.quota_bytes} bytes, which is no quota; to mend it, run: {cure}"
            )
        return found.quota_bytes if found else None

    def set_quota(self, quota_bytes: int | None) -> None:
        """Note a quota; None forgets it.  Nothing is dropped by this.

        Raises:
            StorageFailed: the file system refused.
        """
        if quota_bytes is None:
            self._forget(self._layout.quota)
        else:
            self._write(self._layout.quota, QUOTA_FORMAT, _Quota(quota_bytes))

    def stored_bytes(self) -> int:
        """What all files of the store take, links not followed."""
        with storage_errors(self._layout.root, "read"):
            return stored_bytes(self._layout.root)

    # pins

    def pinned(self) -> frozenset[str]:
        """Names of the variants whose shards are never dropped.

        Raises:
            StoreFormatError: a pin cannot be read; names it and the cure.
        """
        return frozenset(name for name, path in self._layout.pin_files() if self._read_pin(name, path))

    def pin(self, variant: str) -> None:
        """Never drop this variant's shards.

        Raises:
            StorageFailed: the file system refused.
        """
        self._write(self._layout.pin(variant), PIN_FORMAT, _Pin(variant))

    def unpin(self, variant: str) -> None:
        """Its shards may be dropped again."""
        self._forget(self._layout.pin(variant))

    # dropped shards

    def is_dropped(self, shard_id: str) -> bool:
        """Whether the shard was removed on purpose and has not come back; one that cannot be told was not."""
        return not self._layout.shard(shard_id).exists() and self._read_dropped_or_none(shard_id) is not None

    def dropped(self) -> frozenset[str]:
        """Ids of all such shards."""
        return frozenset(shard_id for shard_id, _ in self._layout.dropped_files() if self.is_dropped(shard_id))

    def note_dropped(self, shard: ShardRef) -> None:
        """Note it before the shard is removed, so that a crash in between leaves a shard and not a gap."""
        self._write(self._layout.dropped(shard.id), DROPPED_FORMAT, _Dropped(shard))

    def note_present(self, shard_id: str) -> None:
        """The shard is there again, or nobody needs it any more."""
        self._forget(self._layout.dropped(shard_id))

    def forget_returned(self) -> None:
        """Remove what is noted of dropped shards that are there, whoever put them there."""
        for shard_id, _ in self._layout.dropped_files():
            if self._layout.shard(shard_id).exists():
                self.note_present(shard_id)

    # use

    def note_use(self, variant: str) -> None:
        """The variant is being used now.  A store that may only be read notes nothing."""
        path = self._layout.use(variant)
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            path.touch()

    def last_used(self, variant: str) -> float:
        """When the variant was loaded or made, whichever is later: seconds since 1970; 0 if neither is known."""
        paths = (self._layout.use(variant), self._layout.variant_document(variant))
        return max(map(_modified, paths))

    # all of it

    def unreadable(self) -> tuple[str, ...]:
        """Why facts cannot be read, each with its file and the cure."""
        return tuple(reason for read in self._readers() if (reason := _complaint(read)))

    def forget_variant(self, name: str) -> None:
        """The variant was removed."""
        for path in (self._layout.pin(name), self._layout.use(name)):
            self._forget(path)

    def forget_all_but(self, variants: Collection[str], shards: Collection[str]) -> None:
        """Remove what is noted of other variants and shards."""
        for name, _ in [*self._layout.pin_files(), *self._layout.use_files()]:
            if name not in variants:
                self.forget_variant(name)
        for shard_id, _ in self._layout.dropped_files():
            if shard_id not in shards:
                self.note_present(shard_id)

    def _readers(self) -> Iterator[Callable[[], object]]:
        yield self.quota_bytes
        yield from (lambda n=name, p=path: self._read_pin(n, p) for name, path in self._layout.pin_files())
        yield from (lambda i=shard_id: self._read_dropped(i) for shard_id, _ in self._layout.dropped_files())

    def _read_pin(self, variant: str, path: Path) -> _Pin | None:
        cure = f"lamella store unpin {self._layout.root} {variant}"
        found = read_note(path, PIN_FORMAT, _Pin, cure)
        if found is not None and found.variant != variant:
            raise StoreFormatError(f"{path} is about variant {found.variant!r}; to mend it, run: {cure}")
        return found

    def _read_dropped(self, shard_id: str) -> _Dropped | None:
        path, cure = self._layout.dropped(shard_id), f"lamella store repair {self._layout.root}"
        found = read_note(path, DROPPED_FORMAT, _Dropped, cure)
        if found is not None and found.shard.id != shard_id:
            raise StoreFormatError(f"{path} is about shard {found.shard.id}; to mend it, run: {cure}")
        return found

    def _read_dropped_or_none(self, shard_id: str) -> _Dropped | None:
        try:
            return self._read_dropped(shard_id)
        except StoreFormatError:
            return None

    def _write(self, path: Path, kind: str, fields: _Quota | _Pin | _Dropped) -> None:
        write_atomically(self._layout.incoming, path, write_document(kind, asdict(fields)))

    def _forget(self, path: Path) -> None:
        with storage_errors(path, "remove"):
            path.unlink(missing_ok=True)


def _complaint(read: Callable[[], object]) -> str:
    try:
        read()
    except StoreFormatError as error:
        return str(error)
    return ""


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
