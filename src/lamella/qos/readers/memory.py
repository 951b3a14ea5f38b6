"""Memory of this process: what there is, and every limit on the way up its control groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lamella.qos.readers.reading import ROOT, Absent
from lamella.resources.cgroup import GroupMemory, memory_groups
from lamella.resources.machine import cpu_memory

READER = "memory"


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory now.

    Attributes:
        total_bytes: of the machine, or the smallest limit.
        available_bytes: what can still be allocated, page cache that can be given back included.
        limited_by: ``machine``, or the folder of the control group that has the least left.
        groups: the process's own group and those above it; empty where nothing counts memory by groups.
    """

    total_bytes: int
    available_bytes: int
    limited_by: str
    groups: tuple[GroupMemory, ...]


def read_memory(root: Path = ROOT, groups: tuple[GroupMemory, ...] | None = None) -> Memory | Absent:
    """Memory now; a tree without ``/proc/meminfo`` that is not the real one has none.

    Args:
        groups: what ``memory_groups`` said just now; None to look.
    """
    if root != ROOT and not (root / "proc/meminfo").is_file():
        return Absent(READER, "there is no /proc/meminfo")
    groups = memory_groups(root) if groups is None else groups
    found = cpu_memory(root, groups)
    return Memory(found.total_bytes, found.available_bytes, found.limited_by, groups)
