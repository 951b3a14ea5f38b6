"""Claim: a node of a cluster may be killed again and again, and every request completes.

    sudo .venv/bin/python -m benchmarks.node_kills [--kills 20] [--way kill|cut|slow]

Two nodes in network namespaces and the coordinator have a third of the layers each, and eight greedy streams write, a
new one whenever one ends.  Then, again and again, one node after the other: its process is killed (SIGKILL), or its
link is cut, or carries so little that its layers are better elsewhere.  Recovery is the time until another engine runs
without the node, and every stream that was writing has its next token from it.  The node is started again (mended),
and the next is disturbed when all layers are where they were.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks import clients, servers
from benchmarks.clients import Prompts, Stream
from benchmarks.common import record, spread, table
from benchmarks.stores import stock_store, work_folder
from tests.testbed.bed import NodeSpec, TestBed

MIX, LAYERS = "Q4_K_M", "coordinator=0-9,one=10-19,two=20-29"
N_CTX, N_STREAMS, PROMPT_CHARACTERS = 1024, 8, 120
RATE_BITS, SLOW_BITS = 1_000_000_000, 3_000_000
"""Of a link.  A step of eight streams takes 50 ms each way at the lower one."""
LINKS_SECONDS = {"kill": 3600, "cut": 3600, "slow": 10}
"""From one measurement of the links to the next: each takes half a second of what the streams could use."""
GAIN = 1.0
"""For a move that is only better; round trips under load look longer than they were before it."""
POLL_SECONDS = 0.02
LONGEST_SECONDS = 180.0


@dataclass(slots=True)
class Load:
    """Streams that write all the time.

    Attributes:
        running: those that write now.
        ended: all others.
    """

    port: int
    n_tokens: int
    running: list[Stream] = field(default_factory=list)
    ended: list[Stream] = field(default_factory=list)
    is_over: bool = False

    async def write(self, prompts: Prompts) -> None:
        """One place: a stream, and then the next."""
        while not self.is_over:
            stream = Stream(self.port, prompts.next(PROMPT_CHARACTERS), self.n_tokens)
            self.running.append(stream)
            await stream.run()
            self.running.remove(stream)
            self.ended.append(stream)

    @property
    def incomplete(self) -> list[str]:
        return [s.failed or f"{s.n_tokens} tokens" for s in self.ended if s.failed or s.n_tokens != self.n_tokens]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=300, help="of each stream")
    parser.add_argument("--way", choices=("kill", "cut", "slow"), default="kill")
    parser.add_argument("--work", type=Path, help="folder in which the store is kept for the next time")
    args = parser.parse_args()
    with work_folder(args.work) as folder:
        store = stock_store("smollm2", (MIX,), folder / "store")
        with work_folder(None) as place, TestBed(place) as bed:
            for name in ("one", "two"):
                bed.add(NodeSpec(name, rate_bits=RATE_BITS))
            with serving(bed, store.path, args) as (process, port):
                found = asyncio.run(measure(bed, port, args))
                found["front_died"] = process.poll() is not None
    report(args, found)


@contextlib.contextmanager
def serving(bed: TestBed, store: Path, args: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """``lamella cluster serve``: its process and its port."""
    port, log = servers.free_port(), bed.path / "serve.log"
    command = [
        sys.executable, "-m", "lamella", "cluster", "serve", f"{store}@{MIX}", "--folder", str(bed.cluster.path),
        "--layers", LAYERS, "--port", str(port), "--context", str(N_CTX), "--sequences", str(N_STREAMS),
        "--hold", "1", "--gain", str(GAIN), "--moves", str(4 * args.kills + 4), "--links", str(LINKS_SECONDS[args.way]),
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        servers.wait_until_ready(process, command, port, "/ready", log)
        yield process, port
    finally:
        process.terminate()
        process.wait(30)


async def measure(bed: TestBed, port: int, args: argparse.Namespace) -> dict[str, Any]:
    """Disturb one node after the other; what came of it."""
    load, prompts = Load(port, args.tokens), Prompts(0)
    async with clients.admin(port) as client:
        writing = [asyncio.create_task(load.write(prompts)) for _ in range(N_STREAMS)]
        recoveries, returns = [], []
        for i in range(args.kills):
            name = ("one", "two")[i % 2]
            await go_on(load)
            before, start = (await clients.status(client))["engine_restarts"], time.perf_counter()
            await asyncio.to_thread(disturb, bed, name, args.way)
            await left(client, name, before)
            recoveries.append(await go_on(load) - start)
            print(f"{i + 1}: node '{name}', {recoveries[-1]:.2f} s", file=sys.stderr)
            await asyncio.to_thread(mend, bed, name, args.way)
            mended = time.perf_counter()
            await at_home(client)
            returns.append(time.perf_counter() - mended)
        await go_on(load)
        load.is_over = True
        await asyncio.gather(*writing)
        status = await clients.status(client)
    return {
        "requests": len(load.ended),
        "incomplete": load.incomplete,
        "recovery_seconds": spread(recoveries),
        "return_seconds": spread(returns),
        "moves": status["cluster"]["n_moves"],
        "engine_restarts": status["engine_restarts"],
    }


def disturb(bed: TestBed, name: str, way: str) -> None:
    """What is done to a node."""
    machine = bed.network.machines[name]
    if way == "kill":
        bed.stop(name, signal.SIGKILL)
    elif way == "cut":
        bed.network.cut(machine)
    else:
        bed.network.limit(machine, SLOW_BITS)


def mend(bed: TestBed, name: str, way: str) -> None:
    """And undone."""
    machine = bed.network.machines[name]
    if way == "kill":
        bed.start_again(name)
    elif way == "cut":
        bed.network.mend(machine)
    else:
        bed.network.limit(machine, RATE_BITS)


async def left(client: httpx.AsyncClient, name: str, n_restarts: int) -> None:
    """Wait until the engine that had layers on a node has ended: until then tokens may come that it computed."""
    deadline = time.perf_counter() + LONGEST_SECONDS
    while (status := await clients.status(client))["engine_restarts"] == n_restarts:
        if time.perf_counter() > deadline:
            raise SystemExit(f"node '{name}' was not left within {LONGEST_SECONDS:g} s: {status['cluster']}")
        await asyncio.sleep(POLL_SECONDS)


async def go_on(load: Load) -> float:
    """Wait until every stream that writes now has another token, or has ended; the moment when that was so."""
    counts = {id(stream): (stream, len(stream.pieces)) for stream in load.running}
    deadline = time.perf_counter() + LONGEST_SECONDS
    while any(len(s.pieces) == n and s in load.running for s, n in counts.values()):
        if time.perf_counter() > deadline:
            raise SystemExit(f"streams did not go on within {LONGEST_SECONDS:g} s")
        await asyncio.sleep(POLL_SECONDS)
    return time.perf_counter()


async def at_home(client: httpx.AsyncClient) -> None:
    """Wait until all layers are where they were at first, and an engine answers."""
    deadline = time.perf_counter() + LONGEST_SECONDS
    while True:
        status = await clients.status(client)
        cluster = status["cluster"]
        found = ",".join(f"{at['node']}={at['first']}-{at['last']}" for at in cluster["layers"])
        if status["ready"] and cluster["state"] == "placed" and found == LAYERS and not cluster["away"]:
            return
        if time.perf_counter() > deadline:
            raise SystemExit(f"layers did not come back within {LONGEST_SECONDS:g} s: {cluster}")
        await asyncio.sleep(POLL_SECONDS)


def report(args: argparse.Namespace, found: dict[str, Any]) -> None:
    recovery = found["recovery_seconds"]
    table([
        ["way", "times", "requests", "incomplete", "recovery s", "longest s", "front died"],
        [args.way, args.kills, found["requests"], len(found["incomplete"]), recovery["median"], recovery["max"],
         found["front_died"]],
    ])  # fmt: skip
    settings = {"model": "smollm2", "mix": MIX, "layers": LAYERS, "streams": N_STREAMS, "tokens": args.tokens}
    record(f"node_kills-{args.way}", {**settings, "kills": args.kills, **found})


if __name__ == "__main__":
    main()
