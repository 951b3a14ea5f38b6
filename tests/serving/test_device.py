"""A server whose engine process computes on another device, and what the commands say of devices."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamella.batching.messages import Generate, Sampling, TokenEvent
from lamella.batching.settings import EngineSettings
from lamella.llama import library
from lamella.serving.supervisor import SupervisedEngine
from tests.batching.conftest import served_store  # noqa: F401
from tests.fakes.rpc_server import rpc_server

pytestmark = pytest.mark.skipif(
    not library.supports_rpc(), reason="llama.cpp was built without its RPC backend (CMAKE_ARGS=-DGGML_RPC=ON)"
)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with rpc_server() as (address, _):
        yield address


def lamella(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: a device stays until the process ends."""
    command = [sys.executable, "-m", "lamella", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_answers_come_from_the_device_also_after_switches(served_store: Path, endpoint: str) -> None:  # noqa: F811
    settings = EngineSettings(
        store=str(served_store), variant="int8", n_ctx=128, n_sequences=2, n_threads=1, rpc=[endpoint], device="RPC0"
    )
    asyncio.run(_switch_and_compare(settings))


async def _switch_and_compare(settings: EngineSettings) -> None:
    async with SupervisedEngine(settings) as engine:
        expected = await _write(engine)
        assert (await engine.switch("int4")).after == "int4"
        assert await _write(engine) != expected
        await engine.switch("int8")
        assert await _write(engine) == expected


async def _write(engine: SupervisedEngine) -> list[int]:
    """Greedy tokens of one prompt, of which nothing is reused from another variant."""
    request = Generate(id=0, prompt="Once", max_tokens=12, sampling=Sampling(temperature=0.0), ignore_end=True)
    return [e.token async for e in engine.generate(request) if isinstance(e, TokenEvent)]


def test_devices_of_a_server_are_listed(endpoint: str) -> None:
    found = json.loads(lamella("devices", "--rpc", endpoint, "--json").stdout)["devices"]
    assert [d["name"] for d in found if d["backend"].startswith("RPC")] == ["RPC0"]


def test_an_unknown_device_is_refused_in_a_sentence(served_store: Path) -> None:  # noqa: F811
    done = lamella("serve", served_store, "--device", "CUDA7", "--port", "0")
    assert done.returncode == 11
    assert "there is no device 'CUDA7'; there are: CPU" in done.stderr
    assert done.stderr.count("\n") == 1
