"""Memory pressure: how much of the time processes waited for memory (PSI).

Source: Documentation/accounting/psi.rst of the Linux kernel.  ``some``: at least one process waited; ``full``: all
waited, so that nothing was computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lamella.qos.readers.reading import ROOT, Absent, read_text
from lamella.resources.cgroup import GroupMemory, memory_groups

READER = "pressure"
MACHINE_FILE = "proc/pressure/memory"


@dataclass(frozen=True, slots=True)
class MemoryPressure:
    """Waiting for memory.

    Attributes:
        where: the file: of the process's own control group, else of the machine.
        some_share: of the last ten seconds in which at least one process waited, 0 to 1.
        full_share: in which all waited, 0 to 1.
        stalled_seconds: in which all waited, since the group or the machine started.
    """

    where: str
    some_share: float
    full_share: float
    stalled_seconds: float

    @property
    def is_own(self) -> bool:
        """Of the process's own group: nobody outside of it is counted."""
        return self.where != f"/{MACHINE_FILE}"


def read_pressure(root: Path = ROOT, groups: Sequence[GroupMemory] | None = None) -> MemoryPressure | Absent:
    """Pressure now.

    The process's own group comes first: its figure says how this process waits, under whichever limit; the machine's
    also counts others that wait under limits of their own.

    Args:
        groups: what ``memory_groups`` said just now; None to look.
    """
    for path in _files(root, memory_groups(root) if groups is None else groups):
        text = read_text(path)
        if text is not None and (found := _parse(text, "/" + str(path.relative_to(root)))) is not None:
            return found
    return Absent(READER, f"neither the control group nor /{MACHINE_FILE} tells it (kernel without PSI, or psi=0)")


def _files(root: Path, groups: Sequence[GroupMemory]) -> Iterable[Path]:
    return (*(g.pressure_file for g in groups[:1]), root / MACHINE_FILE)


def _parse(text: str, where: str) -> MemoryPressure | None:
    """Lines such as ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0``: percent, and microseconds."""
    lines = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        lines[kind] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    try:
        some, full = lines["some"], lines["full"]
        return MemoryPressure(
            where, float(some["avg10"]) / 100, float(full["avg10"]) / 100, float(full["total"]) / 1_000_000
        )
    except (KeyError, ValueError):
        return None
