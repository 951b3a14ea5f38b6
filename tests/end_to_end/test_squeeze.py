"""A process beside the server takes memory inside one limit: the server steps down, answers on, and takes less.

Needs the right to make a control group that limits memory.  ``benchmarks/squeeze.py`` does it again and again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from benchmarks.memory_group import MemoryGroup, memory_group, missing
from lamella.batching.settings import EngineSettings
from lamella.core.units import MIB
from lamella.llama.pages import drop_from_cache
from lamella.qos.policies.constraints import RESERVE_BYTES
from lamella.qos.profiles.documents import to_json
from lamella.qos.profiling.shape import shape_of
from tests.qos.profiles import profile, variant

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]
PROGRAM = [sys.executable, "-m", "lamella"]
LARGE, SMALL = "uniform-int8", "uniform-int4"
SPARE_BYTES = RESERVE_BYTES + 48 * MIB
"""What the limit leaves beyond what the server takes at its start."""
HOG = """
import sys
taken = bytearray(b"x" * int(sys.argv[1]))
print("full", flush=True)
sys.stdin.read()
"""
HOG_BYTES = 72 * MIB
"""More than may be taken from the large variant, and less than the kernel would kill for."""
LONGEST_SECONDS = 120


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squeeze") / "store"
    build = [*PROGRAM, "build", "smollm2", str(folder), "--precision", "int8,int4"]
    subprocess.run(build, check=True, capture_output=True)
    for shard in (folder / "shards").rglob("*.gguf"):
        drop_from_cache(shard)  # pages count for the group that reads them first
    return folder


def written_profile(path: Path) -> Path:
    """Speeds that are made up, so that only memory decides."""
    rungs = variant(LARGE, 0.1, kl=0.0, memory=300 * MIB), variant(SMALL, 0.1, kl=0.1, memory=250 * MIB)
    settings = EngineSettings(store="", n_ctx=512, n_sequences=2)
    path.write_bytes(to_json(replace(profile(*rungs), engine=shape_of(settings))))
    return path


@contextmanager
def serving(store: Path, profile_file: Path, group: MemoryGroup) -> Iterator[str]:
    """The URL of a server in the group that goes down for nothing but memory."""
    options = ["--port", "0", "--context", "512", "--sequences", "2", "--token-p95", "600000"]
    command = group.inside([*PROGRAM, "serve", f"{store}@{LARGE}", *options, "--profile", profile_file])
    environment = {**os.environ, "LAMELLA_CACHE": str(store.parent / "cache"), "LAMELLA_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as server:
        assert server.stderr is not None
        line = server.stderr.readline().decode()
        assert line.startswith("listening on "), line
        threading.Thread(target=server.stderr.read, daemon=True).start()
        try:
            yield line.split()[2].removesuffix(";").removesuffix("/v1")
        finally:
            server.terminate()
        assert server.wait(60) == 0


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=LONGEST_SECONDS) as answer:
        return dict(json.load(answer))


def write(url: str) -> str:
    body = {"prompt": "Once upon a time", "max_tokens": 16, "ignore_eos": True, "temperature": 0}
    return str(ask(f"{url}/v1/completions", body)["choices"][0]["text"])


def decisions_of(url: str) -> list[dict[str, Any]]:
    """Those there are, once there is one; requests go on meanwhile, and none may fail."""
    end = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < end:
        assert write(url)
        if found := ask(f"{url}/admin/decisions")["decisions"]:
            return list(found)
    raise AssertionError("nothing was decided")


def wait_until_warm(url: str, names: list[str]) -> None:
    """The engine says how it is a few times a second."""
    end = time.monotonic() + LONGEST_SECONDS
    while (warm := ask(f"{url}/admin/status")["status"]["warm"]) != names:
        assert time.monotonic() < end, warm
        time.sleep(0.1)


def test_a_squeezed_server_steps_down_answers_on_and_takes_less(store: Path, tmp_path: Path) -> None:
    with memory_group() as group, serving(store, written_profile(tmp_path / "p.json"), group) as url:
        assert write(url)
        before = group.counts()
        group.limit(before.used + SPARE_BYTES)
        command = group.inside([sys.executable, "-c", HOG, HOG_BYTES])
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hog:
            assert hog.stdout is not None
            assert hog.stdout.readline() == b"full\n"
            (decision,) = decisions_of(url)
            assert (decision["to"], decision["by"], decision["failure"]) == (SMALL, "memory", None)
            assert "memory" in decision["reason"]
            assert write(url)
            wait_until_warm(url, [SMALL])
            after = group.counts()
            hog.communicate()
        assert group.n_killed == 0
        # what the variants differ by is free again: neither pages nor copies of the large one stay
        sizes = [sum(f.stat().st_size for f in (store / "variants" / name).glob("*.gguf")) for name in (LARGE, SMALL)]
        assert after.used < before.used + HOG_BYTES + 16 * MIB - 0.8 * (sizes[0] - sizes[1])
