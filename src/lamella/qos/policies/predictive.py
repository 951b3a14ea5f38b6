"""Policy ``predictive``: the best variant whose profile meets every objective under the load that is expected.

Down at once, because waiting costs promises.  Up only to what would also bear a larger load, after that has been so for
a while (hysteresis), and the longer, the more a change costs; and only while promises were kept lately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lamella.qos.policies.constraints import allowed
from lamella.qos.policies.decision import Decision, PolicyState
from lamella.qos.policies.forecast import Z95, Forecast, forecast
from lamella.qos.policies.sample import Sample
from lamella.qos.policies.setting import Rung, Setting

HEADROOM = 1.2
"""A better variant must bear so many times the load."""
PROMISED_SHARE = 0.95
"""What a 95th percentile promises: so many requests have it."""
CAUTIOUS_SHARE = 0.96
"""Where no more were kept lately, a forecast is of the 95th percentile of the load; where all were, of its mean."""
SWITCH_SHARE = 0.04
"""Share of the time that may go into changes of variant."""


@dataclass(frozen=True, slots=True)
class Excess:
    """How far a forecast is above what was promised.

    Attributes:
        by_priority: sum of the shares above, of each priority that a class has, the highest first.
        worst: the objective that is missed most, in words; "" when all are met.
    """

    by_priority: tuple[float, ...]
    worst: str


@dataclass(frozen=True, slots=True)
class Predictive:
    """Chooses by forecast.

    Attributes:
        headroom: growth of the load that a better variant must bear.
    """

    setting: Setting
    headroom: float = HEADROOM

    @property
    def name(self) -> str:
        return "predictive"

    def decide(self, state: PolicyState, sample: Sample) -> Decision:
        choice = allowed(self.setting, state, sample)
        if choice.pressed:
            state = replace(state, pressed_at=sample.time)
        current = self.setting.rung(state.variant)
        if current not in choice.rungs:
            reason = choice.pressed or "it must not run now: memory, a quality floor or the power ceiling"
            return self._move(state, sample, self._best(choice.rungs, sample), reason)
        excess = self._excess(current, sample)
        if excess.worst:
            best = self._best(choice.rungs, sample)
            if best is not current:
                return self._move(state, sample, best, f"{current.name} would miss: {excess.worst}")
            reason = f"nothing does better, but {excess.worst}"
            return Decision(current.name, reason, state.stays())
        return self._look_up(state, sample, current, choice.rungs)

    def _look_up(self, state: PolicyState, sample: Sample, current: Rung, rungs: Sequence[Rung]) -> Decision:
        """All is met; is a better one possible, and has it been for long enough?

        Not while too little was kept: bursts that cannot be foreseen are survived by staying where the last one led.
        """
        kept = min((c.kept_share for c in sample.classes.values()), default=1.0)
        if kept < PROMISED_SHARE:
            reason = f"everything is met, but only {kept:.0%} of the requests lately had what they were promised"
            return Decision(current.name, reason, state.stays())
        better = (r for r in rungs if r.rank < current.rank)
        found = next((r for r in better if not self._excess(r, sample, self.headroom).worst), None)
        if found is None:
            return Decision(current.name, "everything is met, and nothing better would", state.stays())
        since = sample.time if state.better_since is None else state.better_since
        cost = found.profile.switch_seconds / SWITCH_SHARE
        if sample.time - since < max(state.hold_seconds, cost):
            return Decision(current.name, f"{found.name} would do, but only lately", state.stays(since))
        return self._move(state, sample, found, f"everything would be met at {self.headroom:g} times the load")

    def _best(self, rungs: Sequence[Rung], sample: Sample) -> Rung:
        """The best of those that meet everything; else the one that misses least, by priority."""
        missed = []
        for rung in rungs:
            excess = self._excess(rung, sample)
            if not excess.worst:
                return rung
            missed.append((excess.by_priority, rung.rank, rung))
        return min(missed, key=lambda m: m[:2])[2]

    def _move(self, state: PolicyState, sample: Sample, to: Rung, reason: str) -> Decision:
        if to.name == state.variant:
            return Decision(to.name, reason, state.stays())
        is_up = to.rank < self.setting.rung(state.variant).rank
        moved = state.goes_up(to.name, sample.time) if is_up else state.goes_down(to.name, sample.time)
        return Decision(to.name, reason, moved)

    def _excess(self, rung: Rung, sample: Sample, growth: float = 1.0) -> Excess:
        return excess_of(forecast(rung, self.setting, sample, growth, caution_of(sample)), self.setting, sample)


def caution_of(sample: Sample) -> float:
    """How cautious a forecast has to be: fully where promises were broken, not at all where none was.

    Requests that come between bursts are kept at any variant; those in bursts may share out what may be broken.
    """
    kept = min((c.kept_share for c in sample.classes.values()), default=1.0)
    return Z95 * min(1.0, max(0.0, (1 - kept) / (1 - CAUTIOUS_SHARE)))


def excess_of(found: Forecast, setting: Setting, sample: Sample) -> Excess:
    """How far a forecast is above the objectives of the classes that have requests."""
    classes = setting.objectives.classes
    above = dict.fromkeys(sorted((c.priority for c in classes.values()), reverse=True), 0.0)
    worst, worst_share = "", 0.0
    for name in sample.classes:
        wanted = classes.get(name)
        if wanted is None:
            continue
        for what, value, ceiling in (
            ("time per token", found.tpot_seconds, wanted.tpot_seconds),
            ("time to first token", found.ttft_seconds[name], wanted.ttft_seconds),
        ):
            if ceiling is None or value <= ceiling:
                continue
            share = value / ceiling - 1
            above[wanted.priority] += share
            if share > worst_share:
                worst_share = share
                worst = f"p95 {what} of {name} {value * 1000:.0f} ms, {ceiling * 1000:.0f} ms are promised"
    return Excess(tuple(above.values()), worst)
