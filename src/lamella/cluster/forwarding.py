"""A node as a loopback port of the coordinator: what connects there speaks with the node's RPC server.

    async with Forwarder(dialler, "laptop", shards=shards) as forwarder:
        forwarder.endpoint                     # 127.0.0.1:PORT, for llama.cpp

While the node is away connections are kept waiting, since llama.cpp aborts its process where nobody answers; one that
was joined and lost its node is cut, and the process that held it ends.  Its supervisor starts another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Self

import msgspec

from lamella.cluster.addresses import LOOPBACK
from lamella.cluster.channel import Channel, join
from lamella.cluster.dialling import Dialler, answer
from lamella.cluster.messages import Begin, Begun, Ping, Pong, Ready, UseRpc
from lamella.cluster.pace import Pace, Stopwatch
from lamella.cluster.rpc_stream import ANSWER_HEAD_BYTES, Gather, Shorten
from lamella.core.artifacts import ShardRef
from lamella.core.errors import LamellaError, RemoteFailed

PING_SECONDS = 1.0
SILENCE_SECONDS = 5.0
"""A node that did not answer a ping for so long is away: its connections are cut."""
RETRY_SECONDS = 0.5
START_SECONDS = 60.0
"""For a node's RPC server to start."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of RPC between coordinator and node.

    Attributes:
        sent_bytes, received_bytes: that travelled, to the node and from it.
        saved_bytes: weights that did not, since the node had them in its cache.
    """

    sent_bytes: int = 0
    received_bytes: int = 0
    saved_bytes: int = 0


class Forwarder:
    """A session with a node, begun anew whenever it was lost.  An asynchronous context manager.

    Attributes:
        node: its name.
        is_up: whether a session runs.
        trouble: why there is none, or what was last wrong; "" where nothing ever was.
        round_trip_seconds: of the last ping; 0 before the first.
        down_at: when a session was last lost, by ``time.monotonic``; minus infinity where none was.
        pace: how fast the node answers the engine that is connected now.
    """

    def __init__(
        self,
        dialler: Dialler,
        node: str,
        *,
        n_threads: int = 0,
        shards: Sequence[ShardRef] = (),
        on_change: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing is begun yet.

        Args:
            n_threads: for the node to compute with; 0 for its own choice.
            shards: what will be computed with; those in the node's cache need not travel.
            on_change: told in words when the node comes and goes.
        """
        self.node, self.is_up, self.trouble = node, False, ""
        self.round_trip_seconds, self.down_at, self.pace = 0.0, -math.inf, Pace()
        self._ended, self._carried = Traffic(), list[tuple[Shorten, Gather]]()
        self._dialler, self._wanted, self._on_change = dialler, Begin(n_threads, list(shards)), on_change
        self._up = asyncio.Event()
        self._session = ""
        self._channel: Channel | None = None
        self._known: frozenset[bytes] = frozenset()
        self._server: asyncio.Server | None = None
        self._tunnels: set[Channel] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(lambda: Channel(self._take), LOOPBACK, 0)
        self._run(self._keep_session())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def endpoint(self) -> str:
        """Where llama.cpp is to connect."""
        assert self._server is not None  # it was entered
        return f"{LOOPBACK}:{self._server.sockets[0].getsockname()[1]}"

    @property
    def traffic(self) -> Traffic:
        """What went through so far."""
        return Traffic(
            self._ended.sent_bytes + sum(there.n_bytes for there, _ in self._carried),
            self._ended.received_bytes + sum(back.n_bytes for _, back in self._carried),
            self._ended.saved_bytes + sum(there.saved_bytes for there, _ in self._carried),
        )

    @property
    def is_used(self) -> bool:
        """Whether an engine is connected with the node."""
        return bool(self._tunnels)

    async def ready(self, seconds: float) -> None:
        """Wait until a session runs.

        Raises:
            RemoteFailed: none does in time; says why.
        """
        try:
            async with asyncio.timeout(seconds):
                await self._up.wait()
        except TimeoutError:
            raise RemoteFailed(self.trouble or f"node '{self.node}' does not answer") from None

    def renew(self, shards: Sequence[ShardRef]) -> None:
        """Begin another session, to compute with other shards; one that has them already goes on."""
        if {shard.id for shard in shards} <= {shard.id for shard in self._wanted.shards}:
            return
        self._wanted = Begin(self._wanted.n_threads, list(shards))
        self.begin_again()

    def begin_again(self) -> None:
        """End the session, if there is one; another one begins at once, and knows what the cache has by then."""
        self._wanted = msgspec.structs.replace(self._wanted)  # one that begins just now is the wrong one too
        if self._channel is not None and self.is_up:
            self._channel.abort()
            self._drop("its session begins anew")

    def _run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the session -------------------------------------------------------------------------------------------------

    async def _keep_session(self) -> None:
        while True:
            wanted = self._wanted
            try:
                channel, begun = await self._dialler.ask(self.node, wanted, Begun)
                with contextlib.closing(channel):
                    if wanted is self._wanted:
                        self._came_up(begun)
                        self._channel = channel
                        await self._ping(channel)
            except LamellaError as error:  # it may be no member any more
                self._went_down(str(error))
            except Exception as error:  # a fault of ours: the node is not up because nobody looks
                self._went_down(f"a fault in Lamella: {type(error).__name__}: {error}")
            if wanted is self._wanted:  # else another one is asked for
                await asyncio.sleep(RETRY_SECONDS)

    async def _ping(self, channel: Channel) -> None:
        number = 0
        while True:
            number += 1
            start = time.perf_counter()
            channel.send(Ping(number))
            await answer(channel, Pong, SILENCE_SECONDS)
            self.round_trip_seconds = time.perf_counter() - start
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING_SECONDS):
                    await channel.closed.wait()  # a connection that ends is noticed at once

    def _came_up(self, begun: Begun) -> None:
        self._session, self._known = begun.session, frozenset(begun.tensors)
        self.is_up = True
        self._up.set()
        self._on_change(f"node '{self.node}' is there")

    def _went_down(self, why: str) -> None:
        was_up = self.is_up
        self._drop(why)
        if was_up:
            self.down_at = time.monotonic()
            self._on_change(f"node '{self.node}' is away: {why}")

    def _drop(self, why: str) -> None:
        self.is_up, self.trouble = False, why
        self._up.clear()
        for tunnel in self._tunnels:
            tunnel.abort()

    # --- connections -------------------------------------------------------------------------------------------------

    def _take(self, plain: Channel) -> None:
        self._run(self._carry(plain))

    async def _carry(self, plain: Channel) -> None:
        """Join a connection of llama.cpp with the node's RPC server, as soon as there is one."""
        try:
            tunnel = await self._tunnel(plain)
            if tunnel is None:
                return
            self._tunnels.add(tunnel)
            filters = Shorten(self._known), Gather(ANSWER_HEAD_BYTES)
            self._carried.append(filters)
            self.pace = Pace()
            watch = Stopwatch(self.pace, *filters)
            try:
                await join(plain, tunnel, watch.there, watch.back)
            finally:
                self._tunnels.discard(tunnel)
                there, back = filters
                ended = self._ended
                self._ended = Traffic(
                    ended.sent_bytes + there.n_bytes,
                    ended.received_bytes + back.n_bytes,
                    ended.saved_bytes + there.saved_bytes,
                )
                self._carried.remove(filters)
        finally:
            plain.abort()

    async def _tunnel(self, plain: Channel) -> Channel | None:
        """A tunnel to the RPC server; None if the client has left before there was one."""
        while not plain.closed.is_set():
            try:
                async with asyncio.timeout(RETRY_SECONDS):
                    await self._up.wait()
                channel, _ = await self._dialler.ask(self.node, UseRpc(self._session), Ready, START_SECONDS)
            except TimeoutError:
                continue
            except LamellaError as error:
                if self.is_up and str(error) != self.trouble:  # or it was told already
                    self._on_change(f"an engine waits: {error}")
                self.trouble = str(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return channel
        return None
