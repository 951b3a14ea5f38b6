"""The load and the promise that variants are compared under.

The promise is the loosest that the highest variant breaks for half of the requests; so it lies between what the highest
and the lowest do.  The load is found on a profile, in virtual time: the lightest under which the lowest keeps such a
promise on the slowest machine.  A shared machine may be half as slow again for a minute (docs/log.md), and where even
the lowest variant breaks a promise there is nothing to compare.  For the same reason the promise is stated anew by what
the highest variant did live (``restated``): a profile of a quicker quarter of an hour would promise too much.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from lamella.qos.objectives.stated import ClassObjectives, Objectives
from lamella.qos.policies.setting import Setting
from lamella.qos.policies.static import Static
from lamella.qos.profiles.documents import Profile
from lamella.qos.simulator.outcome import Outcome, Served, attainment
from lamella.qos.simulator.replay import ReplayOptions, replay
from lamella.qos.traces.arrivals import DEFAULT_CLASS, Trace
from lamella.qos.traces.generators import Lengths, Load, bursts

EVERY_SECONDS, BURST_SECONDS = 60.0, 25.0
QUIET_SHARE = 0.1
"""Arrivals between bursts, as a share of the peak."""
HIGHEST_KEEPS, LOWEST_KEEPS = 0.5, 0.98
"""With room to the 60 % and 95 % that are claimed..."""
QUICKER = 1.1
"""...for the highest also where every step takes so many times less than the profile says..."""
MARGINS = (1.5, 1.4, 1.3, 1.2, 1.1, 1.05, 1.0)
"""...and for the lowest where it takes so many times longer; the first that can be had."""
PEAKS = [0.25 * 1.15**i for i in range(32)]

Make = Callable[[float, float, int], Trace]


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


def bursty(peak: float, minutes: float, seed: int) -> Trace:
    """Bursts of ``peak`` requests a second, little between them."""
    load = talks(QUIET_SHARE * peak, minutes)
    return bursts(load, peak=peak, every=EVERY_SECONDS, length=BURST_SECONDS, seed=seed)


def talks(rate: float, minutes: float) -> Load:
    """Short questions and long answers.

    Prompts are read equally fast by all variants (the products are bound by computing), answers are not written so.
    """
    return Load(rate=rate, seconds=60 * minutes, prompt=Lengths(32, most=256), generated=Lengths(128, most=256))


def find_contest(profile: Profile, minutes: float, seed: int, make: Make = bursty) -> Contest:
    """The lightest load of a kind that tells the highest and the lowest variant apart.

    Args:
        make: of a peak, minutes and a seed.

    Raises:
        SystemExit: none does: the variants are equally fast.
    """
    free = Setting.of(profile, Objectives({DEFAULT_CLASS: ClassObjectives()}))
    highest, lowest = free.rungs[0].name, _fastest(free)
    quick = ((trace, _alone(trace, free, highest, 1 / QUICKER)) for trace in (make(p, minutes, seed) for p in PEAKS))
    served = itertools.takewhile(lambda pair: not pair[1].n_failed, quick)  # heavier loads are refused
    promises = [(trace, _half_broken(outcome.served)) for trace, outcome in served]
    for margin in MARGINS:
        for trace, promised in promises:
            if attainment(_alone(trace, free, lowest, margin).served, promised) >= LOWEST_KEEPS:
                return Contest(trace, promised, highest, lowest)
    raise SystemExit(f"no load tells '{highest}' and '{lowest}' apart; take variants that differ more in speed")


def restated(contest: Contest, by_highest: Sequence[Served]) -> Contest:
    """The same load; the promise is that which the highest variant broke for half of the requests, live."""
    return replace(contest, objectives=_half_broken([one for one in by_highest if not one.failure]))


def _half_broken(served: Sequence[Served]) -> Objectives:
    """The loosest promise that is kept for at most ``HIGHEST_KEEPS`` of the requests."""
    times = sorted(one.tpot_seconds for one in served)
    seconds = times[max(0, int(HIGHEST_KEEPS * len(times)) - 1)]
    return Objectives({DEFAULT_CLASS: ClassObjectives(tpot_seconds=math.floor(seconds * 1e4) / 1e4)})


def _fastest(setting: Setting) -> str:
    n = setting.engine.n_sequences
    return min(setting.rungs, key=lambda rung: rung.speed.writing(n, 100)).name


def _alone(trace: Trace, setting: Setting, variant: str, slowdown: float = 1.0) -> Outcome:
    rarely = ReplayOptions(start=variant, sample_seconds=EVERY_SECONDS, slowdown=slowdown)  # there is nothing to decide
    return replay(trace, setting, Static(variant), rarely)
