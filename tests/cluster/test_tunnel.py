"""llama.cpp's RPC through the tunnel: the same numbers, weights that need not travel, what happens when a side goes."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lamella.cluster import passes, rpc_server
from lamella.cluster.bringing import bring
from lamella.cluster.forwarding import Forwarder
from lamella.cluster.messages import Ready, UseRpc
from lamella.cluster.passes import measure_pass
from lamella.cluster.rpc_server import RpcServer
from lamella.core.errors import RemoteFailed
from lamella.llama import library, rpc
from lamella.llama.context import ContextOptions
from lamella.run.engine import Engine, EngineOptions
from lamella.serving.restarts import RestartLimits
from lamella.store.store import Store
from tests.cluster.conftest import TestBed
from tests.cluster.test_node import LIMIT_SECONDS, Run, layer_shards
from tests.cluster.test_shard_cache import damage, set_known_tensor

TOKENS = [1, 300, 301, 302, 303, 304]
OPTIONS = EngineOptions(ContextOptions(n_ctx=128, n_batch=64, n_threads=1), layout="mapped")

pytestmark = pytest.mark.skipif(
    not library.supports_rpc(), reason="llama.cpp was built without its RPC backend (CMAKE_ARGS=-DGGML_RPC=ON)"
)


def _logits(endpoint: str, folder: Path) -> Any:
    """In a process of its own: of a model whose layers all are on the RPC device."""
    (device,) = rpc.connect(endpoint)
    with Engine.open(Store.open(folder), "large", replace(OPTIONS, device=device)) as engine:
        return engine.logits(TOKENS)


def _hold(endpoint: str, folder: Path, ready: Any) -> None:
    """Compute until the process dies of it."""
    (device,) = rpc.connect(endpoint)
    with Engine.open(Store.open(folder), "large", replace(OPTIONS, device=device)) as engine:
        engine.logits(TOKENS)
        ready.set()
        while True:
            engine.logits(TOKENS)


async def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a process of its own, beside the event loop."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *arguments)


@contextlib.asynccontextmanager
async def engine_in(endpoint: str, folder: Path) -> AsyncIterator[Any]:
    """A process that computes over the tunnel until it is killed, or dies."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(endpoint, folder, ready))
    process.start()
    try:
        assert await asyncio.to_thread(ready.wait, 500)
        yield process
    finally:
        process.kill()
        await asyncio.to_thread(process.join)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it is so; an error where it never is."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


def test_logits_through_the_tunnel_equal_those_of_the_cpu(run: Run, store_folder: Path) -> None:
    async def test(bed: TestBed) -> Any:
        async with bed.node("laptop"), Forwarder(bed.dialler, "laptop") as forwarder:
            return await apart(_logits, forwarder.endpoint, store_folder)

    with Engine.open(Store.open(store_folder), "large", OPTIONS) as local:
        np.testing.assert_allclose(run(test), local.logits(TOKENS), atol=0.05)


def test_what_a_pass_costs_is_measured_over_a_session_that_ends(run: Run) -> None:
    async def test(bed: TestBed) -> float:
        async with bed.node("laptop") as agent:
            seconds = await measure_pass(bed.dialler, "laptop", 64)
            await until(lambda: not agent.sessions)
            return seconds

    assert 1e-4 < run(test) < 1.0


def test_a_pass_over_a_node_that_is_away_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "PASS_SECONDS", 0.2)

    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            pass
        with pytest.raises(RemoteFailed, match="laptop"):
            await measure_pass(bed.dialler, "laptop", 64)

    run(test)


def test_weights_that_the_node_has_do_not_travel(run: Run, store_folder: Path) -> None:
    store = Store.open(store_folder)
    large = layer_shards(store, "large")
    n_bytes = sum(shard.n_bytes for shard in large)

    async def compute(bed: TestBed) -> tuple[Any, int, int]:
        async with Forwarder(bed.dialler, "laptop", shards=large) as forwarder:
            logits = await apart(_logits, forwarder.endpoint, store_folder)
            return logits, forwarder.traffic.saved_bytes, forwarder.traffic.sent_bytes

    async def test(bed: TestBed) -> None:
        async with bed.node("laptop"):
            before, saved, sent = await compute(bed)
            assert saved == 0
            assert sent > n_bytes
            await bring(bed.dialler, "laptop", store, large)
            after, saved, less_sent = await compute(bed)
            assert saved > 0.9 * n_bytes
            assert less_sent < sent - 0.9 * n_bytes
            np.testing.assert_array_equal(before, after)

    run(test)


def test_a_session_ends_with_its_coordinator_and_leaves_no_process(run: Run) -> None:
    async def test(bed: TestBed) -> None:
        async with bed.node("laptop") as agent:
            async with Forwarder(bed.dialler, "laptop") as forwarder:
                await forwarder.ready(LIMIT_SECONDS)
                (session,) = agent.sessions.values()
                (await session.server.connect()).close()
                pid = session.server.pid
                assert pid is not None
            await until(lambda: not agent.sessions)
            await until(lambda: session.server.pid is None)
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    run(test)


