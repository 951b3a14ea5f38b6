"""Memory of the CPU: what the machine has, within what the control group allows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from lamella.resources.cgroup import GroupMemory, memory_limit

MACHINE = "machine"
_LINE = re.compile(r"(\w+): +(\d+) kB")


@dataclass(frozen=True, slots=True)
class CpuMemory:
    """Memory that this process may use.

    Attributes:
        total_bytes: physical memory, or the limit if that is smaller.
        available_bytes: what can be allocated now without swapping.
        limited_by: ``machine``, or the folder of the control group that is tighter.
    """

    total_bytes: int
    available_bytes: int
    limited_by: str = MACHINE


def cpu_memory(root: Path = Path("/"), groups: Sequence[GroupMemory] | None = None) -> CpuMemory:
    """Memory now.

    Args:
        root: the file system to look in, so that tests can use recorded trees.
        groups: what ``memory_groups`` said just now; None to look.
    """
    total, available = _physical(root)
    limit = memory_limit(root, groups)
    if limit is None:
        return CpuMemory(total, available)
    limited_by = limit.group if limit.available_bytes < available else MACHINE
    return CpuMemory(min(total, limit.limit_bytes), min(available, limit.available_bytes), limited_by)


def _physical(root: Path) -> tuple[int, int]:
    """Total and available bytes of the machine, from ``/proc/meminfo`` or, on other systems, psutil."""
    path = root / "proc/meminfo"
    if path.exists():
        kibibytes = {name: int(value) for name, value in _LINE.findall(path.read_text())}
        if "MemTotal" in kibibytes and "MemAvailable" in kibibytes:
            return kibibytes["MemTotal"] * 1024, kibibytes["MemAvailable"] * 1024
    memory = psutil.virtual_memory()
    return memory.total, memory.available
