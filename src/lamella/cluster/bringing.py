"""Fills a node's shard cache from a store of the coordinator; only what the node lacks travels.

    brought = await bring(dialler, "laptop", store, shards)

The node reads by the code of remote stores (``remote.fetching``: resumed, verified), from the very server that
``lamella serve-store`` runs, on loopback here.  Between the two, each HTTP connection is a connection to the node that
the coordinator opens when the node asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
from collections.abc import AsyncIterator, Sequence

from lamella.cluster.addresses import LOOPBACK
from lamella.cluster.channel import Channel, join
from lamella.cluster.dialling import Dialler, answer
from lamella.cluster.messages import Back, Bring, Brought, Dial
from lamella.core.artifacts import ShardRef
from lamella.core.errors import LamellaError, RemoteFailed, RemoteInvalid
from lamella.remote.serving import StoreServer
from lamella.store.store import Store

LONGEST_PAUSE_SECONDS = 3600.0
"""Within which the node must have fetched all, or ask for another connection."""
MOST_CONNECTIONS = 16
"""That a node may have at once; it needs one, and another where that was cut."""


async def bring(dialler: Dialler, node: str, store: Store, shards: Sequence[ShardRef]) -> Brought:
    """Have a node keep some shards of a store in its cache.

    Raises:
        RemoteFailed: the node is not reached, or cannot; says why.  What it has got it keeps.
        RemoteInvalid: it asks for connections without end.
    """
    token = secrets.token_urlsafe(32)
    async with _served(store, token) as port:
        carrying: set[asyncio.Task[None]] = set()
        channel = await dialler.dial(node, Bring(store.identity, list(shards), token))
        try:
            while True:
                said: Dial | Brought = await answer(channel, Dial | Brought, LONGEST_PAUSE_SECONDS)
                if isinstance(said, Brought):
                    return said
                if len(carrying) >= MOST_CONNECTIONS:
                    raise RemoteInvalid(f"it asked for more than {MOST_CONNECTIONS} connections at once")
                task = asyncio.create_task(_carry(dialler, node, said.number, port))
                carrying.add(task)
                task.add_done_callback(carrying.discard)
        except RemoteFailed as error:
            raise type(error)(f"node '{node}': {error}") from None
        finally:
            channel.abort()
            for task in list(carrying):
                task.cancel()
            await asyncio.gather(*carrying, return_exceptions=True)


async def _carry(dialler: Dialler, node: str, number: int, port: int) -> None:
    """Join a connection that the node wants with one to the store's server; where that fails the node tries again."""
    with contextlib.suppress(LamellaError, OSError):
        tunnel = await dialler.dial(node, Back(number))
        try:
            _, plain = await asyncio.get_running_loop().create_connection(Channel, LOOPBACK, port)
        except BaseException:
            tunnel.abort()
            raise
        await join(tunnel, plain)


@contextlib.asynccontextmanager
async def _served(store: Store, token: str) -> AsyncIterator[int]:
    """The store on a loopback port, for who knows the token."""
    with StoreServer(store, LOOPBACK, 0, token) as server:
        running = threading.Thread(target=server.run, name="store-server")
        running.start()
        try:
            yield int(server.url.rpartition(":")[2])
        finally:
            server.stop()
            await asyncio.to_thread(running.join)  # it looks every 0.1 s whether it is to end
