"""Policy ``predictive``: the best variant that leaves every promise within reach.

Time per token is promised of a whole request.  So a rung may run that is too slow in the long run, as long as the
streams that write now can still be kept by going down later (``slack``); between two rungs, of which one is too slow
and the other needlessly fast, this comes to a mixture.  Time to the first token cannot be made up for: it is forecast
for the load, and a better variant must bear a larger one for a while.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lamella.qos.policies.constraints import allowed
from lamella.qos.policies.decision import Decision, PolicyState
from lamella.qos.policies.forecast import Z95, forecast
from lamella.qos.policies.sample import Sample
from lamella.qos.policies.setting import Rung, Setting
from lamella.qos.policies.slack import losses, step_seconds

HEADROOM = 1.2
"""A better variant must bear so many times the load..."""
LONGER = 1.5
"""...and be bearable for streams for so many times the horizon."""
CAUTIOUS_SHARE = 0.96
"""Where no more were kept lately, a forecast is of the 95th percentile of the load; where all were, of its mean."""
USUAL_SHARE, USUAL_LOSS = 0.97, 0.03
"""Where so many were kept lately, so large a share of the streams may be expected to break its promise; where more or
fewer were, as much more or less."""
LEAST_LOSS = 0.002
HARDLY_FASTER = 0.08
"""A rung that saves no larger share of the time than a better one is no choice: its divergence buys nothing."""
ALIKE = 0.1
"""Misses that differ by less are the same: shares of the streams, or of what is promised."""
SWITCH_SHARE = 0.04
"""Share of the time that may go into changes of variant."""


@dataclass(frozen=True, slots=True)
class Excess:
    """How far a rung is from what was promised.

    Attributes:
        by_priority: sum of the shares above, of each priority that a class has, the highest first.
        worst: the objective that is missed most, in words; "" when all are met.
        is_late: a first token would come too late.
    """

    by_priority: tuple[float, ...]
    worst: str
    is_late: bool


@dataclass(frozen=True, slots=True)
class Predictive:
    """Chooses by what streams can bear and by forecast.

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
        times = self._times(choice.rungs, sample)
        rungs = worthwhile(choice.rungs, state.variant, times)
        judged = self._judged(rungs, sample)
        best = _best(rungs, judged, lambda rung: times[rung.name][0])
        if current not in choice.rungs:
            reason = choice.pressed or "it must not run now: memory, a quality floor or the power ceiling"
            return self._move(state, sample, best, reason)
        excess = judged[current.name]
        if not excess.worst:
            return self._look_up(state, sample, current, rungs)
        if best is current:
            return Decision(current.name, f"nothing does better, but {excess.worst}", state.stays())
        reason = f"{current.name} would miss: {excess.worst}"
        if excess.is_late:
            return self._move(state, sample, best, reason)
        return Decision(best.name, reason, state.makes_up(best.name, sample.time))

    def _look_up(self, state: PolicyState, sample: Sample, current: Rung, rungs: Sequence[Rung]) -> Decision:
        """All is met; is a better one possible, and has it been for long enough?"""
        judged = self._judged(rungs, sample, self.headroom, LONGER)
        better = (r for r in rungs if r.rank < current.rank)
        found = next((r for r in better if not judged[r.name].worst), None)
        if found is None:
            return Decision(current.name, "everything is met, and nothing better would", state.stays())
        since = sample.time if state.better_since is None else state.better_since
        must_last = state.pressed_at is not None or self._promises_first_tokens(sample)
        is_too_new = must_last and sample.time - since < state.lasting_seconds
        if is_too_new or sample.time - state.since < found.profile.switch_seconds / SWITCH_SHARE:
            return Decision(current.name, f"{found.name} would do, but only lately", state.stays(since))
        return self._move(state, sample, found, "everything is within reach there, also if more comes")

    def _promises_first_tokens(self, sample: Sample) -> bool:
        classes = self.setting.objectives.classes
        return any(name in classes and classes[name].ttft_seconds is not None for name in sample.classes)

    def _move(self, state: PolicyState, sample: Sample, to: Rung, reason: str) -> Decision:
        if to.name == state.variant:
            return Decision(to.name, reason, state.stays())
        is_up = to.rank < self.setting.rung(state.variant).rank
        moved = state.goes_up(to.name, sample.time) if is_up else state.goes_down(to.name, sample.time)
        return Decision(to.name, reason, moved)

    def _judged(
        self, rungs: Sequence[Rung], sample: Sample, growth: float = 1.0, times: float = 1.0
    ) -> dict[str, Excess]:
        """By rung.

        Args:
            growth: of the arrivals.
            times: as ``losses``.
        """
        lost = losses(rungs, self.setting, sample, times)
        first = {rung.name: self._first_tokens(rung, sample, growth) for rung in rungs}
        return {r.name: excess_of(first[r.name], lost[r.name], self.setting, sample) for r in rungs}

    def _times(self, rungs: Sequence[Rung], sample: Sample) -> Mapping[str, Sequence[float]]:
        """By rung: seconds of what is promised: of a step, then of a prompt where first tokens are."""
        steps = {rung.name: (step_seconds(rung, self.setting, sample),) for rung in rungs}
        if not self._promises_first_tokens(sample):
            return steps
        n_prompt = max(1, round(max(c.mean_prompt for c in sample.classes.values())))
        return {rung.name: (*steps[rung.name], rung.speed.prompt(n_prompt)) for rung in rungs}

    def _first_tokens(self, rung: Rung, sample: Sample, growth: float) -> Mapping[str, float]:
        """By class, where any is promised one in time."""
        if not self._promises_first_tokens(sample):
            return {}
        return forecast(rung, self.setting, sample, growth, caution_of(sample)).ttft_seconds


