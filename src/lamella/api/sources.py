"""Where shards can be had from: other stores, in folders and behind URLs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lamella.remote.addresses import is_url
from lamella.store.fetching import FolderSource, ShardSource
from lamella.store.store import Store

ORIGIN_TRIES, ORIGIN_SILENCE_S, ORIGIN_PAUSE_S = 3, 10.0, 1.0
"""For a store that a shard was pulled from: somebody waits for a model that is being loaded."""


@contextlib.contextmanager
def shard_source(where: str, token: str | None = None) -> Iterator[ShardSource]:
    """Somewhere to take shards over from: the folder of another store, or the URL of a remote one.

    Args:
        token: that a server asks for.

    Raises:
        StoreError: there is no store in that folder.
        InvalidRequest: a URL of something else than http or https.
    """
    if not is_url(where):
        yield FolderSource(Store.open(Path(where)))
        return
    from lamella.remote.remote_store import RemoteStore

    with RemoteStore(where, token) as remote:
        yield remote


@contextlib.contextmanager
def reach(url: str) -> Iterator[ShardSource]:
    """The remote store that a shard was pulled from (``store.fetching.Reach``).

    It gets no token: the URL stands in a file of the store, which may have come from anywhere.  Given up soon.

    Raises:
        InvalidRequest: no URL of a store.
    """
    from lamella.remote.remote_store import RemoteStore
    from lamella.remote.web import WebOptions

    options = WebOptions(n_tries=ORIGIN_TRIES, silence_s=ORIGIN_SILENCE_S, longest_pause_s=ORIGIN_PAUSE_S)
    with RemoteStore(url, None, options) as remote:
        yield remote
