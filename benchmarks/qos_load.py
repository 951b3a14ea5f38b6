"""The load and the promise that variants are compared under: found on a profile, in virtual time.

The promise lies between what the lowest and the highest variant do under the load (their p95 times per token, geometric
mean), and the load is the lightest under which the highest breaks it often and the lowest hardly ever.  Both shall hold
also where the machine is faster or slower than its profile says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.setting import Setting
from lamella.qos.policies.static import Static
from lamella.qos.profiles.documents import Profile
from lamella.qos.simulator.outcome import Outcome, attainment
from lamella.qos.simulator.replay import ReplayOptions, replay
from lamella.qos.traces.arrivals import DEFAULT_CLASS, Trace
from lamella.qos.traces.generators import Lengths, Load, bursts
from lamella.qos.watching import p95

EVERY_SECONDS, BURST_SECONDS = 60.0, 25.0
QUIET_SHARE = 0.1
"""Arrivals between bursts, as a share of the peak."""
HIGHEST_KEEPS, LOWEST_KEEPS = 0.5, 0.98
"""With room to the 60 % and 95 % that are claimed..."""
MARGINS = (1.1, 1.05, 1.0)
"""...also where every step takes so many times longer, or shorter, than the profile says; the first that can be had."""
PEAKS = [0.25 * 1.15**i for i in range(32)]


@dataclass(frozen=True, slots=True)
class Contest:
    """What all ways are compared on."""

    trace: Trace
    objectives: Objectives
    highest: str
    lowest: str

    @property
    def token_ms(self) -> float:
        seconds = self.objectives.classes[DEFAULT_CLASS].tpot_seconds
        assert seconds is not None  # it is what was promised
        return seconds * 1000


def find_contest(profile: Profile, minutes: float, seed: int) -> Contest:
    """The lightest bursts that tell the highest and the lowest variant apart.

    Raises:
        SystemExit: none do: the variants are equally fast.
    """
    free = Setting.of(profile, Objectives({DEFAULT_CLASS: ClassObjectives()}))
    highest, lowest = free.rungs[0].name, _fastest(free)
    traces = [bursty(peak, minutes, seed) for peak in PEAKS]
    for margin in MARGINS:
        for trace in traces:
            wanted = _between(*(_alone(trace, free, name) for name in (highest, lowest)))
            quick, slow = _alone(trace, free, highest, 1 / margin), _alone(trace, free, lowest, margin)
            if attainment(quick.served, wanted) <= HIGHEST_KEEPS and attainment(slow.served, wanted) >= LOWEST_KEEPS:
                return Contest(trace, wanted, highest, lowest)
    raise SystemExit(f"no bursts tell '{highest}' and '{lowest}' apart; take variants that differ more in speed")


def _between(high: Outcome, low: Outcome) -> Objectives:
    """The promise between two variants."""
    seconds = math.sqrt(_tpot(high) * _tpot(low))
    return Objectives({DEFAULT_CLASS: ClassObjectives(tpot_seconds=round(seconds, 4))})


def bursty(peak: float, minutes: float, seed: int) -> Trace:
    """Bursts of ``peak`` requests a second, little between them: short questions and long answers.

    Prompts are read equally fast by all variants (the products are bound by computing), answers are not written so.
    """
    load = Load(
        rate=QUIET_SHARE * peak,
        seconds=60 * minutes,
        prompt=Lengths(32, most=256),
        generated=Lengths(128, most=256),
    )
    return bursts(load, peak=peak, every=EVERY_SECONDS, length=BURST_SECONDS, seed=seed)


def _fastest(setting: Setting) -> str:
    n = setting.engine.n_sequences
    return min(setting.rungs, key=lambda rung: rung.speed.writing(n, 100)).name


def _alone(trace: Trace, setting: Setting, variant: str, slowdown: float = 1.0) -> Outcome:
    rarely = ReplayOptions(start=variant, sample_seconds=EVERY_SECONDS, slowdown=slowdown)  # there is nothing to decide
    return replay(trace, setting, Static(variant), rarely)


def _tpot(outcome: Outcome) -> float:
    found = p95(one.tpot_seconds for one in outcome.served if not one.failure)
    assert found is not None  # there are requests
    return found
