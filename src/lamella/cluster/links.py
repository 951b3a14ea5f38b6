"""How fast the way to a node is: round trip and bandwidth through the tunnel, as weights and hidden states take it.

link = await measure_link(dialler, "laptop")
meter = LinkMeter(dialler, ["laptop", "server"])          # keeps measuring
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lamella.cluster.channel import MOST_WAITING_BYTES, Channel
from lamella.cluster.dialling import ANSWER_SECONDS, Dialler
from lamella.cluster.messages import Blob, Ping, Pong, Probe, Ready
from lamella.core.errors import LamellaError

N_PINGS = 8
FIRST_BLOB_BYTES = 32 << 10
LONG_ENOUGH_SECONDS = 0.2
"""A transfer that took so long says what the bandwidth is; shorter ones are repeated with more bytes."""
REFRESH_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class MeasuredLink:
    """The way between coordinator and node.

    Attributes:
        round_trip_seconds: of a short message, the least of some.
        up_bytes_per_second, down_bytes_per_second: to the node, and from it.
        at: when, in seconds since 1970.
    """

    round_trip_seconds: float
    up_bytes_per_second: float
    down_bytes_per_second: float
    at: float

    @property
    def bytes_per_second(self) -> float:
        """Of the slower direction."""
        return min(self.up_bytes_per_second, self.down_bytes_per_second)


async def measure_link(dialler: Dialler, node: str, clock: Callable[[], float] = time.time) -> MeasuredLink:
    """Measure the way to a node: some short messages, and then more and more bytes each way, half a second in all.

    Raises:
        RemoteFailed: the node does not answer.
    """
    channel, _ = await dialler.ask(node, Probe(), Ready)
    with contextlib.closing(channel):
        round_trip = min([await _ping(channel, number) for number in range(N_PINGS)])
        up = await _bandwidth(channel, round_trip, lambda n: Blob(n, 0))
        down = await _bandwidth(channel, round_trip, lambda n: Blob(0, n))
    return MeasuredLink(round_trip, up, down, clock())


async def _ping(channel: Channel, number: int) -> float:
    start = time.perf_counter()
    channel.send(Ping(number))
    await channel.receive(Pong, ANSWER_SECONDS)
    return time.perf_counter() - start


async def _bandwidth(channel: Channel, round_trip: float, blob: Callable[[int], Blob]) -> float:
    n_bytes = FIRST_BLOB_BYTES
    while True:
        asked = blob(n_bytes)
        start = time.perf_counter()
        channel.send(asked)
        channel.write(bytes(asked.up))
        await channel.read(asked.down or 1, ANSWER_SECONDS)
        seconds = time.perf_counter() - start
        if seconds >= LONG_ENOUGH_SECONDS + round_trip or 2 * n_bytes > MOST_WAITING_BYTES:
            return n_bytes / max(seconds - round_trip, 1e-9)
        n_bytes *= 2


class LinkMeter:
    """Keeps the links to some nodes measured; what cannot be measured keeps its last value.

    Attributes:
        links: by node.
    """

    def __init__(self, dialler: Dialler, nodes: Iterable[str], every_seconds: float = REFRESH_SECONDS) -> None:
        """Nothing is measured until ``run``."""
        self._dialler, self._nodes, self._every_seconds = dialler, tuple(nodes), every_seconds
        self._links: dict[str, MeasuredLink] = {}
        self._hurried: asyncio.Queue[str] = asyncio.Queue()
        self._waiting: set[str] = set()

    @property
    def links(self) -> Mapping[str, MeasuredLink]:
        """The newest measurement of each node that was reached once."""
        return self._links

    def hurry(self, node: str) -> None:
        """Have one node measured now and not when its turn comes."""
        if node not in self._waiting:
            self._waiting.add(node)
            self._hurried.put_nowait(node)

    async def run(self) -> None:
        """Measure one node after the other, again and again; transfers do not disturb each other."""
        while True:
            for node in self._nodes:
                await self._measure(node)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_seconds):
                    while True:
                        await self._measure(await self._hurried.get())

    async def _measure(self, node: str) -> None:
        with contextlib.suppress(LamellaError):
            self._links[node] = await measure_link(self._dialler, node)
        self._waiting.discard(node)
