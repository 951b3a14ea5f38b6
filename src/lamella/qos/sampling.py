"""What a policy is shown, put together from what requests do and what the machine says."""

from __future__ import annotations

from collections.abc import Sequence

from lamella.qos.policies.sample import Sample, Stream, slowdown_by_others
from lamella.qos.readers.machine import MachineSample
from lamella.qos.readers.memory import Memory
from lamella.qos.watching import LoadWatch


def sample_of(
    now: float,
    watch: LoadWatch,
    machine: MachineSample | None,
    *,
    n_running: int = 0,
    n_waiting: int = 0,
    waiting_tokens: int = 0,
    mapped_bytes: int = 0,
    streams: Sequence[Stream] = (),
) -> Sample:
    """What a policy is shown, of what is known; what is not known is left out.

    Args:
        n_running, n_waiting: requests with and without a slot.
        waiting_tokens: prompt tokens of requests that have no token yet.
        mapped_bytes: weights that the engine has mapped.  The kernel could take their pages back, and calls them
            available; a model that has to read its weights anew for every step is of no use to anybody.
        streams: requests that write.
    """
    memory, pressure, battery = (machine.memory, machine.pressure, machine.battery) if machine else (None, None, None)
    return Sample(
        time=now,
        classes=watch.classes(now),
        n_running=n_running,
        n_waiting=n_waiting,
        waiting_tokens=waiting_tokens,
        slowdown=slowdown_by_others(machine.others_share if machine else None),
        available_bytes=max(0, memory.available_bytes - _needed_cache(memory, mapped_bytes)) if memory else None,
        memory_stall=pressure.full_share if pressure else None,
        is_own_stall=pressure.is_own if pressure else True,
        on_battery=battery.is_discharging if battery else False,
        streams=streams,
    )


def _needed_cache(memory: Memory, mapped_bytes: int) -> int:
    """Page cache that was called available and holds mapped weights; in a control group at most what is its own."""
    group = next((g for g in memory.groups if g.group == memory.limited_by), None)
    return mapped_bytes if group is None else min(mapped_bytes, group.cache_bytes)
