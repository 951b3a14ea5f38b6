"""A cluster of several machines on this one: nodes in network namespaces, joined as real ones are.

    with TestBed(Path("/tmp/bed")) as bed:
        bed.add(NodeSpec("laptop", rate_bits=100_000_000, cores=0.5, memory_bytes=600 << 20))
        bed.cluster                                # folder of the coordinator

Nodes are ``lamella node`` processes.  A delay is a proxy in this process between coordinator and node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from lamella.cluster.folder import ClusterFolder
from lamella.cluster.joining import JoinServer
from tests.testbed.delay import DelayProxy
from tests.testbed.network import Machine, Network, change_cores, limited_group

PORT = 7410
START_POLLS, POLL_SECONDS = 1200, 0.05
LONG_SECONDS = 3600.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A machine to be.

    Attributes:
        rate_bits: of its link, each way; None for no limit.
        delay_seconds: of its link, one way.
        cores: share of this machine's, as 0.5; None for no limit.
        memory_bytes: None for no limit.
        n_threads: to compute with.
    """

    name: str
    rate_bits: int | None = None
    delay_seconds: float = 0.0
    cores: float | None = None
    memory_bytes: int | None = None
    n_threads: int = 1


@dataclass(slots=True)
class Running:
    """A node's process and machine."""

    spec: NodeSpec
    machine: Machine
    process: subprocess.Popen[bytes]
    log: Path
    delay: DelayProxy | None = None


class TestBed:
    """Owns network, nodes and a cluster's folder; the end of its ``with`` block removes all but files.

    Attributes:
        path: where the files are: ``cluster``, and a folder and a log for each node.
        network: to be slowed, cut and mended.
        nodes: by name.
    """

    __test__ = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cluster = ClusterFolder.create(path / "cluster")
        self.network = Network(str(os.getpid()))
        self.nodes: dict[str, Running] = {}
        self._stack = contextlib.ExitStack()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._stack.enter_context(self.network)
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.nodes):
            self.stop(name)
        for node in self.nodes.values():
            if node.delay is not None:
                self._do(node.delay.__aexit__())
        self._stack.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(LONG_SECONDS)

    def add(self, spec: NodeSpec) -> Running:
        """A machine more, which joins over its link."""
        machine = self.network.add(spec.name, spec.rate_bits)
        server = JoinServer(self.cluster, machine.host_address, 0)
        self._do(server.__aenter__())
        try:
            invite = self.cluster.invite(spec.name, server.address, LONG_SECONDS)
            node = self._start(spec, machine, ["--join", invite.token])
        finally:
            self._do(server.__aexit__())
        if spec.delay_seconds:
            node.delay = DelayProxy(f"{machine.address}:{PORT}", spec.delay_seconds)
            self._do(node.delay.__aenter__())
            record = self.cluster.path / "nodes" / f"{spec.name}.json"
            record.write_text(record.read_text().replace(f"{machine.address}:{PORT}", node.delay.address))
        self.nodes[spec.name] = node
        return node

    def _start(self, spec: NodeSpec, machine: Machine, more: list[str]) -> Running:
        group: list[str] = []
        if spec.cores is not None or spec.memory_bytes is not None:
            group = self._stack.enter_context(limited_group(_group(spec.name), spec.cores, spec.memory_bytes))
        log = self.path / f"{spec.name}.log"
        command = [
            *group, *machine.enter, sys.executable, "-P", "-m", "lamella", "node",
            "--listen", f"{machine.address}:{PORT}", "--folder", str(self.path / spec.name),
            "--threads", str(spec.n_threads), *more,
        ]  # fmt: skip
        start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        for _ in range(START_POLLS):  # counted, not timed: the machine may stand still meanwhile
            if b"listening on" in log.read_bytes()[start:]:
                return Running(spec, machine, process, log)
            if process.poll() is not None:
                break
            time.sleep(POLL_SECONDS)
        process.kill()
        raise RuntimeError(f"node {spec.name} does not start: {log.read_text()}")

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End a node's process; SIGKILL ends it without a word."""
        process = self.nodes[name].process
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        if process.poll() is None:
            process.kill()
            process.wait()

    def give_cores(self, name: str, cores: float) -> None:
        """Change the share of this machine's cores that a node has, which was made with one, while it computes."""
        change_cores(_group(name), cores)

    def start_again(self, name: str) -> None:
        """Start a node that was stopped; it is a member still."""
        node = self.nodes[name]
        again = self._start(node.spec, node.machine, [])
        node.process = again.process


def _group(node: str) -> str:
    """Name of a node's control groups."""
    return f"{os.getpid()}-{node}"
