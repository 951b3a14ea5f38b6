"""What the processor consumed: RAPL counters through powercap, as ALCS panel 7 asks for.

    before = read_energy()
    ...
    joules = joules_between(before, read_energy())

Source: Documentation/power/powercap/powercap.rst of the Linux kernel.  A counter of package ``intel-rapl:0`` (AMD's
have that name too) counts microjoules up to ``max_energy_range_uj`` and begins again.  At 100 W that takes minutes, so
two looks must be closer together than one round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lamella.qos.readers.reading import ROOT, Absent, folders, read_number, read_text

READER = "energy"
_FOLDER = "sys/class/powercap"
_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class EnergyCounter:
    """One counter, in microjoules; ``range_uj`` is the value after which it begins again."""

    energy_uj: int
    range_uj: int


@dataclass(frozen=True, slots=True)
class Energy:
    """The counters that together are the processor's and its memory's consumption, by zone."""

    counters: Mapping[str, EnergyCounter]


def read_energy(root: Path = ROOT) -> Energy | Absent:
    """The counters now: of each package, and of memory where it is counted beside the package.

    Cores and graphics are parts of their package; ``psys`` is the whole machine, packages included.  Neither is counted
    a second time.
    """
    zones = [z for z in folders(root / _FOLDER, "intel-rapl:*") if _counts(read_text(z / "name") or "")]
    if not zones:
        return Absent(READER, f"there is no RAPL zone in /{_FOLDER}")
    counters = {}
    for zone in zones:
        energy, largest = read_number(zone / "energy_uj"), read_number(zone / "max_energy_range_uj")
        if energy is None or largest is None:
            return Absent(READER, f"/{_FOLDER}/{zone.name}/energy_uj cannot be read (many kernels let only root)")
        counters[zone.name] = EnergyCounter(energy, largest)
    return Energy(counters)


def joules_between(before: Energy, after: Energy) -> float:
    """What was consumed between two looks, zones that only one of them has left out."""
    return sum(_moved(before.counters[z], after.counters[z]) for z in before.counters.keys() & after.counters) / _MICRO


def _moved(before: EnergyCounter, after: EnergyCounter) -> int:
    moved = after.energy_uj - before.energy_uj
    return moved if moved >= 0 else moved + after.range_uj + 1


def _counts(name: str) -> bool:
    return name.startswith("package") or name == "dram"