def worthwhile(rungs: Sequence[Rung], running: str, times: Mapping[str, Sequence[float]]) -> list[Rung]:
    """The rungs that are faster at something than all better ones, and the one that runs.

    Args:
        rungs: best first.
        times: by rung: seconds of each thing that is promised.
    """
    kept: list[Rung] = []
    least = [math.inf for _ in times[rungs[0].name]]
    for rung in rungs:
        pairs = list(zip(times[rung.name], least, strict=True))
        if rung.name == running or any(t < (1 - HARDLY_FASTER) * of_better for t, of_better in pairs):
            kept.append(rung)
            least = [min(pair) for pair in pairs]
    return kept


def _best(rungs: Sequence[Rung], judged: Mapping[str, Excess], seconds_of: Callable[[Rung], float]) -> Rung:
    """The best of those that meet everything; else, of those that miss about as little as can be, the quickest.

    By priority.  Streams that all break their promise leave sooner at the quickest, and those that come find fewer.
    """
    good = next((rung for rung in rungs if not judged[rung.name].worst), None)
    if good:
        return good
    least = min(judged[rung.name].by_priority for rung in rungs)
    alike = (r for r in rungs if all(a - b <= ALIKE for a, b in zip(judged[r.name].by_priority, least, strict=True)))
    return min(alike, key=seconds_of)


def caution_of(sample: Sample) -> float:
    """How cautious a forecast has to be: fully where promises were broken, not at all where none was.

    Requests that come between bursts are kept at any variant; those in bursts may share out what may be broken.
    """
    kept = min((c.kept_share for c in sample.classes.values()), default=1.0)
    return Z95 * min(1.0, max(0.0, (1 - kept) / (1 - CAUTIOUS_SHARE)))


def most_loss(kept_share: float) -> float:
    """The share of the streams that a rung may be expected to break, given what was kept lately.

    A 95th percentile leaves 5 % to be broken.  What is expected is not what comes, because profiles are not exact and
    loads grow; what was kept lately says by how much.
    """
    return max(LEAST_LOSS, USUAL_LOSS + kept_share - USUAL_SHARE)


def excess_of(first: Mapping[str, float], lost: Mapping[str, float], setting: Setting, sample: Sample) -> Excess:
    """How far a rung is above the objectives of the classes that have requests.

    Args:
        first: by class, the 95th percentile of the time to the first token.
        lost: by class, the share of the streams that would break their promise (``losses``).
    """
    classes = setting.objectives.classes
    above = dict.fromkeys(sorted((c.priority for c in classes.values()), reverse=True), 0.0)
    missed: list[tuple[float, str]] = []
    is_late = False
    for name, seen in sample.classes.items():
        wanted = classes.get(name)
        if wanted is None:
            continue
        ceiling, value = wanted.ttft_seconds, first.get(name, 0.0)
        if ceiling is not None and value > ceiling:
            is_late = True
            words = f"p95 time to first token of {name} {value * 1000:.0f} ms, {ceiling * 1000:.0f} ms are promised"
            missed.append((value / ceiling - 1, words))
            above[wanted.priority] += missed[-1][0]
        share = lost.get(name, 0.0)
        if wanted.tpot_seconds is not None and share > most_loss(seen.kept_share):
            promised = f"{wanted.tpot_seconds * 1000:.0f} ms a token that are promised"
            words = f"{share:.0%} of the running requests of {name} would take more than the {promised}"
            missed.append((share, words))
            above[wanted.priority] += share
    return Excess(tuple(above.values()), max(missed, default=(0.0, ""))[1], is_late)
