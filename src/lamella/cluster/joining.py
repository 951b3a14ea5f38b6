"""How a machine becomes a node: it shows an invite's secret and gets its key signed.

    async with JoinServer(folder, "10.0.0.1", 7400):  ...                         # the coordinator
    credentials = await join_cluster(invite, Path("node"), "0.0.0.0:7410")        # the machine

The machine knows the coordinator by its certificate's fingerprint, which the invite has, and says nothing to others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

import msgspec

from lamella.cluster.addresses import join_address, split_address
from lamella.cluster.certificates import new_request
from lamella.cluster.channel import Channel
from lamella.cluster.folder import ClusterFolder, Credentials
from lamella.cluster.identity import Identity
from lamella.cluster.invites import Invite
from lamella.cluster.node_folder import NodeFolder
from lamella.cluster.tls import HANDSHAKE_SECONDS, check_fingerprint, joining_client_context, joining_server_context
from lamella.core.errors import ClusterRefused, InvalidRequest, LamellaError, RemoteFailed, RemoteInvalid

ANSWER_SECONDS = 10.0
MOST_JOIN_BYTES = 16 << 10
"""Of what a machine says that nobody knows yet."""
MOST_AT_ONCE = 16
"""Machines that may be joining at once; who comes while there are so many is hung up on."""


class Join(msgspec.Struct, frozen=True, tag="join"):
    """What a machine says.

    Attributes:
        secret: of its invite.
        request: certificate signing request, PEM.
        address: HOST:PORT at which it will listen.
    """

    secret: bytes
    request: bytes
    address: str


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """It is a node now: ``uri`` says who (``Identity.uri``); certificates are PEM."""

    uri: str
    authority: bytes
    certificate: bytes


class NotJoined(msgspec.Struct, frozen=True, tag="not-joined"):
    """It is not."""

    message: str


class JoinServer:
    """Where machines join.  An asynchronous context manager; nothing but joining is answered.

    Attributes:
        address: HOST:PORT, with the real port.
    """

    def __init__(
        self, folder: ClusterFolder, host: str, port: int, on_joined: Callable[[Identity, str], None] = lambda *_: None
    ) -> None:
        """Nothing listens yet.

        Args:
            on_joined: told who has joined, and at which address it will listen.
        """
        self._folder, self._host, self._port, self._on_joined = folder, host, port, on_joined
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Channel(self._welcome),
                self._host,
                self._port,
                ssl=joining_server_context(self._folder.credentials),
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
        except OSError as error:
            raise InvalidRequest(f"cannot listen on {self._host}, port {self._port}: {error}") from None
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def address(self) -> str:
        assert self._server is not None  # it was entered
        host, port = self._server.sockets[0].getsockname()[:2]
        return join_address(host, port)

    def _welcome(self, channel: Channel) -> None:
        if len(self._tasks) >= MOST_AT_ONCE:
            channel.abort()
            return
        task = asyncio.get_running_loop().create_task(self._answer(channel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, channel: Channel) -> None:
        try:
            asked: Join = await channel.receive(Join, ANSWER_SECONDS, MOST_JOIN_BYTES)
            channel.send(self._admit(asked))
        except RemoteFailed:
            channel.abort()
        finally:
            channel.close()

    def _admit(self, asked: Join) -> Joined | NotJoined:
        try:
            split_address(asked.address)
            identity, certificate = self._folder.admit(asked.secret, asked.request, asked.address)
            authority = (self._folder.path / "authority.crt").read_bytes()
        except (LamellaError, OSError, ValueError) as error:  # the last two: of a folder that is damaged
            return NotJoined(str(error))
        self._on_joined(identity, asked.address)
        return Joined(identity.uri, authority, certificate)


async def join_cluster(invite: Invite, folder: NodeFolder, listen: str) -> Credentials:
    """Join a cluster, and keep in ``folder`` what a node needs.

    Args:
        listen: HOST:PORT at which the node will listen; of an unspecified host (0.0.0.0) the coordinator is told the
            address by which this machine reaches it.

    Raises:
        InvalidRequest: port 0, at which nobody could reach the node.
        ClusterRefused: the invite is not open, or something else answers there.
        RemoteFailed: nobody answers.
        StorageFailed: the file system refused.
    """
    if not split_address(listen)[1]:
        raise InvalidRequest(f"'{listen}': a node needs a port that the coordinator can know, not 0")
    key, request = new_request()
    channel = Channel()
    host, port = split_address(invite.address)
    try:
        async with asyncio.timeout(HANDSHAKE_SECONDS):
            context = joining_client_context()
            await asyncio.get_running_loop().create_connection(lambda: channel, host, port, ssl=context)
    except (OSError, TimeoutError) as error:
        raise RemoteFailed(f"no coordinator answers at {invite.address}: {error or 'no answer'}") from None
    with contextlib.closing(channel):
        check_fingerprint(channel, invite.fingerprint)
        channel.send(Join(invite.secret, request, _reachable(listen, channel)))
        answer: Joined | NotJoined = await channel.receive(Joined | NotJoined, ANSWER_SECONDS)
    if isinstance(answer, NotJoined):
        raise ClusterRefused(answer.message)
    identity = Identity.parse(answer.uri)
    if identity.role != "node":
        raise RemoteInvalid(f"the coordinator says that this machine is a {identity.role}")
    return folder.keep(identity, answer.authority, answer.certificate, key)


def _reachable(listen: str, channel: Channel) -> str:
    host, port = split_address(listen)
    if host in ("0.0.0.0", "::"):
        host = channel.get_extra_info("sockname")[0]
    return join_address(host, port)
