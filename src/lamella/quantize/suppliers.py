"""The remote stores that shards were pulled from (``store.origins``), asked for them again.

    with Suppliers(store, api.reach) as suppliers:
        suppliers.obstacle(shard)             # "" if it could be fetched now
        suppliers.fetch(lease, shard)

Each is connected to once, when it is first needed; one that could not be reached is not tried again.  No token goes to
them: none is stored, and one that was meant for another server must not get to a URL that merely stands in a file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lamella.core.artifacts import ShardRef
from lamella.core.closing import Closing
from lamella.core.errors import CannotRebuild, LamellaError, StorageFailed, StoreError
from lamella.quantize.making import BuildStopped
from lamella.store.fetching import Reach, ShardSource, fetch
from lamella.store.leases import Lease
from lamella.store.store import Store

NOT_PULLED = "it was not pulled"


class Suppliers(Closing):
    """What is known of a store's origins while one command runs.  For one thread."""

    def __init__(self, store: Store, reach: Reach | None) -> None:
        """Nothing is asked yet.

        Args:
            reach: opens the store behind a URL; None: nobody is asked.
        """
        self._store, self._reach = store, reach
        self._opened: dict[str, ShardSource] = {}
        self._away: dict[str, LamellaError] = {}
        self._held = contextlib.ExitStack()

    def close(self) -> None:
        self._held.close()

    def obstacle(self, shard: ShardRef) -> str:
        """Why the shard could not be fetched at this moment; "" if it could: its origin says that it is there."""
        try:
            url = self._store.origins.find(shard.id)
            if url is None:
                return NOT_PULLED
            self._ask(url, shard)
        except LamellaError as error:
            return str(error)
        return ""

    def fetch(self, lease: Lease, shard: ShardRef, should_stop: Callable[[], bool] | None = None) -> str | None:
        """Fetch a shard from where it was pulled from, which is returned; None if it was not pulled.

        Raises:
            CannotRebuild: it is not to be had there; says why and what would help.
            StorageFailed: the file system refused.
            BuildStopped: ``should_stop`` said so.
        """
        url = None
        try:
            url = self._store.origins.find(shard.id)
            if url is not None:
                fetch(lease, shard, Stoppable(self._ask(url, shard), should_stop))
        except (BuildStopped, StorageFailed):
            raise
        except LamellaError as error:
            raise CannotRebuild(f"{error}; {self._cure(url)}") from None
        return url

    def _ask(self, url: str, shard: ShardRef) -> ShardSource:
        """The store behind the URL, which has just said that it has the shard.

        Raises:
            LamellaError: it has not, or does not answer.
        """
        if url in self._away:
            raise self._away[url]
        try:
            source = self._open(url)
            source.check(shard.id, shard.n_bytes)
        except StoreError:
            raise  # it is there, and lacks this shard
        except LamellaError as error:
            self._away[url] = error
            raise
        return source

    def _open(self, url: str) -> ShardSource:
        if url not in self._opened:
            if self._reach is None:
                raise StoreError(f"it was pulled from {url}, which is not asked here")
            self._opened[url] = self._held.enter_context(self._reach(url))
        return self._opened[url]

    def _cure(self, url: str | None) -> str:
        there = f", or from there with its token in LAMELLA_TOKEN: --from {url}" if url else ""
        return (
            f"try again when it can be had there, or take it from another store with: "
            f"lamella store repair {self._store.path} --from STORE{there}"
        )


@dataclass(frozen=True, slots=True)
class Stoppable:
    """A source that gives up between two pieces when it is asked to (``BuildStopped``)."""

    source: ShardSource
    should_stop: Callable[[], bool] | None

    @property
    def name(self) -> str:
        return self.source.name

    def check(self, shard_id: str, n_bytes: int) -> None:
        self.source.check(shard_id, n_bytes)

    def fetch(self, shard_id: str, n_bytes: int) -> Iterator[bytes | memoryview]:
        for piece in self.source.fetch(shard_id, n_bytes):
            if self.should_stop is not None and self.should_stop():
                raise BuildStopped(f"stopped while a shard was fetched from {self.name}")
            yield piece
