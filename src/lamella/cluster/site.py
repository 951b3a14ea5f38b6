"""The machines of a served cluster as they are now: who is there, how much it holds, how fast it is.

async with Site(dialler, names, types, here) as site:
    site.machines()                       # by name, this one among them
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Self

from lamella.cluster.blame import Blame
from lamella.cluster.dialling import Dialler
from lamella.cluster.forwarding import Forwarder
from lamella.cluster.layers import COORDINATOR
from lamella.cluster.links import REFRESH_SECONDS, LinkMeter, MeasuredLink, measure_link
from lamella.cluster.messages import Describe, Described, NodeReport
from lamella.cluster.placing import MachineNow
from lamella.cluster.reporting import REPORT_SECONDS
from lamella.core.artifacts import ShardRef
from lamella.core.errors import LamellaError, RemoteFailed
from lamella.planning.placement import Link

LOOK_SECONDS = 0.5
JUST_LOST_SECONDS = 5.0


class Site:
    """Nodes with a session each, described when they come.  An asynchronous context manager.

    Attributes:
        nodes: by name, whether there or not.
    """

    def __init__(
        self,
        dialler: Dialler,
        shards: Mapping[str, Sequence[ShardRef]],
        types: Iterable[str],
        here: NodeReport,
        *,
        refresh_seconds: float = REFRESH_SECONDS,
        on_line: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nobody is asked yet.

        Args:
            shards: by node, what it computes with at first.
            types: ggml types whose speeds matter.
            here: of this machine; its ``available_bytes`` are for the model.
            refresh_seconds: how often links are measured.
        """
        self.nodes = {name: Forwarder(dialler, name, shards=s, on_change=on_line) for name, s in shards.items()}
        self._dialler, self._types, self._on_line, self._clock = dialler, sorted(types), on_line, clock
        self._reports = {COORDINATOR: here}
        self._links: dict[str, MeasuredLink] = {}
        self._meter = LinkMeter(dialler, list(self.nodes), refresh_seconds)
        self._blame: dict[str, Blame] = {}
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for node in self.nodes.values():
            await self._stack.enter_async_context(node)
        self._tasks = [asyncio.create_task(self._look(name)) for name in self.nodes]
        self._tasks.append(asyncio.create_task(self._meter.run()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def known(self, names: Collection[str], seconds: float) -> None:
        """Wait until some nodes are there and described.

        Args:
            seconds: for each to come; to describe itself each has at least ``REPORT_SECONDS``.

        Raises:
            RemoteFailed: one is not in time; says why.
        """
        for name in names:
            await self.nodes[name].ready(seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, REPORT_SECONDS)):
                while not set(names) <= self.machines().keys():
                    await asyncio.sleep(LOOK_SECONDS)
                return
        raise RemoteFailed(f"not all of {', '.join(names)} have described themselves")

    def machines(self) -> dict[str, MachineNow]:
        """Those that could compute now."""
        found = {COORDINATOR: _machine(self._reports[COORDINATOR], None, 1.0)}
        for name, node in self.nodes.items():
            report, link = self._reports.get(name), self._meter.links.get(name) or self._links.get(name)
            if node.is_up and report is not None and link is not None:
                found[name] = _machine(report, link, self._slowdown(name, node, link))
        return found

    def away(self) -> tuple[str, ...]:
        """Nodes that do not answer."""
        return tuple(name for name, node in self.nodes.items() if not node.is_up)

    def has_just_lost(self, names: Iterable[str]) -> bool:
        """Whether one of some nodes is away, or was a moment ago."""
        now = self._clock()
        return any(
            not self.nodes[name].is_up or now - self.nodes[name].down_at < JUST_LOST_SECONDS
            for name in names
            if name in self.nodes
        )

    def _slowdown(self, name: str, node: Forwarder, link: MeasuredLink) -> float:
        blame = self._blame.setdefault(name, Blame(self._links.get(name, link)))
        slowdown = blame.look(self._clock(), link, node.pace if node.is_used else None)
        if blame.wants_link:
            self._meter.hurry(name)
        return slowdown

    async def _look(self, name: str) -> None:
        """Have a node described when it first comes: later its memory is full of what we put there."""
        while name not in self._reports:
            await asyncio.sleep(LOOK_SECONDS)
            if not self.nodes[name].is_up:
                continue
            try:
                channel, said = await self._dialler.ask(name, Describe(self._types), Described, REPORT_SECONDS)
                channel.close()
                self._links[name] = await measure_link(self._dialler, name)
                self._reports[name] = said.report
            except LamellaError as error:
                self._on_line(f"node '{name}' cannot be described: {error}")
                await asyncio.sleep(JUST_LOST_SECONDS)


def _machine(report: NodeReport, link: MeasuredLink | None, slowdown: float) -> MachineNow:
    way = None if link is None else Link(link.bytes_per_second, link.round_trip_seconds)
    return MachineNow(report.available_bytes, report.speeds, way, slowdown)
