"""A trace sent to a live server, and what came of it, in the simulator's own words: both are judged by one function."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.clients import Stream
from lamella.qos.simulator.outcome import Served
from lamella.qos.traces.arrivals import Arrival, Trace

SETTLE_SECONDS = 1.0


@dataclass(slots=True)
class Timeline:
    """Which variant ran when, on the client's clock.

    Attributes:
        start: that ran first.
        changes: (time, variant), ascending.
    """

    start: str
    changes: list[tuple[float, str]] = field(default_factory=list)

    def at(self, time: float) -> str:
        i = bisect_right([at for at, _ in self.changes], time)
        return self.changes[i - 1][1] if i else self.start


@dataclass(frozen=True, slots=True)
class Replayed:
    """One live replay.

    Attributes:
        began: when the trace's second 0 was, on the client's clock.
        streams: in the trace's order.
    """

    trace: Trace
    began: float
    streams: Sequence[Stream]

    def served(self, timeline: Timeline) -> tuple[Served, ...]:
        """What each request had."""
        pairs = zip(self.trace.arrivals, self.streams, strict=True)
        return tuple(_served(arrival, stream, timeline) for arrival, stream in pairs)


async def replay_live(port: int, trace: Trace, prompts: Sequence[list[int]]) -> Replayed:
    """Send every request at its time, whatever became of the earlier ones, and wait for all answers.

    Args:
        prompts: token ids for each request, so many as the trace says.
    """
    began = time.perf_counter() + SETTLE_SECONDS

    async def later(arrival: Arrival, prompt: list[int]) -> Stream:
        stream = Stream(port, prompt, arrival.n_generated)
        await asyncio.sleep(began + arrival.seconds - time.perf_counter())
        return await stream.run()

    pairs = zip(trace.arrivals, prompts, strict=True)
    streams = await asyncio.gather(*(later(arrival, prompt) for arrival, prompt in pairs))
    return Replayed(trace, began, streams)


def on_clients_clock(unix_time: float) -> float:
    """A server's time on the clock that streams use."""
    return unix_time - time.time() + time.perf_counter()


def _served(arrival: Arrival, stream: Stream, timeline: Timeline) -> Served:
    if stream.failed or not stream.pieces:
        why = stream.failed or "no text came"
        return Served(arrival.class_name, arrival.seconds, float("inf"), float("inf"), {}, why)
    first, last = stream.pieces[0].at, stream.pieces[-1].at
    tokens = Counter(timeline.at(piece.at) for piece in stream.pieces)
    tokens[timeline.at(last)] += max(0, stream.n_tokens - len(stream.pieces))  # tokens that made no text of their own
    tpot = (last - first) / (stream.n_tokens - 1) if stream.n_tokens > 1 else 0.0
    return Served(arrival.class_name, arrival.seconds, first - stream.sent, tpot, dict(tokens))
