"""Claim: a server beside which another process takes the memory steps down and loses no request.

    .venv/bin/python -m benchmarks.squeeze [--model smollm2] [--runs 10] [--ways steered,static,private]

Server and hog share a control group whose limit leaves ``SPARE_BYTES`` to what the server takes at its highest variant.
The hog takes memory step by step, until as much is gone as the lowest variant can do without.  Clients ask meanwhile.
Three ways, a fresh server for each run:

    steered   ``lamella serve`` with policy ``predictive``: memory decides, since nothing breaks what is promised
    static    the same with ``static``: the highest variant, mapped: the kernel takes its pages, and reads them anew
    private   llama-server with the highest variant in memory of its own (``--load-mode none``): none can be taken

A request is lost if it fails or is not answered within ``PATIENCE_SECONDS``.  Reported: lost requests, processes that
the kernel killed, and what changed.  A run during which this program itself was stopped for seconds is repeated.
Needs the right to make control groups; no figure is a time.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks import clients, rival, servers
from benchmarks.common import record, table
from benchmarks.memory_group import MemoryGroup, memory_group, missing
from benchmarks.stores import stock_store, work_folder
from lamella import api
from lamella.batching.settings import EngineSettings
from lamella.core.units import MIB
from lamella.llama.pages import drop_from_cache
from lamella.qos.policies.constraints import RESERVE_BYTES
from lamella.qos.profiling.points import Points
from lamella.store.store import Store

MIXES = ("F16", "Q8_0", "Q4_0")
WAYS = ("steered", "static", "private")
N_CTX, N_SEQUENCES, N_CLIENTS, N_TOKENS = 512, 4, 2, 24
SPARE_BYTES = 128 * MIB
LEFT_BYTES = 24 * MIB
"""Beyond the reserve of the policies, what the hog leaves when the lowest variant runs."""
BLOCK_MIB, BLOCK_SECONDS = 4, 0.125
HOG = """
import sys, time
taken = []
for _ in range(int(sys.argv[1])):
    taken.append(bytearray(b"x" * (int(sys.argv[2]) << 20)))
    time.sleep(float(sys.argv[3]))
