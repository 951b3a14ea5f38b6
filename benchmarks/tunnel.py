"""What the tunnel costs: time for each token through it, against plain RPC on loopback.

    python -m benchmarks.tunnel STORE@VARIANT [--tokens 48] [--rounds 6]

One engine computes over an RPC server that it is connected with directly, another over a node: both servers are
processes of this machine with as many threads, and all layers are there.  They take turns, so that whatever else the
machine does hits both.  The node is ``lamella node``, the coordinator's side a process of its own, as in use.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.common import record, spread
from lamella.cluster.dialling import Dialler
from lamella.cluster.folder import ClusterFolder
from lamella.cluster.forwarding import Forwarder
from lamella.cluster.joining import JoinServer
from lamella.llama import rpc
from lamella.llama.context import ContextOptions
from lamella.run.engine import Engine, EngineOptions
from lamella.store.store import Store

PROMPT = list(range(300, 316))
GOAL = 0.10


def compute(endpoint: str, folder: str, variant: str, pipe: Connection) -> None:
    """An engine process: told how many tokens to write, answers with the milliseconds of each."""
    (device,) = rpc.connect(endpoint)
    options = EngineOptions(ContextOptions(n_ctx=256, n_threads=1), layout="mapped", device=device)
    with Engine.open(Store.open(Path(folder)), variant, options) as engine:
        pipe.send(True)
        while n_tokens := pipe.recv():
            generation = engine.generate(PROMPT, max_tokens=n_tokens + 1)
            times = [token.seconds for token in generation if token.id >= 0]
            pipe.send([1e3 * seconds for seconds in times[1:]])


def forward(cluster: str, node: str, pipe: Connection) -> None:
    """The coordinator's side of the tunnel, until the other end of the pipe closes."""

    async def main() -> None:
        async with Dialler(ClusterFolder.open(Path(cluster))) as dialler, Forwarder(dialler, node) as forwarder:
            await forwarder.ready(60)
            pipe.send(forwarder.endpoint)
            await asyncio.to_thread(pipe.recv)
            pipe.send((forwarder.traffic.sent_bytes, forwarder.traffic.received_bytes))

    import uvloop

    uvloop.run(main())


@contextlib.contextmanager
def process(work: Any, *arguments: Any) -> Iterator[Connection]:
    """A function in a process of its own, at the other end of a pipe."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=work, args=(*arguments, theirs))
    child.start()
    try:
        yield ours
    finally:
        child.kill()
        child.join()


@contextlib.contextmanager
def plain_server(n_threads: int) -> Iterator[str]:
    """An RPC server as nodes have it, without a node."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "lamella.cluster.rpc_process", str(port), str(n_threads)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as child:
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
        child.kill()


@contextlib.contextmanager
def node(folder: Path, n_threads: int) -> Iterator[Path]:
    """A node that has joined; yields the cluster's folder."""
    cluster = ClusterFolder.create(folder / "cluster")

    async def join() -> subprocess.Popen[str]:
        async with JoinServer(cluster, "127.0.0.1", 0) as server:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                listen = f"127.0.0.1:{probe.getsockname()[1]}"
            command = [sys.executable, "-m", "lamella", "node", "--listen", listen, "--folder", str(folder / "node")]
            command += ["--threads", str(n_threads), "--join", cluster.invite("node", server.address, 60).token]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert child.stdout is not None
            await asyncio.to_thread(child.stdout.readline)
            return child

    child = asyncio.run(join())
    try:
        yield cluster.path
    finally:
        child.terminate()
        child.wait()


def measure(target: str, n_tokens: int, n_rounds: int, n_threads: int) -> dict[str, Any]:
    """Milliseconds for each token, direct and through the tunnel, by turns."""
    store, _, variant = target.partition("@")
    with contextlib.ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        direct = stack.enter_context(plain_server(n_threads))
        cluster = stack.enter_context(node(path, n_threads))
        forwarding = stack.enter_context(process(forward, str(cluster), "node"))
        endpoints = {"plain": direct, "tunnel": forwarding.recv()}
        engines = {n: stack.enter_context(process(compute, e, store, variant)) for n, e in endpoints.items()}
        for engine in engines.values():
            engine.recv()
        medians: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(n_rounds + 1):
            for name, engine in engines.items() if number % 2 else reversed(engines.items()):
                engine.send(n_tokens)
                times = engine.recv()
                if number:  # the first round warms up
                    medians[name].append(statistics.median(times))
        forwarding.send(None)
        sent, received = forwarding.recv()
    plain, tunnel = statistics.median(medians["plain"]), statistics.median(medians["tunnel"])
    return {
        "store": target,
        "tokens": n_tokens,
        "threads": n_threads,
        "plain_ms": spread(medians["plain"]),
        "tunnel_ms": spread(medians["tunnel"]),
        "overhead": round(tunnel / plain - 1, 4),
        "goal": GOAL,
        "sent_bytes": sent,
        "received_bytes": received,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="STORE@VARIANT")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="tunnel", help="of the record in benchmarks/results")
    given = parser.parse_args()
    record(given.name, measure(given.target, given.tokens, given.rounds, given.threads))


if __name__ == "__main__":
    main()
