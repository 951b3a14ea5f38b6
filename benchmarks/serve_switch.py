"""Claim: streams do not notice that the model under them changes, where everybody else restarts a server.

    .venv/bin/python -m benchmarks.serve_switch [--model smollm2] [--seconds 180] [--rival-seconds 90]

Eight greedy streams write all the time (512 tokens each, a new one where one ends), and every 2 s the server switches
to another of four variants.  Reported: failed requests; the time between two tokens of a stream, of all of them and of
those at a switch (from the wish until it is answered, so preparing it counts), and of the same load without switches.
The promise: none fails, and none waits longer than twice the median and 20 ms.  How often one does is counted in
moments: streams that wait for the same step wait once.

The rival: llama-server with the same files behind a proxy, restarted for each change, as often if it can.  ``cut``
ends it at once: streams break off, and their clients ask again with the text they have.  ``drain`` lets streams end
first and holds new requests back.  A gap is from the last token before to the first token after, for ``drain`` from
the request to its first token.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import statistics
import time
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import clients, servers
from benchmarks.clients import Prompts, Stream, percentiles_ms
from benchmarks.common import record, table
from benchmarks.proxy import RestartingProxy
from benchmarks.stores import stock_store, work_folder
from lamella.store.store import Store

MIXES = ("Q8_0", "Q6_K", "Q4_K_M", "Q4_0")
N_CTX, N_STREAMS, N_TOKENS, PROMPT_CHARACTERS = 1024, 8, 512, 120
CADENCE_SECONDS = 2.0
ALLOWED_FACTOR, ALLOWED_MORE_MS = 2.0, 20.0
WARM_UP_SECONDS = 3.0
MOMENT_SECONDS = 0.02
"""Gaps of several streams that end within so short a time are one wait for the same step."""


@dataclass(slots=True)
class Load:
    """What the clients of one server saw.

    Attributes:
        streams: every request, in the order in which they were sent.
        switches: begin and end of each change.
        resumed_gaps: seconds without a token of streams that broke off, until they went on.
    """

    streams: list[Stream] = field(default_factory=list)
    switches: list[tuple[float, float]] = field(default_factory=list)
    resumed_gaps: list[float] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        return [stream.failed for stream in self.streams if stream.failed]

    @property
    def gaps(self) -> list[float]:
        return [b - a for _, a, b in token_gaps(self.streams)]

    @property
    def seconds(self) -> float:
        """From the first token to the last."""
        times = [piece.at for stream in self.streams for piece in stream.pieces]
        return max(times) - min(times) if times else 0.0

    def moments_above(self, gap_seconds: float) -> int:
        """How often streams waited for longer; those that wait together count once."""
        moments, counted = 0, -MOMENT_SECONDS
        for end in sorted(b for _, a, b in token_gaps(self.streams) if b - a > gap_seconds):
            if end - counted > MOMENT_SECONDS:
                moments, counted = moments + 1, end
        return moments

    def gaps_at_switches(self) -> list[float]:
        """The longest gap of each stream at each switch."""
        gaps = token_gaps(self.streams)
        found: list[float] = []
        for begin, end in self.switches:
            longest: dict[int, float] = {}
            for stream, a, b in gaps:
                if a < end and b > begin:
                    longest[id(stream)] = max(b - a, longest.get(id(stream), 0.0))
            found += longest.values()
        return found


def token_gaps(streams: Sequence[Stream]) -> list[tuple[Stream, float, float]]:
    """Begin and end of each time between two tokens, as far as a client can see tokens: some have no text of their own.

    Of a stream with fewer pieces of text than tokens, a time between two pieces is the longest in it without a token of
    any stream: all streams have a token of each step.
    """
    every = sorted(piece.at for stream in streams for piece in stream.pieces)
    found: list[tuple[Stream, float, float]] = []
    for stream in streams:
        has_unseen = stream.n_tokens > len(stream.pieces)  # False for one that was cut off: it has no count
        for a, b in stream.gaps:
            times = [a, *every[bisect_right(every, a) : bisect_left(every, b)], b] if has_unseen else [a, b]
            found.append((stream, *max(pairwise(times), key=lambda gap: gap[1] - gap[0])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--still-seconds", type=float, default=60, help="the same load without switches")
    parser.add_argument("--rival-seconds", type=float, default=90, help="of each rival way")
    parser.add_argument("--warm", type=int, default=2, help="variants that our server keeps in memory")
    parser.add_argument("--longest-step", type=float, default=0.05, help="of our server: streams before first tokens")
    parser.add_argument("--work", type=Path, help="folder in which the store is kept for the next time")
    args = parser.parse_args()
    with work_folder(args.work) as folder:
        gc.freeze()  # or a full collection of the client's would count as a wait
        store = stock_store(args.model, MIXES, folder / "store")
        still, ours = asyncio.run(measure_ours(store, folder, args))
        rivals = {
            way: asyncio.run(measure_rival(store, folder / "theirs.log", args.rival_seconds, drains=way == "drain"))
            for way in ("cut", "drain")
        }
    report(args, still, ours, rivals)


async def measure_ours(store: Store, folder: Path, args: argparse.Namespace) -> tuple[Load, Load]:
    """The load without and with switches."""
    sizes = {"n_ctx": N_CTX, "n_sequences": N_STREAMS}
    options = ("--warm", args.warm, "--longest-step", args.longest_step)
    with servers.ours(store.path, MIXES[0], *options, log=folder / "ours.log", **sizes) as port:
        async with clients.admin(port) as client:

            async def switch(variant: str) -> None:
                answer = await client.post("/admin/switch", json={"variant": variant})
                answer.raise_for_status()

            await run_load(port, WARM_UP_SECONDS, seed=-1)
            still = await run_load(port, args.still_seconds, seed=0)
            return still, await run_load(port, args.seconds, seed=1, switch=switch)


async def measure_rival(store: Store, log: Path, seconds: float, *, drains: bool) -> tuple[Load, RestartingProxy]:
    """The load on a server that is restarted for each change."""
    async with RestartingProxy(N_CTX, N_STREAMS, log, drains=drains) as proxy:
        await proxy.change(store.first_link(MIXES[0]))
        await run_load(proxy.port, WARM_UP_SECONDS, seed=-1)
        proxy.restart_seconds.clear()

        async def switch(variant: str) -> None:
            await proxy.change(store.first_link(variant))

        return await run_load(proxy.port, seconds, seed=1, switch=switch), proxy


async def run_load(
    port: int, seconds: float, *, seed: int, switch: Callable[[str], Awaitable[None]] | None = None
) -> Load:
    """Streams and switches for some time; what runs then is cut off, and counts as far as it came."""
    load = Load()
    prompts = Prompts(seed)
    tasks = [asyncio.create_task(_write_on(port, prompts, load)) for _ in range(N_STREAMS)]
    if switch is not None:
        tasks.append(asyncio.create_task(_switch_on(switch, load, random.Random(seed))))
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    return load


async def _write_on(port: int, prompts: Prompts, load: Load) -> None:
    """One request after another; one that broke off is asked for again with the text it has."""
    while True:
        prompt, broken = prompts.next(PROMPT_CHARACTERS), None
        n_left = N_TOKENS
        while n_left > 0:
            stream = Stream(port, prompt, n_left)
            load.streams.append(stream)
            await stream.run(_noting_resumption(load, stream, broken))
            if not stream.failed:
                break
            broken = stream if stream.pieces else broken
            prompt, n_left = prompt + stream.text, n_left - len(stream.pieces)
            await asyncio.sleep(0.01)


def _noting_resumption(load: Load, stream: Stream, broken: Stream | None) -> Callable[[], object]:
    """Notes how long a stream stood still that had broken off, when its first token comes."""

    def note() -> None:
        if broken is not None and len(stream.pieces) == 1:
            load.resumed_gaps.append(stream.pieces[0].at - broken.pieces[-1].at)

    return note


async def _switch_on(switch: Callable[[str], Awaitable[None]], load: Load, draws: random.Random) -> None:
    """A switch to another variant every 2 s, or when the one before is done."""
    current = MIXES[0]
    due = time.perf_counter()
    while True:
        due = max(due + CADENCE_SECONDS, time.perf_counter())
        await asyncio.sleep(due - time.perf_counter())
        current = draws.choice([mix for mix in MIXES if mix != current])
        began = time.perf_counter()
        await switch(current)
        load.switches.append((began, time.perf_counter()))


# --- what came of it -------------------------------------------------------------------------------------------------


def report(args: argparse.Namespace, still: Load, ours: Load, rivals: dict[str, tuple[Load, RestartingProxy]]) -> None:
    ways = {"still": of_ours(still), "ours": of_ours(ours)}
    ways |= {way: of_rival(way, load, proxy) for way, (load, proxy) in rivals.items()}
    rows: list[list[object]] = [
        ["way", "switches", "requests", "failed", "delayed", "tok/s", "gap at switch p50 ms", "max ms"]
    ]
    for way, found in ways.items():
        at = found["switch_gap_ms"]
        rows.append([way, found["switches"], found["requests"], found["failed"], found.get("delayed", 0),
                     found["tokens_per_second"], at.get("p50", "-"), at.get("max", "-")])  # fmt: skip
    table(rows)
    gaps = ways["ours"]["gap_ms"]
    allowed = ALLOWED_FACTOR * gaps["p50"] + ALLOWED_MORE_MS
    print(f"ours: median {gaps['p50']:.1f} ms, longest {gaps['max']:.1f} ms; {allowed:.1f} ms are allowed")
    above = {way: of_long_waits(load, allowed) for way, load in (("still", still), ("ours", ours))}
    for way, found in above.items():
        print(f"{way}: {found['moments']} waits above {allowed:.0f} ms, {found['per_minute']} a minute")
    record(
        f"serve_switch-{args.model}",
        {
            "model": args.model,
            "longest_step_seconds": args.longest_step,
            "mixes": MIXES,
            "switches": ways["ours"]["switches"],
            "failed": ways["ours"]["failed"],
            "median_step_ms": gaps["p50"],
            "p99_gap_ms": gaps["p99"],
            "longest_gap_ms": gaps["max"],
            "allowed_gap_ms": round(allowed, 2),
            "gaps_above": sum(gap * 1e3 > allowed for gap in ours.gaps),
            "moments_above": above,
            "rival_gap_ms": ways["cut"]["switch_gap_ms"].get("p50"),
            "ways": ways,
        },
    )


def of_ours(load: Load) -> dict[str, Any]:
    switch_ms = [(end - begin) * 1e3 for begin, end in load.switches]
    return {
        **_common(load),
        "gap_ms": percentiles_ms(load.gaps),
        "switch_gap_ms": percentiles_ms(load.gaps_at_switches()),
        "answered_after_ms": round(statistics.median(switch_ms), 1) if switch_ms else None,
        "failures": sorted(set(load.failures)),
    }


def of_long_waits(load: Load, allowed_ms: float) -> dict[str, Any]:
    """How often streams waited for longer than is allowed, with switches or without."""
    moments = load.moments_above(allowed_ms / 1e3)
    return {"moments": moments, "per_minute": round(60 * moments / load.seconds, 2) if load.seconds else 0.0}


def of_rival(way: str, load: Load, proxy: RestartingProxy) -> dict[str, Any]:
    first_tokens = [stream.pieces[0].at - stream.sent for stream in load.streams if stream.pieces]
    held = sorted(first_tokens, reverse=True)[: proxy.n_delayed]
    return {
        **_common(load),
        "delayed": proxy.n_delayed,
        "gap_ms": percentiles_ms(load.gaps),
        "switch_gap_ms": percentiles_ms(load.resumed_gaps if way == "cut" else held),
        "restart_seconds": [round(seconds, 2) for seconds in proxy.restart_seconds],
    }


def _common(load: Load) -> dict[str, Any]:
    n_tokens = sum(len(stream.pieces) for stream in load.streams)
    return {
        "switches": len(load.switches),
        "requests": len(load.streams),
        "failed": len(load.failures),
        "tokens_per_second": round(n_tokens / load.seconds, 1) if load.seconds else 0.0,
    }


if __name__ == "__main__":
    main()
