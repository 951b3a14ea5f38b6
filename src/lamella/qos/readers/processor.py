"""The share of the processor that other processes take, from two looks at ``/proc``.

    before = read_processor(pid)
    ...
    share = taken_by_others(before, read_processor(pid))

Source: proc_stat(5), proc_pid_stat(5).  Time that a hypervisor gives to other machines (``steal``) is taken by others.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lamella.qos.readers.reading import ROOT, Absent, read_text

READER = "processor"
_BUSY = (0, 1, 2, 5, 6, 7)  # user, nice, system, irq, softirq, steal; guests are in user and nice already
_IDLE = (3, 4)  # idle, iowait
_PARENT, _USER_TIME, _SYSTEM_TIME = 1, 11, 12  # fields of /proc/PID/stat after the name in parentheses


@dataclass(frozen=True, slots=True)
class ProcessorTimes:
    """Counters in ticks, since the machine started.

    Attributes:
        busy, total: of all cores.
        own: of each process of our own tree, by process id.
    """

    busy: int
    total: int
    own: Mapping[int, int]


def read_processor(
    pid: int | None = None, root: Path = ROOT, tree: Sequence[int] | None = None
) -> ProcessorTimes | Absent:
    """The counters now.

    Args:
        pid: the root of our own tree of processes; None for this process.
        tree: what ``own_tree`` said a while ago; None to look.
    """
    line = (read_text(root / "proc/stat") or "").partition("\n")[0].split()
    if len(line) < 9 or line[0] != "cpu" or not all(part.isdigit() for part in line[1:9]):
        return Absent(READER, "/proc/stat cannot be read")
    ticks = [int(part) for part in line[1:9]]
    busy = sum(ticks[i] for i in _BUSY)
    return ProcessorTimes(
        busy, busy + sum(ticks[i] for i in _IDLE), _times(root, own_tree(pid, root) if tree is None else tree)
    )


def taken_by_others(before: ProcessorTimes, after: ProcessorTimes) -> float:
    """Share of all cores, 0 to 1, that processes outside our tree used between two looks; 0 where no time passed.

    What a process of ours used just before it ended counts as others': its counter is gone with it.
    """
    total = after.total - before.total
    if total <= 0:
        return 0.0
    own = sum(max(0, ticks - before.own.get(pid, 0)) for pid, ticks in after.own.items())
    return min(1.0, max(0.0, (after.busy - before.busy - own) / total))


def own_tree(pid: int | None = None, root: Path = ROOT) -> list[int]:
    """A process (None: this one) and all below it."""
    children: dict[int, list[int]] = defaultdict(list)
    for path in (root / "proc").glob("[0-9]*/stat"):
        if fields := _fields(path):
            children[int(fields[_PARENT])].append(int(path.parent.name))
    tree = [pid or os.getpid()]
    for number in tree:  # grows while it is gone through
        tree += children[number]
    return tree


def _times(root: Path, tree: Iterable[int]) -> dict[int, int]:
    """Ticks of those processes that are there still."""
    found = ((number, _fields(root / f"proc/{number}/stat")) for number in tree)
    return {number: int(fields[_USER_TIME]) + int(fields[_SYSTEM_TIME]) for number, fields in found if fields}


def _fields(path: Path) -> list[str]:
    """Of a process's ``stat``, after its name in parentheses; empty where it is gone."""
    fields = (read_text(path) or "").rpartition(")")[2].split()
    return fields if len(fields) > _SYSTEM_TIME else []
