"""The coordinator's connections to nodes: who answers is checked, and a node that is revoked is cut off at once.

async with Dialler(folder) as dialler:
    channel = await dialler.dial("laptop", Probe())
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Self, TypeVar

from lamella.cluster.addresses import split_address
from lamella.cluster.channel import Channel
from lamella.cluster.folder import ClusterFolder
from lamella.cluster.identity import Peer
from lamella.cluster.messages import Purpose, Refused
from lamella.cluster.tls import HANDSHAKE_SECONDS, client_context, peer_on
from lamella.core.errors import ClusterRefused, RemoteFailed

WATCH_SECONDS = 0.1
"""How often it is looked whether a node was revoked whose connections are open."""
ANSWER_SECONDS = 30.0
MOST_SHOWN_CHARACTERS = 1000
"""Of what a node says in words."""

T = TypeVar("T")


class Dialler:
    """Opens connections to the nodes of a cluster.  An asynchronous context manager; its end ends them all."""

    def __init__(self, folder: ClusterFolder) -> None:
        """Nothing is connected yet."""
        self._folder = folder
        self._open: set[Channel] = set()
        self._context: ssl.SSLContext | None = None
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._context = client_context(self._folder.credentials)
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._watching is not None  # it was entered
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        for channel in self._open:
            channel.abort()

    async def dial(self, node: str, purpose: Purpose) -> Channel:
        """Connect to a node and say what for.

        Raises:
            InvalidRequest: no member is called so.
            ClusterRefused: who answers there is not that node.
            RemoteFailed: nobody answers.
        """
        assert self._context is not None  # it was entered
        address = self._folder.needed_node(node).address
        host, port = split_address(address)
        channel = Channel(check=lambda opened: self._check(opened, node))
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await asyncio.get_running_loop().create_connection(
                    lambda: channel, host, port, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_SECONDS
                )
        except ssl.SSLError as error:
            raise ClusterRefused(f"{address} does not show a certificate of this cluster: {error.reason}") from None
        except (OSError, TimeoutError, UnicodeError) as error:  # the last of names that no resolver takes
            raise RemoteFailed(f"node '{node}' does not answer at {address}: {error or 'no answer'}") from None
        if channel.refused is not None:
            raise channel.refused
        self._open.add(channel)
        channel.send(purpose)
        return channel

    async def ask(
        self, node: str, purpose: Purpose, kind: type[T], seconds: float = ANSWER_SECONDS
    ) -> tuple[Channel, T]:
        """``dial``, and the first answer.

        Raises:
            RemoteFailed: also where the node refuses; says why.
        """
        channel = await self.dial(node, purpose)
        try:
            return channel, await answer(channel, kind, seconds)
        except RemoteFailed as error:
            channel.abort()
            raise type(error)(f"node '{node}': {error}") from None
        except BaseException:
            channel.abort()
            raise

    def _check(self, channel: Channel, node: str) -> Peer:
        peer = peer_on(channel)
        if (peer.identity.role, peer.identity.name) != ("node", node):
            raise ClusterRefused(f"who answers for node '{node}' is {peer.identity.role} '{peer.identity.name}'")
        self._folder.check_member(peer)
        return peer

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self._open = {channel for channel in self._open if not channel.closed.is_set()}
            for peer in {channel.peer for channel in self._open}:
                assert peer is not None  # it was checked
                try:
                    self._folder.check_member(peer)
                except Exception:  # who cannot be checked is shut out, for whatever reason
                    self._cut(peer)

    def _cut(self, peer: Peer) -> None:
        for channel in self._open:
            if channel.peer == peer:
                channel.abort()


async def answer(channel: Channel, kind: type[T] | Any, seconds: float = ANSWER_SECONDS) -> T:
    """The next message, unless it is a refusal.

    Raises:
        RemoteFailed: it is one, or none came.
    """
    found: T | Refused = await channel.receive(kind | Refused, seconds)
    if isinstance(found, Refused):
        channel.close()
        raise RemoteFailed(_shown(found.message))
    return found


def _shown(message: str) -> str:
    """A node's words, as a terminal may have them."""
    return "".join(c if c.isprintable() else " " for c in message[:MOST_SHOWN_CHARACTERS])
