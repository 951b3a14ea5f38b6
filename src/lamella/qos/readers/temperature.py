"""Temperature of the hottest sensor, and how often the processor was slowed down for it.

Sources: Documentation/driver-api/thermal/sysfs-api.rst, Documentation/hwmon/sysfs-interface.rst, and
arch/x86/kernel/cpu/mce/therm_throt.c of the Linux kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lamella.qos.readers.reading import ROOT, Absent, folders, read_number, read_text

READER = "temperature"
_PLAUSIBLE = range(-40_000, 200_000)  # millidegrees; broken sensors show -273 or 32767 degrees
_SLOWS_DOWN = "passive"


@dataclass(frozen=True, slots=True)
class Temperature:
    """The hottest sensor.

    Attributes:
        sensor: what it calls itself.
        celsius: its reading.
        slows_at_celsius: where the kernel begins to slow the processor down; None where that is not told.
        n_throttled: times that a core or a package was slowed down since the start; 0 where that is not counted.
    """

    sensor: str
    celsius: float
    slows_at_celsius: float | None
    n_throttled: int

    @property
    def is_too_hot(self) -> bool:
        """Whether the kernel slows the processor down for this reading."""
        return self.slows_at_celsius is not None and self.celsius >= self.slows_at_celsius


def read_temperature(root: Path = ROOT) -> Temperature | Absent:
    """The hottest sensor now."""
    count = _throttle_count(root)
    readings = [*_zones(root, count), *_monitors(root, count)]
    if not readings:
        return Absent(READER, "there is no sensor in /sys/class/thermal or /sys/class/hwmon")
    return max(readings, key=lambda reading: reading.celsius)


def _zones(root: Path, count: int) -> Iterator[Temperature]:
    for zone in folders(root / "sys/class/thermal", "thermal_zone*"):
        reading = read_number(zone / "temp")
        if reading is not None and reading in _PLAUSIBLE:
            yield Temperature(read_text(zone / "type") or zone.name, reading / 1000, _passive_trip(zone), count)


def _passive_trip(zone: Path) -> float | None:
    trips = [
        read_number(path.with_name(path.name.replace("_type", "_temp")))
        for path in sorted(zone.glob("trip_point_*_type"))
        if read_text(path) == _SLOWS_DOWN
    ]
    known = [trip / 1000 for trip in trips if trip is not None and trip > 0]
    return min(known, default=None)


def _monitors(root: Path, count: int) -> Iterator[Temperature]:
    for monitor in folders(root / "sys/class/hwmon", "hwmon*"):
        for path in sorted(monitor.glob("temp*_input")):
            reading = read_number(path)
            if reading is not None and reading in _PLAUSIBLE:
                yield Temperature(read_text(monitor / "name") or monitor.name, reading / 1000, None, count)


def _throttle_count(root: Path) -> int:
    """All cores share their package's counter, so of that the largest is taken; of the cores' own the sum."""
    cores = folders(root / "sys/devices/system/cpu", "cpu[0-9]*")
    counts = [folder / "thermal_throttle" for folder in cores]
    own = sum(read_number(folder / "core_throttle_count") or 0 for folder in counts)
    return own + max((read_number(folder / "package_throttle_count") or 0 for folder in counts), default=0)
