"""Joules of everything that counts them: packages and memory by RAPL, devices by NVML."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lamella.core.closing import Closing
from lamella.qos.readers.energy import Energy, joules_between, read_energy
from lamella.qos.readers.nvidia import NvidiaReader
from lamella.qos.readers.reading import ROOT, Absent

IDLE_SECONDS = 2.0


class EnergyMeter(Closing):
    """Adds up what was consumed since it was made; looks often enough that no counter goes round unseen."""

    def __init__(self, root: Path = ROOT, nvidia: Callable[[], NvidiaReader] = NvidiaReader) -> None:
        """Begin to count."""
        self._root, self._nvidia = root, nvidia()
        self._rapl = self._read_rapl()
        self._total = 0.0
        devices = self._device_joules()
        self._start = devices or 0.0
        self.is_present = self._rapl is not None or devices is not None

    def joules(self) -> float:
        """Since the meter was made; 0 where nothing counts."""
        now = self._read_rapl()
        if self._rapl is not None and now is not None:
            self._total += joules_between(self._rapl, now)
        self._rapl = now
        return self._total + (self._device_joules() or self._start) - self._start

    def idle_watts(self, sleep: Callable[[float], None] = time.sleep) -> float | None:
        """Power of a machine that does nothing for a while; None where it is not counted."""
        if not self.is_present:
            return None
        before, start = self.joules(), time.monotonic()
        sleep(IDLE_SECONDS)
        return (self.joules() - before) / max(IDLE_SECONDS, time.monotonic() - start)

    def close(self) -> None:
        """Let go of NVML."""
        self._nvidia.close()

    def _read_rapl(self) -> Energy | None:
        found = read_energy(self._root)
        return None if isinstance(found, Absent) else found

    def _device_joules(self) -> float | None:
        devices = self._nvidia.read()
        if isinstance(devices, Absent):
            return None
        known = [d.joules for d in devices if d.joules is not None]
        return sum(known) if known else None
