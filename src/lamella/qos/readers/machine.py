"""All readers in one sample, with rates where a reader counts.

with MachineReader(pid=engine_pid) as machine:
    machine.read(time.monotonic()).watts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.core.closing import Closing
from lamella.qos.readers.battery import Battery, read_battery
from lamella.qos.readers.energy import Energy, joules_between, read_energy
from lamella.qos.readers.memory import Memory, read_memory
from lamella.qos.readers.nvidia import NvidiaDevice, NvidiaReader
from lamella.qos.readers.pressure import MemoryPressure, read_pressure
from lamella.qos.readers.processor import ProcessorTimes, own_tree, read_processor, taken_by_others
from lamella.qos.readers.reading import ROOT, Absent
from lamella.qos.readers.temperature import Temperature, read_temperature
from lamella.resources.cgroup import memory_groups

TREE_SECONDS = 5.0
"""The processes that are ours are looked for so often; what new ones take counts as others' until then."""


@dataclass(frozen=True, slots=True)
class MachineSample:
    """The machine at one time; what it lacks is None here and in ``absent`` with its reason.

    Attributes:
        time: as the caller's clock has it, in seconds.
        others_share: of the processor that others took since the sample before; None for the first.
        watts: of the processor since the sample before, NVIDIA devices included; None for the first.
        is_slowed_for_heat: the processor or a device was slowed down since the sample before.
        absent: what could not be read, and why.
    """

    time: float
    pressure: MemoryPressure | None
    memory: Memory | None
    others_share: float | None
    temperature: Temperature | None
    is_slowed_for_heat: bool
    watts: float | None
    battery: Battery | None
    devices: tuple[NvidiaDevice, ...]
    absent: tuple[Absent, ...]


@dataclass(frozen=True, slots=True)
class _Counters:
    """What rates are made of."""

    time: float
    processor: ProcessorTimes | None
    energy: Energy | None
    n_throttled: int


class MachineReader(Closing):
    """Reads everything, and remembers the last counters."""

    def __init__(
        self, pid: int | None = None, root: Path = ROOT, nvidia: Callable[[], NvidiaReader] = NvidiaReader
    ) -> None:
        """Read for the process tree under ``pid`` (None: this process's own)."""
        self._pid, self._root, self._nvidia = pid, root, nvidia()
        self._last: _Counters | None = None
        self._found: Sequence[int] = ()
        self._looked_at = 0.0

    def read(self, now: float) -> MachineSample:
        """A sample; the first one has no rates."""
        root, groups = self._root, memory_groups(self._root)
        absent: list[Absent] = []

        def present(found: Any) -> Any:
            if isinstance(found, Absent):
                absent.append(found)
                return None
            return found

        temperature: Temperature | None = present(read_temperature(root))
        counters = _Counters(
            time=now,
            processor=present(read_processor(self._pid, root, self._tree(now))),
            energy=present(read_energy(root)),
            n_throttled=temperature.n_throttled if temperature else 0,
        )
        devices: tuple[NvidiaDevice, ...] = present(self._nvidia.read()) or ()
        last, self._last = self._last, counters
        return MachineSample(
            time=now,
            pressure=present(read_pressure(root, groups)),
            memory=present(read_memory(root, groups)),
            others_share=_others_share(last, counters),
            temperature=temperature,
            is_slowed_for_heat=_is_slowed(last, counters, temperature, devices),
            watts=_watts(last, counters, devices),
            battery=present(read_battery(root)),
            devices=devices,
            absent=tuple(absent),
        )

    def _tree(self, now: float) -> Sequence[int]:
        """The processes of our own tree, as they were a while ago: to look through all takes milliseconds."""
        if self._last is None or now - self._looked_at >= TREE_SECONDS:
            self._found, self._looked_at = own_tree(self._pid, self._root), now
        return self._found

    def close(self) -> None:
        """Let go of NVML."""
        self._nvidia.close()


def _others_share(last: _Counters | None, now: _Counters) -> float | None:
    if last is None or last.processor is None or now.processor is None:
        return None
    return taken_by_others(last.processor, now.processor)


def _watts(last: _Counters | None, now: _Counters, devices: tuple[NvidiaDevice, ...]) -> float | None:
    known = [d.watts for d in devices if d.watts is not None]
    if last is not None and last.energy is not None and now.energy is not None and now.time > last.time:
        known.append(joules_between(last.energy, now.energy) / (now.time - last.time))
    return sum(known) if known else None


def _is_slowed(
    last: _Counters | None, now: _Counters, temperature: Temperature | None, devices: tuple[NvidiaDevice, ...]
) -> bool:
    was_throttled = last is not None and now.n_throttled > last.n_throttled
    is_too_hot = temperature is not None and temperature.is_too_hot
    return was_throttled or is_too_hot or any(d.is_slowed_for_heat for d in devices)
