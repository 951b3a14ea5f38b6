"""Nodes on machines of their own: joined over a link, scanned, slowed, cut."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from lamella.cluster.dialling import Dialler
from lamella.cluster.folder import ClusterFolder
from lamella.cluster.forwarding import Forwarder
from lamella.cluster.links import measure_link
from lamella.cluster.messages import Describe, Described
from tests.testbed.bed import PORT, NodeSpec, TestBed
from tests.testbed.network import missing

WHY = missing()
pytestmark = pytest.mark.skipif(bool(WHY), reason=WHY or "namespaces are there")
RATE_BITS = 40_000_000
SCAN = """
import socket, sys
open_ports = []
for port in map(int, sys.argv[2:]):
    with socket.socket() as s:
        s.settimeout(2)
        if s.connect_ex((sys.argv[1], port)) == 0:
            open_ports.append(port)
print(*open_ports)
"""


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBed]:
    with TestBed(tmp_path_factory.mktemp("bed")) as made:
        made.add(NodeSpec("laptop", rate_bits=RATE_BITS, memory_bytes=700 << 20))
        made.add(NodeSpec("server", delay_seconds=0.02))
        yield made


def with_dialler(cluster: ClusterFolder, work: Any) -> Any:
    async def main() -> Any:
        async with Dialler(cluster) as dialler:
            return await work(dialler)

    return asyncio.run(main())


def scan(bed: TestBed, source: str, target: str, ports: list[int]) -> list[int]:
    """Which ports of a machine another one reaches."""
    machines = bed.network.machines
    command = [*machines[source].enter, sys.executable, "-c", SCAN, machines[target].address, *map(str, ports)]
    return [int(p) for p in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def test_a_link_is_as_fast_as_it_was_made(bed: TestBed) -> None:
    measured = [with_dialler(bed.cluster, lambda dialler: measure_link(dialler, "laptop")) for _ in range(3)]
    link = max(measured, key=lambda one: one.bytes_per_second)  # a busy machine makes one slower, and none faster
    assert link.bytes_per_second == pytest.approx(RATE_BITS / 8, rel=0.35)
    far = with_dialler(bed.cluster, lambda dialler: measure_link(dialler, "server"))
    assert far.round_trip_seconds >= 0.04
    assert far.bytes_per_second > 2 * link.bytes_per_second


def test_a_node_reports_the_limit_of_its_control_group(bed: TestBed) -> None:
    async def describe(dialler: Dialler) -> Described:
        channel, described = await dialler.ask("laptop", Describe(), Described, 60)
        channel.close()
        return described

    report = with_dialler(bed.cluster, describe).report
    assert report.memory_bytes == 700 << 20
    assert "lamella-" in report.limited_by


def test_another_machine_reaches_the_nodes_port_and_no_rpc(bed: TestBed) -> None:
    async def scanned(dialler: Dialler) -> tuple[list[int], int]:
        async with Forwarder(dialler, "laptop") as forwarder:
            await forwarder.ready(60)
            host, port = forwarder.endpoint.split(":")
            _, writer = await asyncio.open_connection(host, int(port))  # has the RPC server started
            machine = bed.network.machines["laptop"]
            while not (listening := _listening(machine.namespace) - {PORT}):
                await asyncio.sleep(0.05)
            (rpc_port,) = listening
            found = await asyncio.to_thread(scan, bed, "laptop", "laptop", [PORT, rpc_port])
            assert found == [PORT]  # even by its own address: RPC is on loopback alone
            command = [sys.executable, "-c", SCAN, machine.address, str(PORT), str(rpc_port)]
            from_here = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
            writer.close()
            return [int(p) for p in from_here.stdout.split()], rpc_port

    found, _ = with_dialler(bed.cluster, scanned)
    assert found == [PORT]


def test_no_port_but_one_answers_of_all(bed: TestBed) -> None:
    """All that a session opens included; what listens is read from the kernel, on every address but loopback."""
    machine = bed.network.machines["laptop"]
    assert _listening(machine.namespace, loopback=False) == {PORT}


def test_of_all_ports_of_a_node_that_computes_one_answers(bed: TestBed) -> None:
    """Every one is tried, from another machine, while the node's RPC server runs.  Ten seconds: of one node alone."""
    name = "server"

    async def scanned(dialler: Dialler) -> list[int]:
        async with Forwarder(dialler, name) as forwarder:
            await forwarder.ready(60)
            host, port = forwarder.endpoint.split(":")
            _, writer = await asyncio.open_connection(host, int(port))
            machine = bed.network.machines[name]
            while len(_listening(machine.namespace)) < 2:
                await asyncio.sleep(0.05)
            found = await asyncio.to_thread(_connect_to_all, machine.address)
            writer.close()
            return found

    assert with_dialler(bed.cluster, scanned) == [PORT]


def _connect_to_all(address: str) -> list[int]:
    """Those that take a connection."""
    found = []
    for port in range(1, 1 << 16):
        with socket.socket() as probe:
            probe.settimeout(5)
            if probe.connect_ex((address, port)) == 0:
                found.append(port)
    return found


def test_a_node_cannot_reach_another_node_through_the_coordinator(bed: TestBed) -> None:
    assert scan(bed, "laptop", "server", [PORT]) == []


async def down(forwarder: Forwarder) -> None:
    """Wait until its node is away; an error where it never is."""
    async with asyncio.timeout(60):
        while forwarder.is_up:
            await asyncio.sleep(0.1)


def test_a_cut_link_is_noticed_and_a_mended_one_used(bed: TestBed) -> None:
    async def cut(dialler: Dialler) -> None:
        machine = bed.network.machines["laptop"]
        async with Forwarder(dialler, "laptop") as forwarder:
            await forwarder.ready(60)
            bed.network.cut(machine)
            await down(forwarder)
            assert "no answer for" in forwarder.trouble
            bed.network.mend(machine)
            await forwarder.ready(60)

    with_dialler(bed.cluster, cut)


def test_a_node_that_died_comes_back_as_the_same_member(bed: TestBed) -> None:
    import signal

    async def again(dialler: Dialler) -> None:
        async with Forwarder(dialler, "laptop") as forwarder:
            await forwarder.ready(60)
            bed.stop("laptop", signal.SIGKILL)
            await down(forwarder)
            await asyncio.to_thread(bed.start_again, "laptop")
            await forwarder.ready(60)

    with_dialler(bed.cluster, again)
    found = [process.info for process in psutil.process_iter(["ppid", "cmdline"])]  # None of one that ends meanwhile
    assert not [p for p in found if p["ppid"] == 1 and "rpc_process" in " ".join(p["cmdline"] or ())]


def _listening(namespace: str, *, loopback: bool = True) -> set[int]:
    """Ports that something listens on in a namespace."""
    found = subprocess.run(
        ["nsenter", f"--net=/run/netns/{namespace}", "cat", "/proc/net/tcp", "/proc/net/tcp6"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ports = set()
    for line in found.stdout.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[3] == "0A":
            address, _, port = fields[1].partition(":")
            if loopback or address != "0100007F":
                ports.add(int(port, 16))
    return ports