def test_a_server_that_is_closed_while_it_starts_leaves_no_process() -> None:
    async def main() -> None:
        server = RpcServer(1)
        connecting = asyncio.create_task(server.connect())
        await asyncio.sleep(0)  # it has begun to start
        await server.close()
        assert server.pid is None
        with pytest.raises(RemoteFailed, match="has ended"):
            await connecting
        with pytest.raises(RemoteFailed, match="has ended"):
            await server.connect()

    asyncio.run(main())


def test_a_server_that_died_at_once_was_of_no_use_however_late_that_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_server, "RPC_COMMAND", (sys.executable, "-c", ""))
    monkeypatch.setattr(rpc_server, "FRUITFUL_SECONDS", 600.0)
    monkeypatch.setattr(rpc_server, "START_SECONDS", 0.0)
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600)

    async def main() -> None:
        server = RpcServer(1, RestartLimits(n_fruitless=0))
        with pytest.raises(RemoteFailed, match="does not listen"):
            await server.connect()
        assert server._reader is not None
        await server._reader  # to its end
        monkeypatch.setattr(rpc_server, "time", later)
        with pytest.raises(RemoteFailed, match="no RPC server can be kept up"):
            await server.connect()
        await server.close()

    asyncio.run(main())


def test_an_rpc_server_that_says_much_in_one_line_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its output is read on: with a full pipe it would never come to listen."""
    talker = (
        "import socket, sys; sys.stdout.write('x' * (1 << 20) + '\\n' + 'y' * (1 << 20) + '\\n'); sys.stdout.flush(); "
        "socket.create_server(('127.0.0.1', int(sys.argv[1]))).accept(); sys.stdin.read()"
    )
    monkeypatch.setattr(rpc_server, "RPC_COMMAND", (sys.executable, "-c", talker))

    async def main() -> None:
        server = RpcServer(1)
        async with asyncio.timeout(LIMIT_SECONDS):
            (await server.connect()).close()
        await server.close()
        assert server.n_starts == 1

    asyncio.run(main())


def test_an_rpc_server_that_died_is_replaced_and_the_next_engine_works(run: Run, store_folder: Path) -> None:
    async def test(bed: TestBed) -> Any:
        async with bed.node("laptop") as agent, Forwarder(bed.dialler, "laptop") as forwarder:
            async with engine_in(forwarder.endpoint, store_folder) as process:
                (session,) = agent.sessions.values()
                os.kill(session.server.pid or 0, signal.SIGKILL)
                await until(lambda: not process.is_alive())  # llama.cpp aborts
            assert forwarder.is_up
            logits = await apart(_logits, forwarder.endpoint, store_folder)
            assert session.server.n_starts == 2
            return logits

    with Engine.open(Store.open(store_folder), "large", OPTIONS) as local:
        np.testing.assert_allclose(run(test), local.logits(TOKENS), atol=0.05)


def test_an_engine_waits_for_a_node_that_is_away(run: Run, store_folder: Path) -> None:
    async def test(bed: TestBed) -> Any:
        async with bed.node("laptop"):
            pass
        async with Forwarder(bed.dialler, "laptop") as forwarder:
            with pytest.raises(RemoteFailed, match="'laptop' does not answer"):
                await forwarder.ready(1)
            waiting = asyncio.create_task(apart(_logits, forwarder.endpoint, store_folder))
            await asyncio.sleep(1)
            assert not waiting.done()
            bed.folder.revoke("laptop")
            async with bed.node("laptop"):
                return await waiting

    with Engine.open(Store.open(store_folder), "large", OPTIONS) as local:
        np.testing.assert_allclose(run(test), local.logits(TOKENS), atol=0.05)


def test_revoking_a_node_cuts_its_open_connections(run: Run, store_folder: Path) -> None:
    async def test(bed: TestBed) -> float:
        async with bed.node("laptop") as agent, Forwarder(bed.dialler, "laptop") as forwarder:
            async with engine_in(forwarder.endpoint, store_folder) as process:
                bed.folder.revoke("laptop")
                start = asyncio.get_running_loop().time()
                await until(lambda: not process.is_alive())
                seconds = asyncio.get_running_loop().time() - start
            await until(lambda: not forwarder.is_up and not agent.sessions)
            await until(lambda: "no node is called 'laptop'" in forwarder.trouble)
            return seconds

    assert run(test) < 30  # a tenth of a second, but for what llama.cpp takes to notice it on a busy machine


def test_a_session_with_a_damaged_shard_ends_and_the_next_one_does_without(run: Run, store: Store) -> None:
    large = layer_shards(store, "large")

    async def test(bed: TestBed) -> None:
        async with bed.node("laptop") as agent, Forwarder(bed.dialler, "laptop", shards=large) as forwarder:
            await bring(bed.dialler, "laptop", store, large)
            forwarder.begin_again()
            await forwarder.ready(LIMIT_SECONDS)
            name = next(name for name, session in agent.sessions.items() if session.held.tensors)
            digest, found = next(iter(agent.sessions[name].held.tensors.items()))
            damage(found)
            channel, _ = await bed.dialler.ask("laptop", UseRpc(name), Ready, LIMIT_SECONDS)
            channel.write(set_known_tensor(digest))
            await until(lambda: name not in agent.sessions)
            await until(lambda: forwarder.is_up and bool(agent.sessions))
            assert "is damaged" in forwarder.trouble
            (other,) = agent.sessions.values()
            assert other.held.tensors
            assert digest not in other.held.tensors

    run(test)
