"""A process beside the server takes memory step by step inside one limit: the server steps down and answers on.

Needs the right to make a control group that limits memory (version 1); skipped where there is none.
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
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest

from lamella.batching.settings import EngineSettings
from lamella.core.units import MIB
from lamella.qos.profiles.documents import to_json
from lamella.qos.profiling.measure import shape_of
from tests.qos.profiles import profile, variant

pytestmark = pytest.mark.slow
PROGRAM = [sys.executable, "-m", "lamella"]
LARGE, SMALL = "uniform-int8", "uniform-int4"
SPARE_MIB = 200
"""What the limit leaves beyond what the server takes at its start."""
LEFT_MIB = 56
"""What the other process leaves of that: less than the 64 MiB that shall stay free."""
PATIENCE_SECONDS = 60
HOG = """
import sys, time
taken = []
for _ in range(int(sys.argv[1])):
    taken.append(bytearray(b"x" * (4 << 20)))
    time.sleep(0.25)
print("full", flush=True)
sys.stdin.read()
"""


class Group:
    """A control group that limits memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.procs = folder / "cgroup.procs"

    def limit(self, n_bytes: int) -> None:
        (self.folder / "memory.limit_in_bytes").write_text(str(n_bytes))

    @property
    def private_bytes(self) -> int:
        lines = (self.folder / "memory.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("total_rss "))

    @property
    def n_killed(self) -> int:
        lines = (self.folder / "memory.oom_control").read_text().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def inside(self, command: list[str]) -> list[str]:
        """The command, to be run in this group."""
        return ["sh", "-c", f'echo $$ > "{self.procs}"; exec "$@"', "sh", *command]


@pytest.fixture
def group() -> Iterator[Group]:
    memberships = Path("/proc/self/cgroup").read_text().splitlines() if Path("/proc/self/cgroup").exists() else []
    own = next((line.split(":")[2] for line in memberships if line.split(":")[1] == "memory"), None)
    if own is None:
        pytest.skip("no control groups of version 1 for memory here")
    mount = Path("/sys/fs/cgroup/memory")
    at = mount / str(PurePosixPath(own)).lstrip("/")
    folder = (at if at.is_dir() else mount) / f"lamella-{uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no right to make a control group: {error.strerror}")
    yield Group(folder)
    folder.rmdir()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("squeeze") / "store"
    build = [*PROGRAM, "build", "smollm2", str(folder), "--precision", "int8,int4"]
    subprocess.run(build, check=True, capture_output=True)
    return folder


def written_profile(path: Path) -> Path:
    """Speeds that are made up, so that only memory decides."""
    rungs = variant(LARGE, 0.1, kl=0.0, memory=500 * MIB), variant(SMALL, 0.1, kl=0.1, memory=430 * MIB)
    settings = EngineSettings(store="", n_ctx=512, n_sequences=4, layout="repacked")
    path.write_bytes(to_json(replace(profile(*rungs), engine=shape_of(settings))))
    return path


@contextmanager
def serving(store: Path, profile_file: Path, group: Group) -> Iterator[str]:
    """The URL of a server in the group that may go down for memory."""
    options = ["--port", "0", "--context", "512", "--sequences", "4", "--layout", "repacked"]
    options += ["--token-p95", "60000", "--profile", str(profile_file)]
    command = group.inside([*PROGRAM, "serve", f"{store}@{LARGE}", *options])
    environment = {**os.environ, "LAMELLA_CACHE": str(store.parent / "cache")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as server:
        assert server.stderr is not None
        line = server.stderr.readline().decode()
        assert line.startswith("listening on "), line
        drain = threading.Thread(target=server.stderr.read, daemon=True)
        drain.start()
        try:
            yield line.split()[2].removesuffix(";").removesuffix("/v1")
        finally:
            server.terminate()
        assert server.wait(60) == 0


def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=120) as answer:
        return dict(json.load(answer))


def wait_for_decision(url: str) -> list[dict[str, Any]]:
    """All of them, once there is one."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (decisions := ask(f"{url}/admin/decisions")["decisions"]) and time.monotonic() < end:
        time.sleep(0.2)
    return list(decisions)


class Client:
    """Asks for one answer after the other until it is told to stop; every failure is kept."""

    def __init__(self, url: str) -> None:
        self._url, self._stop = url, threading.Event()
        self.n_answers, self.failures = 0, list[str]()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                ask(f"{self._url}/v1/completions", {"prompt": "Once upon a time", "max_tokens": 24, "ignore_eos": True})
                self.n_answers += 1
            except OSError as error:
                self.failures.append(str(error))
                return

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_a_squeezed_server_steps_down_and_loses_no_request(store: Path, group: Group, tmp_path: Path) -> None:
    with serving(store, written_profile(tmp_path / "p.json"), group) as url:
        ask(f"{url}/v1/completions", {"prompt": "Once upon a time", "max_tokens": 8})
        group.limit(group.private_bytes + SPARE_MIB * MIB)
        clients = [Client(url) for _ in range(2)]
        n_blocks = (SPARE_MIB - LEFT_MIB) // 4
        hog = subprocess.Popen(
            group.inside([sys.executable, "-c", HOG, str(n_blocks)]), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with hog:
            assert hog.stdout is not None
            assert hog.stdout.readline() == b"full\n"
            decisions = wait_for_decision(url)
            for client in clients:
                client.stop()
            hog.communicate()
        assert not [failure for client in clients for failure in client.failures]
        assert all(client.n_answers for client in clients)
        assert [(d["to"], d["by"], d["failure"]) for d in decisions] == [(SMALL, "memory", None)]
        assert "memory" in decisions[0]["reason"]
        assert ask(f"{url}/admin/status")["status"]["warm"] == [SMALL]
        assert group.n_killed == 0
