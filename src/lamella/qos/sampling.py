"""What a policy is shown, put together from what requests do, what the engine says and what the machine says."""

from __future__ import annotations

from lamella.batching.messages import Status
from lamella.qos.policies.sample import Sample, slowdown_by_others
from lamella.qos.readers.machine import MachineSample
from lamella.qos.watching import LoadWatch


def sample_of(
    now: float, watch: LoadWatch, status: Status | None, machine: MachineSample | None, waiting_tokens: int = 0
) -> Sample:
    """What a policy is shown, of what is known; what is not known is left out.

    Args:
        status: the engine's last heartbeat.
        waiting_tokens: prompt tokens of requests that have no token yet.
    """
    memory, pressure, battery = (machine.memory, machine.pressure, machine.battery) if machine else (None, None, None)
    return Sample(
        time=now,
        classes=watch.classes(now),
        n_running=status.n_running if status else 0,
        n_waiting=status.n_waiting if status else 0,
        waiting_tokens=waiting_tokens,
        slowdown=slowdown_by_others(machine.others_share if machine else None),
        available_bytes=memory.available_bytes if memory else None,
        memory_stall=pressure.full_share if pressure else None,
        on_battery=battery.is_discharging if battery else False,
    )
