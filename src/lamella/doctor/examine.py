"""Looks at this machine; decides nothing.

llama.cpp is loaded by a child process (``selfcheck``): a library that was built for another processor ends the process
that loads it, and the doctor has to live to tell.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from lamella.core.cores import usable_cores
from lamella.core.errors import LamellaError
from lamella.core.foreign import UNREADABLE
from lamella.core.signals import signal_name
from lamella.doctor.facts import Compiler, Disk, Facts, LibraryFacts, ModelNeed, Processor, StoreFacts
from lamella.doctor.selfcheck import Report
from lamella.resources.devices import DeviceMemory, detect
from lamella.resources.machine import cpu_memory
from lamella.store.files import free_bytes
from lamella.store.store import Store
from lamella.store.verify import Sample

COMPILERS = ("c++", "g++", "clang++")
SELFCHECK_SECONDS = 120.0
SHORT_SECONDS = 20.0
NOTHING_HASHED = Sample(within_seconds=0)

Run = Callable[[Sequence[str], float], "subprocess.CompletedProcess[str]"]
"""Runs a command for at most some seconds; raises ``OSError``, or ``subprocess.TimeoutExpired`` with what it said."""


def run_command(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command and keep what it says, in whatever encoding that is."""
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds, check=False
    )


def examine(
    cache_folder: Path,
    model: str | None = None,
    stores: Sequence[Path] = (),
    *,
    root: Path = Path("/"),
    which: Callable[[str], str | None] = shutil.which,
    run: Run = run_command,
) -> Facts:
    """Look at everything.

    Args:
        cache_folder: where stores and measurements go; may not exist yet.
        model: whose memory is asked for; None for none.
        stores: folders of stores to look into.
        root: the file system that the kernel's files are read from, so that tests can use recorded trees.
        which: finds a program.
        run: runs one.
    """
    report = _selfcheck(model, run)
    memory = cpu_memory(root)
    return Facts(
        system=f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {platform.machine()}",
        compiler=_compiler(which, run),
        processor=_processor(root),
        library=report.library,
        memory=memory,
        disk=_disk(cache_folder),
        devices=_devices(report, root),
        graphics=_graphics(root),
        address_space_bytes=_address_space(),
        need=report.need or (ModelNeed(model, error="llama.cpp cannot be asked") if model else None),
        stores=tuple(_store(path) for path in stores),
    )


def _selfcheck(model: str | None, run: Run) -> Report:
    """What the child says, and how it died where it says nothing."""
    command = [sys.executable, "-P", "-m", "lamella.doctor.selfcheck", *([model] if model else [])]
    try:
        done = run(command, SELFCHECK_SECONDS)
    except OSError as error:
        return Report(LibraryFacts(error=f"llama.cpp could not be tried: {error}"))
    except subprocess.TimeoutExpired as slow:
        said = slow.stdout.decode(errors="replace") if isinstance(slow.stdout, bytes) else slow.stdout or ""
        return _until(list(_reports(said)), model, f"took longer than {slow.timeout:g} s", is_too_slow=True)
    reports = list(_reports(done.stdout))
    if done.returncode == 0 and reports:
        return reports[-1]
    return _until(reports, model, f"ends the process: {_death(done.returncode, done.stderr)}")


def _until(reports: Sequence[Report], model: str | None, how: str, *, is_too_slow: bool = False) -> Report:
    """What a child had found that came to an end: it was loading llama.cpp, or it was reading the model."""
    if not reports:
        return Report(LibraryFacts(error=f"loading llama.cpp {how}", is_too_slow=is_too_slow))
    if model is None:  # nothing was left to do
        return reports[-1]
    need = ModelNeed(model, error=f"reading {model} {how}", is_too_slow=is_too_slow)
    return Report(reports[-1].library, reports[-1].devices, need)


def _reports(said: str) -> Iterator[Report]:
    """Those that were written whole; llama.cpp may write lines of its own, and a process can die within one of ours."""
    for line in said.splitlines():
        with contextlib.suppress(*UNREADABLE):
            yield msgspec.json.decode(line, type=Report)


def _death(code: int, said: str) -> str:
    if code < 0:
        name = signal_name(-code)
        hint = "; it was built for another processor" if name == "SIGILL" else ""
        return f"{name}{hint}"
    return said.strip().splitlines()[-1] if said.strip() else f"exit code {code}"


def _compiler(which: Callable[[str], str | None], run: Run) -> Compiler:
    for name in COMPILERS:
        path = which(name)
        if path is None:
            continue
        try:
            done = run([path, "--version"], SHORT_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return Compiler(path, done.stdout.partition("\n")[0])
    return Compiler()


def _processor(root: Path) -> Processor:
    """From ``/proc/cpuinfo``, whose lines are ``name : value``; elsewhere what Python knows."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    name = values.get("model name") or values.get("Hardware") or platform.processor() or platform.machine()
    flags = frozenset((values.get("flags") or values.get("Features") or "").split())
    return Processor(name, flags, os.cpu_count() or 1, usable_cores())


def _devices(report: Report, root: Path) -> tuple[DeviceMemory, ...]:
    """The child's devices, with the limits of this process's control group."""
    return detect(lambda: report.devices, lambda: cpu_memory(root))


def _graphics(root: Path) -> tuple[str, ...]:
    """Drivers of graphics processors that the kernel has loaded."""
    drivers = {"NVIDIA": "proc/driver/nvidia/version", "AMD": "sys/module/amdgpu/version"}
    return tuple(maker for maker, path in drivers.items() if (root / path).exists())


def _address_space() -> int | None:
    import resource  # not on every system

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _disk(folder: Path) -> Disk:
    """The folder, or the nearest one above it that exists."""
    there = folder
    try:
        while not there.exists() and there != there.parent:
            there = there.parent
        if not there.is_dir():
            return Disk(str(folder), 0, f"{there} is no folder")
        free = free_bytes(there)
    except OSError as error:  # also of a folder that this user may not look into
        return Disk(str(folder), 0, f"{there}: {error.strerror or error}")
    is_writable = os.access(there, os.W_OK | os.X_OK)
    return Disk(str(folder), free, "" if is_writable else f"{there} may not be written to by this user")


def _store(path: Path) -> StoreFacts:
    try:
        store = Store.open(path)
        report = store.verify(sample=NOTHING_HASHED)
        n_variants = len(store.readable_variants()[0])
    except (LamellaError, OSError) as error:
        return StoreFacts(str(path), error=str(error))
    damage = (
        *(f"{shard.label or 'a shard'} is {shard.reason}, for {', '.join(shard.variants)}" for shard in report.damaged),
        *report.unreadable_variants,
        *report.unreadable_notes,
        *(f"{link} leads nowhere" for link in report.broken_links),
    )
    return StoreFacts(str(path), n_variants=n_variants, damage=damage)