print("full", flush=True)
sys.stdin.read()
"""
HOLD_SECONDS = 5.0
"""How long clients ask on when the hog has all."""
PATIENCE_SECONDS = 30.0
STOPPED_SECONDS = 4.0
POLL_SECONDS = 0.2
PROMPT = "Once upon a time"
FEW_POINTS = Points(prompts=(16,), sequences=(1,), deep=64, mixed=(), n_steps=4, repeats=1)
"""Memory decides; how fast variants are does not."""


@dataclass(slots=True)
class Run:
    """What came of one run.

    Attributes:
        answers: requests that were answered in time.
        lost: why the others were not.
        n_killed: processes that the kernel killed, the hog among them.
        changes: (before, after) of the changes that happened; ``failures`` of those that did not.
        engine_restarts: of our server.
        longest_seconds: of an answer.
        used_bytes: of the group: at the start, at its end, and the limit.
        was_stopped: this program itself stood still meanwhile.
        began_at: variant that ran before anything was taken; one that is not the highest has less to give.
    """

    answers: int = 0
    lost: list[str] = field(default_factory=list)
    n_killed: int = 0
    changes: list[tuple[str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    engine_restarts: int = 0
    longest_seconds: float = 0.0
    used_bytes: tuple[int, int, int] = (0, 0, 0)
    was_stopped: bool = False
    began_at: str = ""


@dataclass(frozen=True, slots=True)
class Bench:
    """What all runs share."""

    store: Store
    folder: Path
    profile_file: Path
    hog_bytes: int

    @property
    def highest(self) -> str:
        return MIXES[0]


def main() -> None:
    args = _arguments()
    if why := missing():
        raise SystemExit(why)
    with work_folder(args.work) as folder:
        bench = prepared(args.model, folder)
        ways: dict[str, list[Run]] = {name: [] for name in args.ways.split(",")}
        n_stopped = 0
        others = args.runs if args.other_runs is None else args.other_runs
        for number in range(max(args.runs, others)):
            for name, runs in ways.items():
                if number >= (args.runs if name == "steered" else others):
                    continue
                while (run := squeezed(name, bench)).was_stopped:
                    n_stopped += 1
                runs.append(run)
                print(f"{number + 1} {name}: {_line(run)}", flush=True)
    report(args.model, bench, ways, n_stopped)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--other-runs", type=int, help="of the ways beside steered; default: as many")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--work", type=Path, help="folder in which store and profile are kept for the next time")
    return parser.parse_args()


def prepared(model: str, folder: Path) -> Bench:
    """Store and profile, made where they are missing."""
    store = stock_store(model, MIXES, folder / f"store-{model}")
    settings = EngineSettings(store=str(store.path), n_ctx=N_CTX, n_sequences=N_SEQUENCES, n_threads=1)
    path = folder / f"profile-{model}.json"
    api.profile(settings, MIXES, out=path, cache_folder=folder, points=FEW_POINTS)
    sizes = [store.variant(name).n_bytes for name in (MIXES[0], MIXES[-1])]
    return Bench(store, folder, path, SPARE_BYTES + sizes[0] - sizes[1] - RESERVE_BYTES - LEFT_BYTES)


# --- one run ---------------------------------------------------------------------------------------------------------


def squeezed(way: str, bench: Bench) -> Run:
    """A fresh server, squeezed once."""
    _drop_pages(bench)  # they count for the group that reads them first
    with memory_group() as group, _serving(way, bench, group) as port:
        return asyncio.run(_squeeze(way, bench, group, port))


def _drop_pages(bench: Bench) -> None:
    """Of shards, but for those that somebody has mapped."""
    for shard in (bench.store.path / "shards").rglob("*.gguf"):
        drop_from_cache(shard)


@contextlib.contextmanager
def _serving(way: str, bench: Bench, group: MemoryGroup) -> Iterator[int]:
    """The port of a server in the group."""
    port, log = servers.free_port(), bench.folder / f"{way}.log"
    command = group.inside(_command(way, bench, port))
    ready = "/health" if way == "private" else "/ready"
    environment = {**os.environ, "LAMELLA_THREADS": "1"}  # threads that wait for one another spin; cores may be shared
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        servers.wait_until_ready(process, command, port, ready, log)
        yield port
    finally:
        process.kill()  # one that waits for memory would take its time to end
        process.wait()


def _command(way: str, bench: Bench, port: int) -> list[object]:
    if way == "private":
        file = bench.store.first_link(bench.highest)
        sizes = ["-c", N_CTX * N_SEQUENCES, "-np", N_SEQUENCES, "-t", 1]
        return [rival.tool("llama-server"), "-m", file, "--port", port, "--load-mode", "none", "--log-disable", *sizes]
    command = [sys.executable, "-m", "lamella", "serve", f"{bench.store.path}@{bench.highest}", "--port", port]
    command += ["--context", N_CTX, "--sequences", N_SEQUENCES, "--profile", bench.profile_file]
    policy = {"steered": "predictive", "static": f"static:{bench.highest}"}[way]
    return [*command, "--token-p95", 1000 * 1000, "--policy", policy]


async def _squeeze(way: str, bench: Bench, group: MemoryGroup, port: int) -> Run:
    run = Run()
    await clients.write_all(port, [PROMPT] * N_CLIENTS, N_TOKENS)
    _drop_pages(bench)  # what was read once and copied would be given back first
    start = group.counts().used
    group.limit(start + SPARE_BYTES)
    run.began_at = bench.highest if way == "private" else await _variant(port)
    stop, watching = asyncio.Event(), asyncio.create_task(_watch_the_clock(run))
    asking = [asyncio.create_task(_ask(port, stop, run)) for _ in range(N_CLIENTS)]
    with _hog(bench, group) as hog:
        await _until_full(hog)
        await asyncio.sleep(HOLD_SECONDS)
        stop.set()
        await asyncio.gather(*asking)
        run.used_bytes = (start, group.counts().used, start + SPARE_BYTES)
        if way != "private":
            await _look_back(port, run)
    watching.cancel()
    run.n_killed = group.n_killed
    return run


async def _watch_the_clock(run: Run) -> None:
    """Note whether this program was stopped: then patience was lost to something else."""
    while True:
        before = time.monotonic()
        await asyncio.sleep(POLL_SECONDS)
        run.was_stopped |= time.monotonic() - before > STOPPED_SECONDS


async def _ask(port: int, stop: asyncio.Event, run: Run) -> None:
    """One request after the other; a client whose request was lost comes back after a while."""
    while not stop.is_set():
        stream, sent = clients.Stream(port, PROMPT, N_TOKENS), time.monotonic()
        try:
            await asyncio.wait_for(stream.run(), PATIENCE_SECONDS)
        except TimeoutError:
            stream.failed = f"no answer within {PATIENCE_SECONDS:g} s"
        if stream.failed:
            run.lost.append(stream.failed)
            await asyncio.sleep(1.0)
        else:
            run.answers += 1
            run.longest_seconds = max(run.longest_seconds, time.monotonic() - sent)


@contextlib.contextmanager
def _hog(bench: Bench, group: MemoryGroup) -> Iterator[subprocess.Popen[bytes]]:
    n_blocks = bench.hog_bytes // (BLOCK_MIB * MIB)
    command = group.inside([sys.executable, "-c", HOG, n_blocks, BLOCK_MIB, BLOCK_SECONDS])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hog:
        try:
            yield hog
        finally:
            hog.kill()


async def _until_full(hog: subprocess.Popen[bytes]) -> None:
    """Until it has all, or was killed."""
    assert hog.stdout is not None
    await asyncio.to_thread(hog.stdout.readline)


async def _variant(port: int) -> str:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS) as client:
        return str((await clients.status(client))["status"]["variant"])


async def _look_back(port: int, run: Run) -> None:
    """What our server decided; nothing where it does not answer any more."""
    with contextlib.suppress(httpx.HTTPError):
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS) as client:
            decisions = (await client.get("/admin/decisions")).json()["decisions"]
            run.changes = [(d["from"], d["to"]) for d in decisions if not d["failure"]]
            run.failures = [d["failure"] for d in decisions if d["failure"]]
            run.engine_restarts = (await clients.status(client))["engine_restarts"]


# --- what came of it -------------------------------------------------------------------------------------------------


def _line(run: Run) -> str:
    path = " -> ".join([run.changes[0][0], *(after for _, after in run.changes)]) if run.changes else "no change"
    used = " / ".join(f"{n / MIB:.0f}" for n in run.used_bytes)
    return (
        f"from {run.began_at}: {run.answers} answers, {len(run.lost)} lost, {run.n_killed} killed; {path}; {used} MiB"
    )


def report(model: str, bench: Bench, ways: dict[str, list[Run]], n_stopped: int) -> None:
    found = {name: _figures(runs) for name, runs in ways.items()}
    rows: list[Sequence[object]] = [["way", "runs", "answers", "lost", "runs that lost", "killed", "longest s"]]
    rows += [
        [name, f["runs"], f["answers"], f["lost"], f["runs_that_lost"], f["killed"], f["longest_seconds"]]
        for name, f in found.items()
    ]
    table(rows)
    terms: dict[str, Any] = {
        "model": model,
        "mixes": list(MIXES),
        "spare_mib": SPARE_BYTES // MIB,
        "hog_mib": bench.hog_bytes // MIB,
        "patience_seconds": PATIENCE_SECONDS,
        "repeated_because_stopped": n_stopped,
    }
    steered = found.get("steered", {})
    record(f"squeeze-{model}", {**terms, "lost": steered.get("lost"), "killed": steered.get("killed"), "ways": found})


def _figures(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "runs": len(runs),
        "answers": sum(run.answers for run in runs),
        "lost": sum(len(run.lost) for run in runs),
        "runs_that_lost": sum(bool(run.lost) for run in runs),
        "why": dict(Counter(why for run in runs for why in run.lost)),
        "killed": sum(run.n_killed for run in runs),
        "runs_with_a_kill": sum(bool(run.n_killed) for run in runs),
        "engine_restarts": sum(run.engine_restarts for run in runs),
        "longest_seconds": round(max(run.longest_seconds for run in runs), 2),
        "changes": [[list(change) for change in run.changes] for run in runs],
        "failed_changes": [why for run in runs for why in run.failures],
        "began_at": [run.began_at for run in runs],
        "used_mib": [[round(n / MIB) for n in run.used_bytes] for run in runs],
    }


if __name__ == "__main__":
    main()
