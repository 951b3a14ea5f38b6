"""What happened lately: a point a second, and every change of variant.

    recorder = Recorder(client, read_machine=read)
    recorder.finished("interactive", ttft_seconds, tpot_seconds)     # as each request ends
    await recorder.run()            # until it is cancelled

The page asks for what is new since its last point, so that opening it shows the past minutes at once.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from lamella.batching.messages import Hello, Status
from lamella.dashboard.state import Change, Latency, Machine, Measured, Point
from lamella.qos.watching import p95

TICK_SECONDS = 1.0
N_POINTS = 900
"""A quarter of an hour."""
N_CHANGES = 200
LATELY_SECONDS = 30.0
"""Latencies are of requests that ended within this time: with a 95th percentile of fewer, one request is all of it."""
EXPLAINED_SECONDS = 2 * TICK_SECONDS
"""A change is noticed so long after its decision at most."""
MOST_ENDED = 4096
"""Requests that are remembered for latencies."""

ReadMachine = Callable[[], Awaitable[Machine]]


class Watched(Protocol):
    """What is recorded of an engine: a part of ``EngineClient``."""

    @property
    def facts(self) -> Hello | None: ...
    @property
    def status(self) -> Status | None: ...
    @property
    def is_ready(self) -> bool: ...
    @property
    def n_restarts(self) -> int: ...
    @property
    def n_open(self) -> int: ...


class Recorder:
    """Remembers what the engine, the machine and requests did.

    Attributes:
        measured: gives what is known of each variant on this machine.
        machine: the last reading.
    """

    def __init__(
        self,
        client: Watched,
        measured: Callable[[], Mapping[str, Measured]] = dict,
        *,
        decided: Callable[[], Sequence[Change]] = tuple,
        read_machine: ReadMachine | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Nothing has happened yet.

        Args:
            decided: changes that somebody else keeps, with better reasons than can be seen from here.
            read_machine: None where nobody looks at the machine.
            clock: Unix time.
        """
        self.measured = measured
        self.machine = Machine()
        self.clock = clock
        self._client, self._decided, self._read_machine = client, decided, read_machine
        self._points: deque[Point] = deque(maxlen=N_POINTS)
        self._noticed: deque[Change] = deque(maxlen=N_CHANGES)
        self._ended: deque[tuple[float, str, float | None, float | None]] = deque(maxlen=MOST_ENDED)
        self._counted: tuple[float, int] | None = None
        self._variant: str | None = None
        self._n_restarts = client.n_restarts

    @property
    def changes(self) -> tuple[Change, ...]:
        """The last changes, oldest first."""
        return all_changes(self._noticed, self._decided())[-N_CHANGES:]

    def points(self, since: float = 0.0) -> tuple[Point, ...]:
        """Those after a time, oldest first."""
        late = itertools.takewhile(lambda point: point.at > since, reversed(self._points))
        return tuple(reversed(list(late)))

    async def run(self) -> None:
        """A point a second, until cancelled."""
        while True:
            self.machine = await self._read()
            self.tick()
            await asyncio.sleep(TICK_SECONDS)

    async def _read(self) -> Machine:
        """The machine; where a reader fails, the page says so, and the rest is recorded all the same."""
        if self._read_machine is None:
            return Machine(why_no_watts="nobody looks at the machine")
        try:
            return await self._read_machine()
        except Exception as error:
            return Machine(why_no_watts=f"reading it fails: {error}")

    def tick(self) -> None:
        """A point of now."""
        now, status = self.clock(), self._client.status
        self.look()
        self._points.append(
            Point(
                at=now,
                variant=self._variant,
                n_running=status.n_running if status else 0,
                n_waiting=status.n_waiting if status else 0,
                tokens_per_second=self._tokens_per_second(now, status),
                engine_bytes=status.mapped_bytes + status.private_bytes if status else None,
                available_bytes=self.machine.available_bytes,
                watts=self.machine.watts,
                latencies=self._latencies(now),
            )
        )

    def look(self) -> None:
        """Note a change of variant as soon as somebody looks, so that a page never shows one without its entry."""
        facts, n_restarts = self._client.facts, self._client.n_restarts
        variant = facts.variant if facts else None
        if variant is not None and variant != self._variant:
            self._noticed.append(_change(self.clock(), self._variant, variant, n_restarts != self._n_restarts))
            self._variant = variant
        self._n_restarts = n_restarts

    def finished(self, class_name: str, ttft_seconds: float | None, tpot_seconds: float | None) -> None:
        """A request has ended; None for what it did not have."""
        self._ended.append((self.clock(), class_name, ttft_seconds, tpot_seconds))

    def _latencies(self, now: float) -> tuple[Latency, ...]:
        while self._ended and self._ended[0][0] < now - LATELY_SECONDS:
            self._ended.popleft()
        names = sorted({name for _, name, _, _ in self._ended})
        return tuple(self._latency(name) for name in names)

    def _latency(self, name: str) -> Latency:
        own = [(ttft, tpot) for _, of, ttft, tpot in self._ended if of == name]
        return Latency(
            name,
            p95(ttft for ttft, _ in own if ttft is not None),
            p95(tpot for _, tpot in own if tpot is not None),
        )

    def _tokens_per_second(self, now: float, status: Status | None) -> float | None:
        """Of the engine's counter; a new engine counts from 0, and says nothing of the second it came up in."""
        last, self._counted = self._counted, (now, status.n_generated_tokens) if status else None
        if last is None or status is None or now <= last[0] or status.n_generated_tokens < last[1]:
            return None
        return (status.n_generated_tokens - last[1]) / (now - last[0])


def all_changes(noticed: Iterable[Change], decided: Sequence[Change]) -> tuple[Change, ...]:
    """Both, oldest first; what was noticed is left out where a decision to the same variant explains it."""
    in_order = sorted(decided, key=_at)
    times = [change.at for change in in_order]

    def is_explained(change: Change) -> bool:
        first = bisect_left(times, change.at - EXPLAINED_SECONDS)
        end = bisect_right(times, change.at + EXPLAINED_SECONDS)
        return any(_explains(one, change) for one in in_order[first:end])

    return tuple(sorted((*(c for c in noticed if not is_explained(c)), *in_order), key=_at))


def _at(change: Change) -> float:
    return change.at


def _explains(decision: Change, noticed: Change) -> bool:
    is_near = abs(decision.at - noticed.at) < EXPLAINED_SECONDS
    return is_near and decision.after == noticed.after and not decision.failure


def _change(now: float, before: str | None, after: str, is_new_engine: bool) -> Change:
    if before is None:
        return Change(now, None, after, "the server started", "engine")
    if is_new_engine:
        return Change(now, before, after, "a new engine was started in place of one that died", "engine")
    return Change(now, before, after, "somebody asked for it", "hand")
