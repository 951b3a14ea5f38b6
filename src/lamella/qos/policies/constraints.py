"""What no latency outweighs: memory first, then quality floors, then power.

Where nothing meets all of them, the later ones give way: a process that the kernel kills meets no floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lamella.core.units import MIB, format_bytes
from lamella.qos.policies.decision import PolicyState
from lamella.qos.policies.forecast import forecast
from lamella.qos.policies.sample import Sample
from lamella.qos.policies.setting import Rung, Setting

RESERVE_BYTES = 64 * MIB
"""Memory that must stay free: what other processes may take between two samples."""
MOST_STALL = 0.05
"""Share of the time in which everybody waits for memory, from which on memory is short."""
CALM_SECONDS = 30.0
"""After memory was short, nothing larger is taken for so long."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What may run.

    Attributes:
        rungs: best first, never none.
        pressed: why memory is short now, in words; "" when it is not.
        gave_way: what cannot be met by any of them, in words; "" when all can.
    """

    rungs: Sequence[Rung]
    pressed: str = ""
    gave_way: str = ""


def allowed(setting: Setting, state: PolicyState, sample: Sample) -> Choice:
    """The rungs that may run now."""
    pressed = _pressure(setting.rung(state.variant), sample)
    within = _within_memory(setting, state, sample, is_pressed=bool(pressed))
    good = [rung for rung in within if _meets_floors(rung, setting, sample)]
    frugal = [rung for rung in good or within if _meets_power(rung, setting, sample)]
    missed = [what for what, found in (("quality floor", good), ("power ceiling", frugal)) if not found]
    gave_way = f"no variant that fits meets the {' and the '.join(missed)}" if missed else ""
    return Choice(frugal or good or within, pressed, gave_way)


def _pressure(current: Rung, sample: Sample) -> str:
    if sample.available_bytes is not None and sample.available_bytes < RESERVE_BYTES:
        return f"{format_bytes(sample.available_bytes)} of memory are left, less than {format_bytes(RESERVE_BYTES)}"
    if sample.memory_stall is not None and sample.memory_stall > MOST_STALL and not _is_of_others(current, sample):
        return f"everybody waited for memory {sample.memory_stall:.0%} of the time"
    return ""


def _is_of_others(current: Rung, sample: Sample) -> bool:
    """Whether who waits does so under a limit of its own.

    The machine's figure counts a container that has reached its limit while the machine has plenty: giving up memory
    would help nobody.  Plenty is what the running variant would fit into once more.
    """
    has_plenty = sample.available_bytes is not None and sample.available_bytes > current.memory_bytes
    return not sample.is_own_stall and has_plenty


def _within_memory(setting: Setting, state: PolicyState, sample: Sample, *, is_pressed: bool) -> list[Rung]:
    """Rungs that fit: the ceiling, what is available, and under pressure at least as much less as is missing.

    Where none does, the smallest.
    """
    current, smallest = setting.rung(state.variant), min(r.memory_bytes for r in setting.rungs)
    ceiling = setting.objectives.memory_bytes
    was_pressed = state.pressed_at is not None and sample.time - state.pressed_at < CALM_SECONDS
    most = float("inf") if ceiling is None else float(ceiling)
    if sample.available_bytes is not None:
        most = min(most, current.memory_bytes + sample.available_bytes - RESERVE_BYTES)
    if is_pressed:
        most = min(most, current.memory_bytes - 1)
    elif was_pressed:
        most = min(most, current.memory_bytes)
    return [r for r in setting.rungs if r.memory_bytes <= max(most, smallest)]


def _meets_floors(rung: Rung, setting: Setting, sample: Sample) -> bool:
    floors = [w.most_kl for n, w in setting.objectives.classes.items() if n in sample.classes and w.most_kl is not None]
    return not floors or (rung.kl is not None and rung.kl <= min(floors))


def _meets_power(rung: Rung, setting: Setting, sample: Sample) -> bool:
    ceiling = setting.objectives.watts(on_battery=sample.on_battery)
    if ceiling is None:
        return True
    watts = forecast(rung, setting, sample).watts
    return watts is not None and watts <= ceiling
