"""Objectives that no variant can meet are refused before anything runs, with the nearest that one can.

A promise is impossible where even one request alone, on a machine that does nothing else, breaks it at every variant
that the memory ceiling and the class's quality floor leave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from lamella.core.errors import ImpossibleObjectives
from lamella.core.units import MIB, format_bytes
from lamella.qos.objectives.stated import ClassObjectives
from lamella.qos.policies.setting import Rung, Setting


def check_feasible(setting: Setting) -> None:
    """Refuse what cannot be.

    Raises:
        ImpossibleObjectives: every impossible objective, each with the nearest value that is possible.
    """
    faults = list(_faults(setting))
    if faults:
        raise ImpossibleObjectives("impossible objectives: " + "; ".join(faults))


def _faults(setting: Setting) -> Iterator[str]:
    fitting = _within_memory(setting)
    if not fitting:
        smallest = min(setting.rungs, key=lambda r: r.memory_bytes)
        needed = math.ceil(smallest.memory_bytes / MIB)
        yield (
            f"memory {format_bytes(setting.objectives.memory_bytes or 0)}: the smallest variant, '{smallest.name}', "
            f"needs {needed}MiB"
        )
        fitting = list(setting.rungs)
    for name, wanted in setting.objectives.classes.items():
        for fault in _class_faults(wanted, fitting, setting):
            yield f"class '{name}': {fault}"
    yield from _power_faults(setting, fitting)


def _within_memory(setting: Setting) -> list[Rung]:
    ceiling = setting.objectives.memory_bytes
    return [r for r in setting.rungs if ceiling is None or r.memory_bytes <= ceiling]


def _class_faults(wanted: ClassObjectives, fitting: Sequence[Rung], setting: Setting) -> Iterator[str]:
    good = list(fitting)
    if wanted.most_kl is not None:
        good = [r for r in fitting if r.kl is not None and r.kl <= wanted.most_kl]
        if not good:
            yield _floor_fault(wanted.most_kl, fitting, setting)
            good = list(fitting)
    yield from _latency_fault(
        "tpot_p95_ms", wanted.tpot_seconds, good, lambda r: r.speed.writing(1, 0), "a token alone"
    )
    shortest = min(p.n_tokens for r in good for p in r.profile.prompt)
    what = f"a prompt of {shortest} tokens alone"
    yield from _latency_fault("ttft_p95_ms", wanted.ttft_seconds, good, lambda r: r.speed.prompt(shortest), what)


def _floor_fault(most_kl: float, fitting: Sequence[Rung], setting: Setting) -> str:
    known = [r for r in setting.rungs if r.kl is not None]
    if not known:
        return f"max_kl {most_kl:g}: no variant's divergence is known (lamella profile STORE --text FILE measures it)"
    best = min(known, key=lambda r: r.kl or 0.0)
    if (best.kl or 0.0) > most_kl:
        return f"max_kl {most_kl:g}: the best variant, '{best.name}', has {best.kl:.4g}"
    within = min((r for r in known if (r.kl or 0.0) <= most_kl), key=lambda r: r.memory_bytes)
    nearest = min((r.kl for r in fitting if r.kl is not None), default=math.inf)
    return (
        f"max_kl {most_kl:g} within the memory ceiling: the smallest variant that keeps it, '{within.name}', needs "
        f"{math.ceil(within.memory_bytes / MIB)}MiB; the best that fits has {nearest:.4g}"
    )


def _latency_fault(
    field: str, promised: float | None, rungs: Sequence[Rung], seconds_of: Callable[[Rung], float], what: str
) -> Iterator[str]:
    fastest = min(rungs, key=seconds_of)
    needed = seconds_of(fastest)
    if promised is not None and promised < needed:
        yield (
            f"{field} {promised * 1000:g}: {what} takes '{fastest.name}', the fastest that may run, "
            f"{needed * 1000:.1f} ms; the nearest is {_rounded_up(needed * 1000):g}"
        )


def _power_faults(setting: Setting, fitting: Sequence[Rung]) -> Iterator[str]:
    for field, ceiling in (
        ("power_watts", setting.objectives.power_watts),
        ("battery_watts", setting.objectives.battery_watts),
    ):
        if ceiling is None:
            continue
        needed = [w for r in fitting if (w := _watts_of_one_stream(r, setting)) is not None]
        if not needed:
            yield f"{field} {ceiling:g}: the profile has no energy, this machine does not tell it"
        elif min(needed) > ceiling:
            yield f"{field} {ceiling:g}: one stream alone takes at least {min(needed):.1f} W"


def _watts_of_one_stream(rung: Rung, setting: Setting) -> float | None:
    joules = rung.profile.joules_per_token
    if setting.idle_watts is None or joules is None:
        return None
    return setting.idle_watts + joules / rung.speed.writing(1, 0)


def _rounded_up(value: float) -> float:
    """To two digits, upwards: a value that is possible and easy to write."""
    step: float = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / step) * step, 6)
