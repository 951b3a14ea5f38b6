"""The node: listens for its coordinator, and does what each connection is for.

    agent = NodeAgent(NodeFolder(path), NodeOptions(n_threads=4))
    await agent.serve("0.0.0.0", 7410, on_listening=print, stop=stop)

Whoever connects without the coordinator's certificate is hung up on before a word.  A *session* is a coordinator that
wants to compute here: it has an RPC server process of its own, which ends when the session does, by whatever cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from lamella.cluster.addresses import LOOPBACK, join_address
from lamella.cluster.channel import MOST_WAITING_BYTES, Channel, join
from lamella.cluster.identity import Peer
from lamella.cluster.messages import (
    Back,
    Begin,
    Begun,
    Blob,
    Bring,
    Brought,
    Describe,
    Described,
    Dial,
    Ping,
    Pong,
    Probe,
    Purpose,
    Ready,
    Refused,
    UseRpc,
)
from lamella.cluster.node_folder import NodeFolder
from lamella.cluster.reporting import report_apart
from lamella.cluster.rpc_server import RpcServer
from lamella.cluster.rpc_stream import ANSWER_HEAD_BYTES, Expand, Gather
from lamella.cluster.shard_cache import HeldShards, ShardCache
from lamella.cluster.tls import HANDSHAKE_SECONDS, peer_on, server_context
from lamella.core.errors import ClusterRefused, InvalidRequest, LamellaError, RemoteFailed
from lamella.remote.remote_store import RemoteStore
from lamella.remote.web import WebOptions

PURPOSE_SECONDS = 10.0
"""How long who has connected may take to say what for."""
SILENCE_SECONDS = 15.0
"""A session from which nothing came for so long is over: the coordinator, or the way to it, is gone."""


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """How a node works.

    Attributes:
        n_threads: for computing; 0 for the cores that it may use.
        cache_bytes: shards that no session holds go where there are more; 0 keeps all.
        n_sessions: most at once.
    """

    n_threads: int = 0
    cache_bytes: int = 0
    n_sessions: int = 16


@dataclass(frozen=True, slots=True)
class Session:
    """What a coordinator computes with.

    Attributes:
        channel: which the session lasts as long as.
    """

    server: RpcServer
    held: HeldShards
    channel: Channel


class NodeAgent:
    """A node.  Belongs to one event loop.

    Attributes:
        sessions: by id.
    """

    def __init__(
        self, folder: NodeFolder, options: NodeOptions | None = None, on_line: Callable[[str], None] = lambda _: None
    ) -> None:
        """Nothing listens yet.

        Args:
            on_line: told what happens.

        Raises:
            InvalidRequest: the folder has joined no cluster.
        """
        self.sessions: dict[str, Session] = {}
        self._folder, self._options, self._on_line = folder, options or NodeOptions(), on_line
        self._credentials = folder.credentials
        self._cache = ShardCache(folder.cache, self._options.cache_bytes)
        self._bringing = asyncio.Lock()
        self._backs: dict[int, asyncio.Future[Channel]] = {}
        self._n_beginning = 0
        self._n_backs = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: set[RpcServer] = set()  # that may have a process

    async def serve(
        self,
        host: str,
        port: int,
        *,
        on_listening: Callable[[str], None] = lambda _: None,
        stop: asyncio.Event | None = None,
    ) -> None:
        """Answer the coordinator until ``stop`` is set, or for ever.

        Args:
            on_listening: told HOST:PORT, with the real port.

        Raises:
            InvalidRequest: the address is taken or not of this machine, or the certificate cannot be used.
        """
        try:
            server = await asyncio.get_running_loop().create_server(
                lambda: Channel(self._welcome, self._check),
                host,
                port,
                ssl=server_context(self._credentials),
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
        except (OSError, OverflowError) as error:
            raise InvalidRequest(f"cannot listen on {host}, port {port}: {error}") from None
        try:
            on_listening(join_address(*server.sockets[0].getsockname()[:2]))
            await (stop or asyncio.Event()).wait()
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(server.close() for server in self._servers))

    def _check(self, channel: Channel) -> Peer:
        """Only the coordinator of this node's cluster."""
        peer = peer_on(channel)
        if (peer.identity.cluster, peer.identity.role) != (self._credentials.identity.cluster, "coordinator"):
            raise ClusterRefused(f"{peer.identity.uri} is not the coordinator of this node's cluster")
        return peer

    def _welcome(self, channel: Channel) -> None:
        task = asyncio.get_running_loop().create_task(self._talk(channel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _talk(self, channel: Channel) -> None:
        """One connection, from its purpose to its end."""
        try:
            purpose: Purpose = await channel.receive(Purpose, PURPOSE_SECONDS)
            try:
                await self._do(purpose, channel)
            except (LamellaError, OSError) as error:
                if not isinstance(error, RemoteFailed) or not channel.closed.is_set():
                    self._on_line(f"{type(purpose).__name__}: {error}")
                channel.send(Refused(str(error)))
        except RemoteFailed as error:
            self._on_line(f"a connection was not understood: {error}")
        except Exception as error:  # a fault of ours costs this connection, and is told
            self._on_line(f"a fault in Lamella: {type(error).__name__}: {error}")
            channel.send(Refused(f"a fault of the node: {type(error).__name__}: {error}"))
        finally:
            channel.close()

    async def _do(self, purpose: Purpose, channel: Channel) -> None:
        match purpose:
            case Describe():
                channel.send(await self._describe(purpose))
            case Probe():
                await _be_probed(channel)
            case Begin():
                await self._session(purpose, channel)
            case UseRpc():
                await self._use_rpc(purpose.session, channel)
            case Bring():
                await self._bring(purpose, channel)
            case Back():
                await self._back(purpose.number, channel)

    async def _describe(self, asked: Describe) -> Described:
        report = await report_apart(self._folder.kernels, self._options.n_threads, asked.types)
        n_bytes, n_shards = await asyncio.to_thread(self._cache.usage)
        return Described(report, len(self.sessions), n_bytes, n_shards)

    # --- computing ---------------------------------------------------------------------------------------------------

    async def _session(self, asked: Begin, channel: Channel) -> None:
        n_sessions = len(self.sessions) + self._n_beginning
        if n_sessions >= self._options.n_sessions:
            raise RemoteFailed(f"{n_sessions} sessions run here, more may not (--sessions)")
        self._n_beginning += 1
        try:
            held = await asyncio.to_thread(self._cache.hold, asked.shards)
        finally:
            self._n_beginning -= 1
        session = Session(RpcServer(asked.n_threads or self._options.n_threads), held, channel)
        name = uuid.uuid4().hex
        self.sessions[name] = session
        self._servers.add(session.server)
        self._on_line(f"session {name[:8]} begins, with {len(held.tensors)} tensors in the cache")
        try:
            channel.send(Begun(name, list(held.tensors)))
            while True:
                ping: Ping = await channel.receive(Ping, SILENCE_SECONDS)
                channel.send(Pong(ping.number, session.server.n_starts))
        except RemoteFailed as error:
            self._on_line(f"session {name[:8]} ends: {held.damage or error}")
        finally:
            del self.sessions[name]
            held.close()
            await session.server.close()
            self._servers.discard(session.server)

    async def _use_rpc(self, name: str, channel: Channel) -> None:
        session = self.sessions.get(name)
        if session is None:
            raise RemoteFailed(f"there is no session {name[:8]}")
        server = await session.server.connect()
        if name not in self.sessions:
            server.abort()
            raise RemoteFailed(f"session {name[:8]} has ended")
        channel.send(Ready())
        expand = Expand(session.held.find, session.held.remove_damaged)
        await join(channel, server, expand, Gather(ANSWER_HEAD_BYTES))
        if session.held.damage:  # the coordinator thinks that this node has it: the next session says otherwise
            session.channel.send(Refused(session.held.damage))
            session.channel.close()

    # --- the shard cache ---------------------------------------------------------------------------------------------

    async def _bring(self, asked: Bring, channel: Channel) -> None:
        """Fetch what is missing over HTTP: each connection to a port here is carried to the coordinator's store."""

        def dial_back(plain: Channel) -> None:
            carrying = asyncio.get_running_loop().create_task(self._carry(plain, channel))
            self._tasks.add(carrying)
            carrying.add_done_callback(self._tasks.discard)

        async with self._bringing:
            server = await asyncio.get_running_loop().create_server(lambda: Channel(dial_back), LOOPBACK, 0)
            try:
                port = server.sockets[0].getsockname()[1]
                here = f"http://{LOOPBACK}:{port}"
                with RemoteStore(here, asked.token, WebOptions(uses_proxies=False)) as remote:
                    fetching = asyncio.create_task(
                        asyncio.to_thread(self._cache.bring, asked.model, asked.shards, remote)
                    )
                    gone = asyncio.create_task(channel.closed.wait())
                    await asyncio.wait((fetching, gone), return_when=asyncio.FIRST_COMPLETED)
                    gone.cancel()
                    if not fetching.done():
                        remote.web.stop()
                    n_fetched, moved_bytes = await fetching
            finally:
                server.close()
        self._on_line(f"{n_fetched} shards fetched, {moved_bytes} bytes")
        channel.send(Brought(n_fetched, moved_bytes))

    async def _carry(self, plain: Channel, control: Channel) -> None:
        """Ask for a connection back, and join it with one of ours."""
        self._n_backs += 1
        number = self._n_backs
        back: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
        self._backs[number] = back
        try:
            control.send(Dial(number))
            async with asyncio.timeout(PURPOSE_SECONDS):
                tunnel = await back
            await join(plain, tunnel)
        except TimeoutError:
            pass  # who asked sees its connection end, and tries again
        finally:
            self._backs.pop(number, None)
            plain.abort()

    async def _back(self, number: int, channel: Channel) -> None:
        waiting = self._backs.pop(number, None)
        if waiting is None or waiting.done():
            raise RemoteFailed(f"connection {number} was not asked for")
        waiting.set_result(channel)
        await channel.closed.wait()


async def _be_probed(channel: Channel) -> None:
    """Send back what is asked for, until the coordinator has measured enough."""
    channel.send(Ready())
    with contextlib.suppress(RemoteFailed):
        while True:
            asked: Ping | Blob = await channel.receive(Ping | Blob, SILENCE_SECONDS)
            if isinstance(asked, Ping):
                channel.send(Pong(asked.number))
                continue
            if max(asked.up, asked.down) > MOST_WAITING_BYTES:
                channel.send(Refused(f"at most {MOST_WAITING_BYTES} bytes are sent at once"))
                return
            await channel.read(asked.up, SILENCE_SECONDS)
            channel.write(bytes(asked.down or 1))
            await channel.drain()
