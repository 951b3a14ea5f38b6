"""A cluster as its users start it: init, invite, two nodes, a server over them; then a node dies."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lamella import api
from lamella.llama import library
from lamella.llama.context import ContextOptions
from lamella.llama.sampling import SamplingOptions
from lamella.run.engine import Engine, EngineOptions
from lamella.store.store import Store
from tests.fakes.ports import free_port
from tests.fakes.tiny_model import write_tiny_model

PROGRAM = (sys.executable, "-m", "lamella")
PROMPTS = {"large": [300, 301, 302], "small": [310, 311, 312], "again": [320, 321, 322]}
"""With no common beginning: the server reuses what it has computed of one."""
N_TOKENS = 24
pytestmark = pytest.mark.skipif(
    not library.supports_rpc(), reason="llama.cpp was built without its RPC backend (CMAKE_ARGS=-DGGML_RPC=ON)"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a store of the variants large and small."""
    folder = tmp_path_factory.mktemp("cluster")
    model = write_tiny_model(folder / "tiny.gguf", n_embd=256, n_ff=512)
    for name, precision in (("large", "int8"), ("small", "int4")):
        api.build(model, folder / "store", api.plan(model, "uniform", precision=precision), name)
    return folder


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "LAMELLA_CACHE": str(folder / "cache"), "LAMELLA_CLUSTER": str(folder / "cluster")}


def line_with(process: subprocess.Popen[bytes], stream: Any, words: str) -> str:
    while line := stream.readline().decode():
        if words in line:
            return str(line)
    raise AssertionError(f"the process ended with {process.wait()} before it said '{words}'")


def start_node(folder: Path, name: str, listen: str, *more: str) -> tuple[subprocess.Popen[bytes], str]:
    command = [*PROGRAM, "node", "--listen", listen, "--folder", str(folder / name), "--threads", "1", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(folder))
    return process, line_with(process, process.stdout, "listening on").split()[-1]


@pytest.fixture(scope="module")
def nodes(folder: Path) -> Iterator[dict[str, tuple[subprocess.Popen[bytes], str]]]:
    """Two nodes that were invited; and how they are reached."""
    subprocess.run([*PROGRAM, "cluster", "init"], check=True, env=environment(folder), capture_output=True)
    found = {}
    try:
        for name in ("one", "two"):
            command = [*PROGRAM, "cluster", "invite", name, "--listen", f"127.0.0.1:{free_port()}"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(folder)) as inviting:
                printed = line_with(inviting, inviting.stdout, "--join")
                assert "lamella node --listen 0.0.0.0:7410 --join" in printed, "it is pasted as it is"
                token = printed.split()[-1]
                found[name] = start_node(folder, name, f"127.0.0.1:{free_port()}", "--join", token)
                assert inviting.wait(60) == 0
        yield found
    finally:
        for process, _ in found.values():
            process.terminate()
            process.wait(60)
            assert process.stdout is not None
            process.stdout.close()


@contextlib.contextmanager
def serving(folder: Path, layers: str) -> Iterator[str]:
    """``lamella cluster serve``; yields its URL."""
    options = ["--port", "0", "--context", "128", "--sequences", "2", "--layers", layers]
    command = [*PROGRAM, "cluster", "serve", f"{folder / 'store'}@large", *options]
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=log, env=environment(folder))
        try:
            yield line_with(server, server.stderr, "listening on http").split()[2].removesuffix("/v1;")
        finally:
            server.terminate()
            assert server.stderr is not None
            server.stderr.close()
            server.wait(60)


def ask(url: str, path: str, body: dict[str, Any]) -> Any:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{url}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


def complete(url: str, prompt: str) -> str:
    body = {"model": "store", "prompt": PROMPTS[prompt], "max_tokens": N_TOKENS, "temperature": 0, "ignore_eos": True}
    return str(ask(url, "/v1/completions", body)["choices"][0]["text"])


def counted(url: str, series: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(series)).split()[-1])


def local(folder: Path, variant: str, prompt: str) -> str:
    options = EngineOptions(ContextOptions(n_ctx=128, n_threads=1), layout="mapped")
    with Engine.open(Store.open(folder / "store"), variant, options) as engine:
        return engine.generate(PROMPTS[prompt], max_tokens=N_TOKENS, sampling=SamplingOptions(temperature=0)).text()


def test_a_model_over_two_nodes_answers_as_one_machine_does(
    folder: Path, nodes: dict[str, tuple[subprocess.Popen[bytes], str]]
) -> None:
    with serving(folder, "one=0-0,coordinator=1-1,two=2-2") as url:
        assert complete(url, "large") == local(folder, "large", "large")
        assert counted(url, 'lamella_node_up{node="one"}') == 1
        assert counted(url, 'lamella_node_bytes_total{node="two",way="saved"}') > 100_000
        ask(url, "/admin/switch", {"variant": "small"})
        assert complete(url, "small") == local(folder, "small", "small")
        ask(url, "/admin/switch", {"variant": "large"})
        assert complete(url, "again") == local(folder, "large", "again")
        process, address = nodes["two"]
        process.kill()
        process.communicate()
        time.sleep(0.5)
        nodes["two"] = start_node(folder, "two", address)
        assert complete(url, "again") == local(folder, "large", "again")


def test_the_nodes_are_listed_and_a_revoked_one_is_gone(
    folder: Path, nodes: dict[str, tuple[subprocess.Popen[bytes], str]]
) -> None:
    def listed() -> dict[str, Any]:
        command = [*PROGRAM, "cluster", "nodes", "--types", "Q8_0", "--json"]
        done = subprocess.run(command, check=True, env=environment(folder), capture_output=True)
        return {node["name"]: node for node in json.loads(done.stdout)["nodes"]}

    found = listed()
    assert found.keys() == {"one", "two"}
    assert all(node["described"]["report"]["speeds"]["Q8_0"]["token"] > 0 for node in found.values())
    assert all(node["link"]["round_trip_seconds"] > 0 for node in found.values())
    subprocess.run([*PROGRAM, "cluster", "revoke", "two"], check=True, env=environment(folder), capture_output=True)
    assert listed().keys() == {"one"}
    with pytest.raises(AssertionError), serving(folder, "one=0-1,two=2-2"):
        pass
