"""Claim: the engine may be killed again and again, and every stream ends as if nothing had happened.

    .venv/bin/python -m benchmarks.serve_kills [--model smollm2] [--kills 20] [--as-default]

Sixteen greedy streams write, and the engine process is killed (SIGKILL) whenever they have come a further share of
their way, so that each kill meets running streams.  Their answers are compared with those of the same requests before,
undisturbed, and those with a second undisturbed run.  The server runs with ``--reproducible``; ``--as-default`` leaves
that away, and the second run then shows what rounding alone does (``sameness.py``).  Reported too: whether the front
stayed the same process, and how long it took after each kill until some stream had its next token and until every
stream that was writing had.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks import clients, sameness, servers
from benchmarks.clients import Prompts, Stream, write_all
from benchmarks.common import record, spread, table
from benchmarks.stores import stock_store, work_folder

MIX = "Q4_K_M"
N_CTX, N_STREAMS, PROMPT_CHARACTERS = 1024, 16, 120
POLL_SECONDS = 0.005
LONGEST_RECOVERY_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """Seconds after a kill until the first, and the last, of the streams that were writing had its next token."""

    first: float
    last: float


@dataclass(frozen=True, slots=True)
class Killed:
    """The disturbed run: its streams, and of each kill the recovery and the front's process number."""

    streams: list[Stream]
    recoveries: list[Recovery]
    fronts: list[int]
    engine_restarts: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=400, help="of each stream")
    parser.add_argument("--as-default", action="store_true", help="without --reproducible: answers depend on batches")
    parser.add_argument("--work", type=Path, help="folder in which the store is kept for the next time")
    args = parser.parse_args()
    with work_folder(args.work) as folder:
        store = stock_store(args.model, (MIX,), folder / "store")
        sizes = {"n_ctx": N_CTX, "n_sequences": N_STREAMS}
        options = () if args.as_default else ("--reproducible",)
        with servers.ours(store.path, MIX, *options, log=folder / "ours.log", **sizes) as port:
            undisturbed, again, killed = asyncio.run(measure(port, args.tokens, args.kills))
    report(args.model, not args.as_default, undisturbed, again, killed)


async def measure(port: int, n_tokens: int, n_kills: int) -> tuple[list[Stream], list[Stream], Killed]:
    """The same requests twice undisturbed, and once under kills."""
    prompts = Prompts(0).several(N_STREAMS, PROMPT_CHARACTERS)
    undisturbed = await write_all(port, prompts, n_tokens, **sameness.FIELDS)
    again = await write_all(port, prompts, n_tokens, **sameness.FIELDS)
    streams = [Stream(port, prompt, n_tokens, **sameness.FIELDS) for prompt in prompts]
    async with clients.admin(port) as client:
        before = (await clients.status(client))["engine_restarts"]
        writing = asyncio.gather(*(stream.run() for stream in streams))
        recoveries, fronts = [], [front_of(await engine_of(client))]
        for i in range(n_kills):
            share = (i + 1) / (n_kills + 1)
            await reached(streams, round(share * N_STREAMS * n_tokens))
            engine = await engine_of(client)
            recoveries.append(await kill_and_recover(engine, streams, n_tokens))
            fronts.append(front_of(await engine_of(client)))
        await writing
        restarts = (await clients.status(client))["engine_restarts"] - before
    return undisturbed, again, Killed(streams, recoveries, fronts, restarts)


async def engine_of(client: httpx.AsyncClient) -> int:
    """Number of the engine's process."""
    return int((await clients.status(client))["engine"]["pid"])


def front_of(engine: int) -> int:
    """Number of the process that started it."""
    return psutil.Process(engine).ppid()


async def reached(streams: list[Stream], n_pieces: int) -> None:
    """Wait until the streams have come so far together."""
    while sum(len(stream.pieces) for stream in streams) < n_pieces:
        await asyncio.sleep(POLL_SECONDS)


async def kill_and_recover(engine: int, streams: list[Stream], n_tokens: int) -> Recovery:
    """Kill the engine, and wait until every stream that was writing goes on."""
    os.kill(engine, signal.SIGKILL)
    killed_at = time.perf_counter()
    while psutil.pid_exists(engine):  # until its front has buried it, tokens that it wrote may still come
        await asyncio.sleep(POLL_SECONDS)
    counts = {stream: len(stream.pieces) for stream in streams if len(stream.pieces) < n_tokens}
    first = last = 0.0
    waiting = set(counts)
    while waiting:
        went_on = {s for s in waiting if len(s.pieces) > counts[s] or s.failed}
        now = time.perf_counter() - killed_at
        first = first or (now if went_on else 0.0)
        last = now if went_on else last
        waiting -= went_on
        if now > LONGEST_RECOVERY_SECONDS:
            raise SystemExit(f"{len(waiting)} streams did not go on within {now:.0f} s of a kill")
        await asyncio.sleep(POLL_SECONDS)
    return Recovery(first, last)


def report(model: str, is_reproducible: bool, undisturbed: list[Stream], again: list[Stream], killed: Killed) -> None:
    n_tokens = max(stream.n_tokens for stream in undisturbed)
    incomplete = [s.failed or f"{s.n_tokens} tokens" for s in killed.streams if s.failed or s.n_tokens != n_tokens]
    answers = sameness.compare(undisturbed, killed.streams)
    control = sameness.compare(undisturbed, again)
    firsts, lasts = [r.first for r in killed.recoveries], [r.last for r in killed.recoveries]
    rows: list[list[object]] = [
        ["kills", "streams", "incomplete", "differ", "near-ties", "differ undisturbed", "first s", "all s"],
        [len(killed.recoveries), len(killed.streams), len(incomplete), answers["differing"], answers["near_ties"],
         control["differing"], statistics.median(firsts), statistics.median(lasts)],
    ]  # fmt: skip
    table(rows)
    result: dict[str, Any] = {
        "model": model,
        "mix": MIX,
        "reproducible": is_reproducible,
        "tokens": n_tokens,
        "kills": len(killed.recoveries),
        "engine_restarts": killed.engine_restarts,
        "front_restarts": len(set(killed.fronts)) - 1,
        "incomplete": incomplete,
        "differing": answers["differing"],
        "near_ties": answers["near_ties"],
        "answers": answers,
        "control_undisturbed": control,
        "first_token_seconds": spread(firsts),
        "all_streams_seconds": spread(lasts),
    }
    record(f"serve_kills-{model}", result)


if __name__ == "__main__":
    main()
