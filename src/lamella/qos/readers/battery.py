"""The battery: how full it is, whether it drains, and how fast.

Source: Documentation/ABI/testing/sysfs-class-power of the Linux kernel: microwatt, microvolt, microampere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lamella.qos.readers.reading import ROOT, Absent, folders, read_number, read_text

READER = "battery"
_FOLDER = "sys/class/power_supply"


@dataclass(frozen=True, slots=True)
class Battery:
    """All batteries of the machine together.

    Attributes:
        charge: share that is left, 0 to 1: the mean where there are several.
        is_discharging: the machine runs on it.
        watts: what is drawn from it, or None where that is not told.
    """

    charge: float
    is_discharging: bool
    watts: float | None


def read_battery(root: Path = ROOT) -> Battery | Absent:
    """The battery now; those of mice and keyboards do not count."""
    supplies = [f for f in folders(root / _FOLDER, "*") if _is_ours(f)]
    charges = [(f, charge) for f in supplies if (charge := read_number(f / "capacity")) is not None]
    if not charges:
        return Absent(READER, f"there is no battery in /{_FOLDER}")
    draining = [f for f, _ in charges if read_text(f / "status") == "Discharging"]
    watts = [w for f in draining if (w := _watts(f)) is not None]
    return Battery(
        charge=sum(charge for _, charge in charges) / len(charges) / 100,
        is_discharging=bool(draining),
        watts=sum(watts) if watts else None,
    )


def _is_ours(folder: Path) -> bool:
    return read_text(folder / "type") == "Battery" and read_text(folder / "scope") != "Device"


def _watts(folder: Path) -> float | None:
    """Drivers tell the power, or current and voltage; some show what is drawn as negative."""
    power = read_number(folder / "power_now")
    if power is not None:
        return abs(power) / 1e6
    current, voltage = read_number(folder / "current_now"), read_number(folder / "voltage_now")
    return None if current is None or voltage is None else abs(current) * voltage / 1e12
