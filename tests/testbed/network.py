"""Machines that are network namespaces: each has a link of its own to this one, with a rate.

    with Network("t1") as network:
        laptop = network.add("laptop", rate_bits=100_000_000)
        subprocess.run([*laptop.enter, "ip", "addr"])

A link is a pair of virtual interfaces with a token bucket (tbf) on both ends.  This machine is HOST_ADDRESS on each of
them, another address on every link.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

BURST_BYTES = 64 << 10
LONGEST_QUEUE_SECONDS = 0.2
_SUBNETS = itertools.count(os.getpid() % 200 * 256)


@dataclass(frozen=True, slots=True)
class Machine:
    """A namespace.

    Attributes:
        namespace: its name.
        interface: this machine's end of the link.
        address: of the namespace.
        host_address: by which the namespace reaches this machine.
    """

    name: str
    namespace: str
    interface: str
    address: str
    host_address: str

    @property
    def enter(self) -> list[str]:
        """In front of a command, to run it there.  ``ip netns exec`` would hide the control groups from it."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}"]


class Network:
    """Owns namespaces and links; the end of its ``with`` block removes them, and what still runs in them."""

    def __init__(self, name: str) -> None:
        """Make nothing yet; ``name`` is a few letters that tell networks apart."""
        self._name = name
        self.machines: dict[str, Machine] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines.values():
            found = subprocess.run(["ip", "netns", "pids", machine.namespace], capture_output=True, text=True)
            for pid in found.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), 9)
            subprocess.run(["ip", "link", "del", machine.interface], capture_output=True)
            subprocess.run(["ip", "netns", "del", machine.namespace], capture_output=True)

    def add(self, name: str, rate_bits: int | None = None) -> Machine:
        """A machine more.

        Args:
            rate_bits: bits a second, each way; None for as fast as memory is.
        """
        number = next(_SUBNETS)
        subnet = f"10.{100 + number // 256 % 100}.{number % 256}"
        machine = Machine(
            name,
            f"lamella-{self._name}-{name}",
            f"lv{os.getpid() % 100000}x{number % 256}",
            f"{subnet}.2",
            f"{subnet}.1",
        )
        inside = f"{machine.interface}n"
        self.machines[name] = machine
        _ip("netns", "add", machine.namespace)
        _ip("link", "add", machine.interface, "type", "veth", "peer", "name", inside, "netns", machine.namespace)
        _ip("addr", "add", f"{machine.host_address}/30", "dev", machine.interface)
        _ip("link", "set", machine.interface, "up")
        _ip("-n", machine.namespace, "addr", "add", f"{machine.address}/30", "dev", inside)
        _ip("-n", machine.namespace, "link", "set", inside, "up")
        _ip("-n", machine.namespace, "link", "set", "lo", "up")
        if rate_bits is not None:
            self.limit(machine, rate_bits)
        return machine

    def limit(self, machine: Machine, rate_bits: int) -> None:
        """Change the rate of a link, while it is used."""
        bucket = ["root", "tbf", "rate", str(rate_bits), "burst", str(BURST_BYTES), "latency", "200ms"]
        _run("tc", "qdisc", "replace", "dev", machine.interface, *bucket)
        _run(*machine.enter, "tc", "qdisc", "replace", "dev", f"{machine.interface}n", *bucket)

    def cut(self, machine: Machine) -> None:
        """Take the link down: packets are lost, connections stay and hear nothing."""
        _ip("link", "set", machine.interface, "down")

    def mend(self, machine: Machine) -> None:
        """Undo ``cut``."""
        _ip("link", "set", machine.interface, "up")


def missing() -> str:
    """Why there can be no such network here; "" where there can."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "network namespaces need ip and tc (iproute2)"
    try:
        with Network("probe") as network:
            network.add("probe", 1_000_000)
    except NetworkFailed as error:
        return f"this machine gives us no network namespaces with limited links: {error}"
    return ""


class NetworkFailed(Exception):
    """A command that makes the network was refused."""


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NetworkFailed(f"{' '.join(command)}: {done.stderr.strip()}")


@contextlib.contextmanager
def limited_group(name: str, cores: float | None, memory_bytes: int | None) -> Iterator[list[str]]:
    """Control groups of some cores and bytes; yields what to put in front of a command to run it there.

    Of version 1 or 2, whichever there is.
    """
    folders = []
    try:
        for controller, files in _limits(cores, memory_bytes):
            folder = _group_folder(controller, name)
            folder.mkdir(exist_ok=True)
            folders.append(folder)
            _write(folder, files)
        script = "".join(f"echo $$ > {folder}/cgroup.procs; " for folder in folders) + 'exec "$@"'
        yield ["sh", "-c", script, "sh"]
    except OSError as error:
        raise NetworkFailed(f"no control groups: {error}") from None
    finally:
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()


def change_cores(name: str, cores: float) -> None:
    """Give a control group that has a limit of cores another one, while processes run in it."""
    for controller, files in _limits(cores, None):
        _write(_group_folder(controller, name), files)


def _group_folder(controller: str, name: str) -> Path:
    return Path("/sys/fs/cgroup") / controller / f"lamella-{name}"


def _write(folder: Path, files: list[tuple[str, str]]) -> None:
    for file, value in files:
        (folder / file).write_text(value)


def _limits(cores: float | None, memory_bytes: int | None) -> list[tuple[str, list[tuple[str, str]]]]:
    if cores is not None:
        quota, period = _share(cores)
    if Path("/sys/fs/cgroup/cgroup.controllers").exists():
        files = [] if cores is None else [("cpu.max", f"{quota} {period}")]
        files += [] if memory_bytes is None else [("memory.max", str(memory_bytes))]
        return [("", files)] if files else []
    found: list[tuple[str, list[tuple[str, str]]]] = []
    if cores is not None:
        found.append(("cpu", [("cpu.cfs_period_us", str(period)), ("cpu.cfs_quota_us", str(quota))]))
    if memory_bytes is not None:
        found.append(("memory", [("memory.limit_in_bytes", str(memory_bytes))]))
    return found


def _share(cores: float) -> tuple[int, int]:
    """Microseconds of computing in a period: short ones, so that a share of a core is a slower core.

    With the usual 100 ms a node that computes for some milliseconds and then waits for others would never be slowed.
    """
    least = 1000  # that the kernel takes
    period = max(4 * least, round(least / cores)) if cores < 1 else 10 * least
    return round(cores * period), period
