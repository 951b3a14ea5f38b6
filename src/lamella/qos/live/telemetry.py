"""What is heard of requests and what the machine says, in one sample for policies, and as figures for people.

with MachineReader() as reader:
    telemetry = Telemetry(hearing, reader, n_sequences=8, status=lambda: client.status)
    sample = await telemetry.take()
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from lamella.batching.messages import Status
from lamella.qos.live.hearing import RequestHearing
from lamella.qos.policies.sample import Sample
from lamella.qos.readers.machine import MachineReader, MachineSample
from lamella.qos.sampling import sample_of

FRESH_SECONDS = 0.4
"""Figures are not read again within this time: rates of shorter times are noise."""


class Telemetry:
    """Takes samples, and remembers the last."""

    def __init__(
        self,
        hearing: RequestHearing,
        reader: MachineReader,
        *,
        n_sequences: int,
        status: Callable[[], Status | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read yet.

        Args:
            n_sequences: requests that run at once.
            status: the engine's last heartbeat.
        """
        self._hearing, self._reader, self._n_sequences = hearing, reader, n_sequences
        self._status, self._clock = status, clock
        self._last: tuple[Sample, MachineSample] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def take(self) -> Sample:
        """A sample; the machine is read in a thread, because some of its files take their time."""
        async with self._one_at_a_time:
            now = self._clock()
            if self._last is not None and now - self._last[1].time < FRESH_SECONDS:
                machine = self._last[1]
            else:
                machine = await asyncio.to_thread(self._reader.read, now)
            n_open, status, now = self._hearing.n_open, self._status(), self._clock()
            sample = sample_of(
                now,
                self._hearing.watch,
                machine,
                n_running=min(n_open, self._n_sequences),
                n_waiting=max(0, n_open - self._n_sequences),
                waiting_tokens=self._hearing.waiting_tokens,
                mapped_bytes=status.mapped_bytes if status else 0,
                streams=self._hearing.streams(now),
            )
            self._last = sample, machine
            return sample

    async def figures(self) -> dict[str, Any]:
        """The latest sample as a document (docs/api.md); null where the machine or the engine does not tell."""
        now = self._clock()
        if self._last is None or now - self._last[1].time >= 2 * FRESH_SECONDS:
            await self.take()
        assert self._last is not None  # it was taken
        sample, machine = self._last
        return {**_load(sample), **_engine(self._status()), **_machine(machine)}


def _load(sample: Sample) -> dict[str, Any]:
    return {
        "classes": {
            name: {
                "arrivals_per_second": round(seen.arrivals_per_second, 3),
                "ttft_p95_ms": _milliseconds(seen.ttft_p95_seconds),
                "tpot_p95_ms": _milliseconds(seen.tpot_p95_seconds),
                "kept_share": round(seen.kept_share, 4),
            }
            for name, seen in sample.classes.items()
        },
        "ttft_p95_ms": _milliseconds(_largest(c.ttft_p95_seconds for c in sample.classes.values())),
        "tpot_p95_ms": _milliseconds(_largest(c.tpot_p95_seconds for c in sample.classes.values())),
        "arrivals_per_second": round(sample.arrivals_per_second, 3),
        "requests_running": sample.n_running,
        "requests_waiting": sample.n_waiting,
    }


def _engine(status: Status | None) -> dict[str, Any]:
    return {
        "batch": status.n_running if status else None,
        "engine_bytes": status.mapped_bytes + status.private_bytes if status else None,
    }


def _machine(machine: MachineSample) -> dict[str, Any]:
    memory, pressure, battery, hottest = machine.memory, machine.pressure, machine.battery, machine.temperature
    return {
        "memory_available_bytes": memory.available_bytes if memory else None,
        "memory_total_bytes": memory.total_bytes if memory else None,
        "memory_stall_share": pressure.full_share if pressure else None,
        "watts": machine.watts,
        "others_share": machine.others_share,
        "celsius": hottest.celsius if hottest else None,
        "is_slowed_for_heat": machine.is_slowed_for_heat,
        "battery_charge": battery.charge if battery else None,
        "on_battery": battery.is_discharging if battery else None,
        "absent": {absent.reader: absent.reason for absent in machine.absent},
    }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def _largest(values: Iterable[float | None]) -> float | None:
    return max((v for v in values if v is not None), default=None)
